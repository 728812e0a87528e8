"""`PolishedLinear`: a quantized linear whose codes are frozen, and whose floats are trained.

M tokens · N output features · K input features · G groups of K.

Trained are the scales of the weight, the minima of a format that has them, the bias, and the scale of a static input.
What is stored in fewer bits than float32 is rounded in every forward as it will be stored; its gradient passes
straight through (Bengio et al. 2013, 1308.3432). Scales are trained as logarithms of factors, so that one learning rate
suits all: d scale = scale · d log.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.numerics.linear import QuantizedLinear, StaticGrid
from bitwright.numerics.qtensor import QTensor, levels_of
from bitwright.numerics.spec import QuantSpec
from bitwright.training.rounded_inputs import applied, round_input, round_static


class PolishedLinear(nn.Module):
    """y = x̂ Ŵᵀ + b̂, where x̂ is rounded as the runtime will round it.

    Attributes:
        linear: what it began as. group: inputs that share a scale where the runtime rounds float inputs to int8 by
            token and group; 0 where it does not.
        log_scale: of the factor of each scale, shaped like the scale. minimum: in scales, what is added to each; or
            None. bias: in lengths of its weight's row, what is added to each; or None. log_input: of the factor of a
            static input's scale; or None.
    """

    log_scale: nn.Parameter
    minimum: nn.Parameter | None
    bias: nn.Parameter | None
    log_input: nn.Parameter | None
    steps: Tensor
    bias_unit: Tensor

    def __init__(self, linear: QuantizedLinear, *, group: int = 0) -> None:
        super().__init__()
        self.linear = linear = linear.torch()
        self.out_features, self.in_features = linear.shape
        self.group = group if linear.input_spec is None else 0
        weight = linear.weight
        self.register_buffer("steps", _steps(weight), persistent=False)
        self.log_scale = nn.Parameter(torch.zeros(weight.scale_NG.shape))
        self.minimum = None if weight.minimum_NG is None else nn.Parameter(torch.zeros(weight.scale_NG.shape))
        self.bias = None if linear.bias_N is None else nn.Parameter(torch.zeros(self.out_features))
        self.log_input = None if linear.static is None else nn.Parameter(torch.zeros(()))
        if self.bias is not None:
            self.register_buffer("bias_unit", weight.dequantize().norm(dim=1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x float (..., K) -> (..., N), in bfloat16 under autocast, else in float32."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        linear, x_MK = self.linear, self.linear.seen(x.reshape(-1, self.in_features).float())
        if self.log_input is not None:
            assert linear.static is not None
            assert linear.input_spec is not None
            x_MK = round_static(x_MK, self._input_scale(), linear.static.zero_point, linear.input_spec)
        else:
            x_MK = round_input(x_MK, linear.input_spec, self.group)
        scale_NG, minimum_NG = self._stored()
        x_MK = x_MK.to(dtype)
        if scale_NG.shape[1] == 1 and minimum_NG is None:
            y_MN = applied(_StepsProduct, x_MK, self.steps) * scale_NG[:, 0].to(dtype)
        else:
            y_MN = applied(_GroupedProduct, x_MK, self.steps, scale_NG, minimum_NG)
        if self.bias is not None:
            y_MN = y_MN + self._bias().to(dtype)
        y: Tensor = y_MN.reshape(*x.shape[:-1], self.out_features)
        return y

    def trained(self) -> QuantizedLinear:
        """The linear with the floats that were trained, as they are stored: same codes, same form."""
        with torch.no_grad():
            (scale_NG, minimum_NG), static, weight = self._stored(), self.linear.static, self.linear.weight
            dtype = weight.scale_NG.dtype
            minimum_NG = None if minimum_NG is None else minimum_NG.to(dtype)
            if static is not None:
                static = StaticGrid(float(self._input_scale()), static.zero_point)
            return replace(
                self.linear,
                weight=replace(weight, scale_NG=scale_NG.to(dtype), minimum_NG=minimum_NG),
                bias_N=None if self.bias is None else self._bias(),
                static=static,
            )

    def _stored(self) -> tuple[Tensor, Tensor | None]:
        """Scales and minima as they are stored, in float32."""
        weight = self.linear.weight
        before: Tensor = weight.scale_NG.float()
        smallest = before.clamp(max=torch.finfo(weight.scale_NG.dtype).tiny)  # none may become 0
        scale_NG = torch.maximum(before * self.log_scale.exp(), smallest)
        scale_NG = stored(scale_NG, weight.scale_NG, weight.spec)
        if self.minimum is None or weight.minimum_NG is None:
            return scale_NG, None
        return scale_NG, stored(weight.minimum_NG.float() + before * self.minimum, weight.minimum_NG, weight.spec)

    def _bias(self) -> Tensor:
        assert self.bias is not None
        assert self.linear.bias_N is not None
        bias_N: Tensor = self.linear.bias_N + self.bias * self.bias_unit
        return bias_N

    def _input_scale(self) -> Tensor:
        assert self.linear.static is not None
        assert self.log_input is not None
        return self.linear.static.scale * self.log_input.exp()


def stored(values_NG: Tensor, before_NG: Tensor, spec: QuantSpec) -> Tensor:
    """Scales or minima as a weight will store them, in float32: in the dtype of those that it has, and in 16 bits where
    its spec has scales so and all that it has are such. The gradient passes straight through.
    """
    dtype = before_NG.dtype
    in_16_bits = spec.scale_in_16_bits and torch.equal(before_NG.bfloat16().to(dtype), before_NG)
    with torch.no_grad():
        rounded_NG = (values_NG.bfloat16() if in_16_bits else values_NG).to(dtype).float()
    return values_NG + (rounded_NG - values_NG).detach()


def _steps(weight: QTensor) -> Tensor:
    """What the codes stand for at scale 1 (and minimum 0), in the smallest dtype that holds it: (N, K)."""
    codes_NK, spec = weight.codes_NK, weight.spec
    steps_NK: Tensor = codes_NK
    if spec.has_codebook:
        steps_NK = levels_of(spec, weight.codebook, like=torch.zeros(0))[codes_NK.int()]
    elif weight.minimum_NG is not None:
        steps_NK = (codes_NK.to(torch.int16) - spec.code_min).to(torch.uint8)
    elif weight.zero_point_NG is not None:
        wide_NGg = codes_NK.to(torch.int16).reshape(*weight.scale_NG.shape, -1)
        wide_NGg = wide_NGg - weight.zero_point_NG[..., None].to(torch.int16)
        steps_NK = wide_NGg.reshape(codes_NK.shape).to(torch.int8 if spec.bits < 8 else torch.int16)
    return steps_NK


class _StepsProduct(torch.autograd.Function):
    """x · stepsᵀ. Only the codes are kept for the gradient, not the floats that are multiplied."""

    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, steps_NK: Tensor) -> Tensor:
        ctx.save_for_backward(steps_NK)
        return x_MK @ steps_NK.to(x_MK.dtype).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (steps_NK,) = ctx.saved_tensors
        return gradients[0] @ steps_NK.to(gradients[0].dtype), None


class _GroupedProduct(torch.autograd.Function):
    """x · Ŵᵀ with Ŵ = steps · scale (+ minimum). Ŵ is made again for the gradient, and kept nowhere.

    ∂scale_ng = Σ_k ∂Ŵ_nk · steps_nk and ∂minimum_ng = Σ_k ∂Ŵ_nk over the K of the group.
    """

    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, steps_NK: Tensor, scale_NG: Tensor, minimum_NG: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_MK, steps_NK, scale_NG, minimum_NG)
        return x_MK @ _weight(steps_NK, scale_NG, minimum_NG, x_MK.dtype).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, Tensor | None]:
        x_MK, steps_NK, scale_NG, minimum_NG = ctx.saved_tensors
        gradient_MN = gradients[0].to(x_MK.dtype)
        gradient_MK = gradient_MN @ _weight(steps_NK, scale_NG, minimum_NG, x_MK.dtype)
        gradient_NGg = (gradient_MN.T @ x_MK).reshape(*scale_NG.shape, -1)
        steps_NGg = steps_NK.to(x_MK.dtype).reshape(gradient_NGg.shape)  # mixed products take four times as long
        of_scale_NG = (gradient_NGg * steps_NGg).sum(dim=-1, dtype=torch.float32)
        of_minimum_NG = None if minimum_NG is None else gradient_NGg.sum(dim=-1, dtype=torch.float32)
        return gradient_MK, None, of_scale_NG, of_minimum_NG


def _weight(steps_NK: Tensor, scale_NG: Tensor, minimum_NG: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Ŵ (N, K)."""
    weight_NGg = steps_NK.to(dtype).reshape(*scale_NG.shape, -1) * scale_NG[..., None].to(dtype)
    if minimum_NG is not None:
        weight_NGg = weight_NGg + minimum_NG[..., None].to(dtype)
    return weight_NGg.reshape(steps_NK.shape)
