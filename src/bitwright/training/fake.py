"""`FakeLinear`: a linear that trains on its quantization grid.

Its forward computes with what its codes stand for; its backward lets the gradient through the rounding
(straight-through). Codes, scales and inputs are those of `numerics.grids` and `kernels.reference`, so the codes of a
file are the codes of the last forward.

N output features · K input features · G groups of K · g values of a group · M tokens.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitwright.kernels import reference
from bitwright.kernels.input_grid import rounded_by_groups
from bitwright.methods.rtn import rtn
from bitwright.numerics import RANGES
from bitwright.numerics.grids import grouped, nearest_codes, quantize
from bitwright.numerics.linear import InputTransform, QuantizedLinear, StaticGrid
from bitwright.numerics.qtensor import QTensor, code_values
from bitwright.numerics.spec import QuantSpec
from bitwright.training.rounded_inputs import round_input, round_static
from bitwright.training.scale_rules import SCALE_RULES, ScaleRule
from bitwright.training.straight_through import OnGrid

_TOWARDS = 0.5  # of the way from a code's value to the float weight: where a weight on a uniform grid begins


class FakeLinear(nn.Linear):
    """y = x̂ Ŵᵀ + b, Ŵ what the codes of `weight` stand for, x̂ the input on its grid.

    It keeps the names of a linear's parameters, so that optimizers, adapters and state dicts find them, and has more:

    Attributes:
        weight: float32 (N, K), what is rounded; b̂ and Ŵ of `QuantizedLinear` where the input is transformed.
        scale_gain: float32 (N, G); the scale is `scale_start` · exp(gain), rounded as it is stored. Weight decay draws
            it to the scale of the start. None where the scale follows from the weights (`scale_rule`).
        input_gain: float32 (1,), the same of a static input's scale; None for other inputs.
        blend: 0 computes in float, 1 on the grid, and what is between mixes both: for a slow start.
        rounds_groups: whether float inputs are rounded to int8 by token and group, as the engine does in language
        models.
    """

    scale_start: Tensor
    scale_gain: nn.Parameter | None
    input_gain: nn.Parameter | None
    zero_point: Tensor | None
    codebook: Tensor | None
    input_start: Tensor | None
    input_zero_point: Tensor | None
    input_shift: Tensor | None
    input_multiplier: Tensor | None

    def __init__(
        self,
        linear: nn.Linear,
        start: QuantizedLinear,
        *,
        scale_rule: ScaleRule = "learned",
        rounds_groups: bool = False,
    ) -> None:
        """A linear in training that takes the place of `linear`, whose parameters it keeps and changes: its first
        forward has the codes, the bias and the grids of `start`.

        linear: float; its weight is the one that `start` was rounded from, or near it.
        """
        n, k = start.shape
        super().__init__(k, n, bias=start.bias_N is not None, device="meta")
        start = start.torch()
        self.spec, self.input_spec, self.transform = start.weight.spec, start.input_spec, start.transform
        self.scale_rule, self.blend = scale_rule, 1.0
        self.group = rounded_by_groups(self.spec, k) if rounds_groups and self.input_spec is None else 0
        with torch.no_grad():
            weight = linear.weight if self.transform is None else self.transform.absorbed(linear.weight)
            linear.weight.copy_(weight if scale_rule != "learned" else begun_at(weight.float(), start.weight))
            self.weight = linear.weight
            if start.bias_N is not None:
                self.bias = linear.bias if linear.bias is not None else nn.Parameter(start.bias_N.clone())
                self.bias.copy_(start.bias_N)
        self.register_buffer("scale_start", start.weight.scale_NG.float().clone())
        self.register_buffer("zero_point", start.weight.zero_point_NG)
        self.register_buffer("codebook", start.weight.codebook)
        gain = nn.Parameter(torch.zeros_like(self.scale_start)) if scale_rule == "learned" else None
        self.register_parameter("scale_gain", gain)
        self._keep_input(start.static, start.transform)

    def _keep_input(self, static: StaticGrid | None, transform: InputTransform | None) -> None:
        self.register_parameter("input_gain", None if static is None else nn.Parameter(torch.zeros(1)))
        self.register_buffer("input_start", None if static is None else torch.tensor([static.scale]))
        zero = None if static is None else torch.tensor([float(static.zero_point)])
        self.register_buffer("input_zero_point", zero)
        scale_K, shift_K = (None, None) if transform is None else (transform.scale_K, transform.shift_K)
        self.register_buffer("input_shift", shift_K)
        self.register_buffer("input_multiplier", None if scale_K is None else 1.0 / scale_K)

    def stored_scale(self) -> Tensor:
        """The weight's scale as a file will hold it: float32 (N, G), no gradient."""
        with torch.no_grad():
            if self.scale_gain is None:
                return SCALE_RULES[self.scale_rule](self.weight.float(), self.spec)
            scale = self.scale_start * self.scale_gain.float().exp()
            # A float32 scale that nothing changed is the one of the start; 16-bit ones are rounded, so that they stay.
            scale = scale.bfloat16().float() if self.spec.scale_in_16_bits else scale
            return scale.clamp(min=torch.finfo(torch.float32).tiny)

    def fake_weight(self) -> Tensor:
        """What the codes of the weight stand for: float32 (N, K)."""
        gain = self.scale_gain if self.scale_gain is not None else self.scale_start
        value: Tensor = OnGrid.apply(  # type: ignore[no-untyped-call]
            self.weight.float(), gain, self.stored_scale(), self.zero_point, self.spec, self.codebook
        )
        return value if self.blend >= 1 else torch.lerp(self.weight.float(), value, self.blend)

    def fake_input(self, x: Tensor) -> Tensor:
        """The input as the kernels see it: transformed, and rounded to its grid if it has one."""
        if self.input_shift is not None or self.input_multiplier is not None:
            x = reference.transform_inputs(x, self.input_shift, self.input_multiplier)
        if self.blend <= 0 or (self.input_spec is None and not self.group):
            return x
        x_MK = x.float().reshape(-1, self.in_features)
        if self.input_gain is not None:
            assert self.input_zero_point is not None
            assert self.input_spec is not None
            scale = self._trained_static_scale(x_MK.numel() * self.input_spec.code_max)
            value = round_static(x_MK, scale, int(self.input_zero_point), self.input_spec)
        else:
            value = round_input(x_MK, self.input_spec, self.group)
        value = value if self.blend >= 1 else torch.lerp(x_MK, value, self.blend)
        rounded: Tensor = value.view(x.shape)
        return rounded

    def static_scale(self) -> Tensor:
        """The scale of a static input: float32 (1,), no gradient."""
        assert self.input_start is not None
        assert self.input_gain is not None
        return (self.input_start * self.input_gain.detach().float().exp()).clamp(min=torch.finfo(torch.float32).tiny)

    def _trained_static_scale(self, size: int) -> Tensor:
        """`static_scale` as a scalar, whose gain gets the gradient of LSQ: that of the scale times 1 / √size."""
        assert self.input_gain is not None
        scale = self.static_scale()
        gain = self.input_gain * (scale / size**0.5)
        found: Tensor = (scale + (gain - gain.detach()))[0]
        return found

    def forward(self, x: Tensor) -> Tensor:
        """x floating (..., K) -> (..., N)."""
        if self.blend <= 0:
            return functional.linear(self.fake_input(x).to(x.dtype), self.weight, self.bias)
        seen, weight = self.fake_input(x), self.fake_weight()
        if not torch.is_autocast_enabled(x.device.type):
            weight, seen = weight.to(x.dtype), seen.to(x.dtype)
        return functional.linear(seen, weight, self.bias)

    @torch.no_grad()
    def quantized(self) -> QuantizedLinear:
        """The quantized linear that the forward computes with.

        Raises:
            NumericsError: NaN or infinity in the weight.
        """
        weight = quantize(self.weight.float(), self.stored_scale(), self.zero_point, self.spec, self.codebook)
        bias = None if self.bias is None else self.bias.detach().float().clone()
        static = None
        if self.input_gain is not None:
            assert self.input_zero_point is not None
            static = StaticGrid(float(self.static_scale()), int(self.input_zero_point))
        return QuantizedLinear(weight, bias, self.input_spec, static, self.transform)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{super().extra_repr()}, trains on {self.spec.bits} bit, {self.spec.grid} grid"


