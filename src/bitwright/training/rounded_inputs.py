"""Rounds the inputs of linears as the kernels will, with a gradient that passes straight through.

The forwards are `kernels/reference.py`. Where a static grid cuts a value off, no gradient reaches it, but the grid's
scale gets one (Esser et al. 2019, 1902.08153, equation 3).
"""

from typing import Any

import torch
from torch import Tensor

from bitwright.kernels import reference
from bitwright.numerics.spec import QuantSpec


def round_input(x_MK: Tensor, spec: QuantSpec | None, group: int) -> Tensor:
    """x rounded by a dynamic spec, or without one to int8 by token and `group` values of K; group = 0 leaves it."""
    if spec is None and not group:
        return x_MK
    with torch.no_grad():
        rounded_MK = _rounded_groups(x_MK, group) if spec is None else _rounded_rows(x_MK, spec)
    return applied(_Straight, x_MK, rounded_MK)


def round_static(x_MK: Tensor, scale: Tensor, zero_point: int, spec: QuantSpec) -> Tensor:
    """x rounded to one grid. scale: a scalar, which gets a gradient."""
    return applied(_OnGrid, x_MK, scale, zero_point, spec)


def applied(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    """What a function with a gradient of its own gives: one tensor."""
    result: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


def _rounded_rows(x_MK: Tensor, spec: QuantSpec) -> Tensor:
    """What the codes of `reference.quantize_rows` stand for, of finite values, in fewer passes over memory."""
    scale_M1, zero_M1 = reference.dynamic_grid(x_MK, spec)
    codes_MK = (x_MK * (1.0 / scale_M1)).round_().add_(zero_M1).clamp_(spec.code_min, spec.code_max)
    return codes_MK.sub_(zero_M1).mul_(scale_M1)


def _rounded_groups(x_MK: Tensor, group: int) -> Tensor:
    """`reference.rounded_groups` of finite values, in fewer passes over memory."""
    x_MGg = x_MK.reshape(len(x_MK), -1, group)
    largest = x_MGg.abs().amax(dim=2, keepdim=True)
    scale = (largest / 127).where(largest != 0.0, 1.0).clamp_(min=torch.finfo(torch.float32).tiny)
    return (x_MGg * (1.0 / scale)).round_().mul_(scale).reshape(x_MK.shape)


class _Straight(torch.autograd.Function):
    """`rounded`, with the gradient of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _OnGrid(torch.autograd.Function):
    """x̂ = (clip(rint(x / scale) + zero) − zero) · scale.

    ∂x̂/∂x is 1 inside the grid, else 0; ∂x̂/∂scale is rint(x / scale) − x / scale inside, else code − zero.
    """

    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, scale: Tensor, zero_point: int, spec: QuantSpec) -> Tensor:
        steps_MK = x_MK * (1.0 / scale)
        clipped_MK = (steps_MK.round() + zero_point).clamp(spec.code_min, spec.code_max) - zero_point
        inside_MK = (clipped_MK - steps_MK).abs() <= 0.5
        ctx.save_for_backward(inside_MK, (clipped_MK - steps_MK.where(inside_MK, 0.0)).bfloat16())
        return clipped_MK * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        inside_MK, by_scale_MK = ctx.saved_tensors
        return gradients[0] * inside_MK, (gradients[0] * by_scale_MK).sum(dtype=torch.float32), None, None
