"""Rounding that gradients pass: forward as the reference rounds, backward as if it had not, inside the grid's range.

    y = s · round(clip(w / s, lowest, highest))
    dy/dw = 1 inside the range, 0 beyond it
    dy/ds = round(w / s) − w / s inside, the end's level beyond it; times 1 / √(values of the scale · highest level)

Esser et al. 2020, LSQ, equations 2 to 5. Scales are given as s = start · exp(gain), so the gradient of the gain is that
of s, times s. Grids with few or no even steps (ternary, binary, codebooks) let the gradient of w through everywhere:
beyond their end levels lie many of their weights, which must be able to come back (Bengio et al. 2013).
"""

from typing import Any

import torch
from torch import Tensor

from bitwright.numerics.grids import grouped, nearest_codes
from bitwright.numerics.qtensor import code_values
from bitwright.numerics.spec import QuantSpec


class OnGrid(torch.autograd.Function):
    """A weight (N, K) on its grid: float32 (N, K)."""

    @staticmethod
    def forward(
        ctx: Any, w_NK: Tensor, gain_NG: Tensor, scale_NG: Tensor, zero_NG: Tensor | None, spec: QuantSpec,
        codebook: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """gain_NG: who gets the gradient. scale_NG: as stored, which gets none. zero_NG, codebook: as in a
        `QTensor`."""
        w, scale = grouped(w_NK, spec), scale_NG[..., None]
        zero = None if zero_NG is None else zero_NG[..., None]
        codes = nearest_codes(w, scale, zero, spec, codebook).to(torch.int8)
        value: Tensor = code_values(codes, scale, zero, spec, codebook).reshape(w_NK.shape)
        ctx.spec, ctx.wants_gain = spec, ctx.needs_input_grad[1]
        ctx.save_for_backward(w_NK, scale_NG, zero_NG, value)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Gradients of the weight and of the gain."""
        spec, (w_NK, scale_NG, zero_NG, value_NK) = ctx.spec, ctx.saved_tensors
        grad, w, value = (grouped(x, spec) for x in (grads[0], w_NK, value_NK))
        scale = scale_NG[..., None]
        low, high = ends(spec, zero_NG)
        inside = (w >= low * scale) & (w <= high * scale)
        grad_gain = None
        if ctx.wants_gain:
            sums_NG = (grad * (value - w.where(inside, 0.0))).sum(-1)
            grad_gain = sums_NG / (w.shape[-1] * max(spec.code_max, 1)) ** 0.5
        clips = spec.grid == "uniform"
        grad_w = (grad.where(inside, 0.0) if clips else grad).reshape(w_NK.shape)
        return grad_w, grad_gain, None, None, None, None


def ends(spec: QuantSpec, zero_NG: Tensor | None) -> tuple[Any, Any]:
    """The lowest and the highest w / scale that rounding alone moves: of a uniform or ternary grid (N, G, 1) if there
    are zero points, else numbers; half a step beyond the end levels."""
    if spec.has_codebook:
        return -spec.half_steps, spec.half_steps
    zero = 0.0 if zero_NG is None else zero_NG[..., None].float()
    return spec.code_min - 0.5 - zero, spec.code_max + 0.5 - zero