def rounded_start(linear: nn.Linear, spec: QuantSpec, input_spec: QuantSpec | None) -> QuantizedLinear:
    """A linear rounded to nearest, from its weight alone: where training starts if no method did anything better."""
    bias = None if linear.bias is None else linear.bias.detach().float().clone()
    range_ = RANGES["absmax" if spec.is_mean_scaled else "mse" if spec.bits <= 4 else "min_max"]
    return QuantizedLinear(rtn(linear.weight.detach().float(), None, spec, range_).qtensor, bias, input_spec)


def begun_at(w_NK: Tensor, rounded: QTensor) -> Tensor:
    """Where weights begin to be trained: with the codes of `rounded`, on the side that w lies on. Float32 (N, K).

    On uniform grids half way from what the code stands for to w, or to the edge of the code's cell where w lies beyond
    it. Not the whole way: many of GPTQ's codes are not the nearest ones (a tenth, of MiniLM in 4 bits). They would
    stand on the edge, and the first small steps would throw them back all at once. On the others w, or the code's level
    if another level is nearer to w.
    """
    spec, scale = rounded.spec, rounded.scale_NG.float()[..., None]
    zero = None if rounded.zero_point_NG is None else rounded.zero_point_NG[..., None]
    codes = rounded.codes_NK.reshape(*rounded.scale_NG.shape, -1)
    w, value = grouped(w_NK.float(), spec), code_values(codes, scale, zero, spec, rounded.codebook)
    if spec.grid == "uniform":
        begun = value + _TOWARDS * (w - value).clamp(-0.5 * scale, 0.5 * scale)
    else:
        same = nearest_codes(w, scale, zero, spec, rounded.codebook) == codes
        begun = torch.where(same, w, value)
    weight: Tensor = begun.reshape(w_NK.shape)
    return weight
