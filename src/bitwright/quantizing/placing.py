"""A rounded linear, put in its place: as it is stored, and as the model in memory goes on with it."""

import torch
from torch import Tensor

from bitwright.checkpoints.stored import StoredLinear
from bitwright.methods import Rounded, Transformed
from bitwright.numerics.qtensor import QTensor
from bitwright.quantizing.work import Work


def put_in_place(work: Work, name: str, rounded: Rounded, grid: tuple[Tensor, Tensor | None] | None) -> None:
    """Keep what a checkpoint stores of a linear, and let the float linear compute what that will, but for the rounding
    of its input. Mutates `work` and its model.

    grid: scale and zero point of a static input.
    """
    applied = work.applied.get(name)
    work.layers[name] = _stored(work, name, rounded.qtensor, grid)
    bias = _new_bias(work, name, rounded, applied)
    if bias is not None:
        work.biases[name] = bias
    _take_over(work, name, rounded.qtensor, bias, applied)


def _stored(work: Work, name: str, weight: QTensor, grid: tuple[Tensor, Tensor | None] | None) -> StoredLinear:
    applied = work.applied.get(name)
    scale, zero = (None, None) if grid is None else grid
    return StoredLinear(
        weight,
        work.scheme(name).input,
        None if scale is None else scale.float().reshape(1),
        None if zero is None else zero.reshape(1),
        None if applied is None else applied.scale_K.float(),
        None if applied is None or applied.shift_K is None else applied.shift_K.float(),
    )


def _new_bias(work: Work, name: str, rounded: Rounded, applied: Transformed | None) -> Tensor | None:
    """The bias that belongs to the rounded weight, if it is another than the model's: float32 (N,)."""
    bias = work.linear(name).bias
    shifted = applied is not None and applied.shift_K is not None
    if rounded.bias_N is None and not shifted:
        return None
    now = torch.zeros(work.linear(name).out_features) if bias is None else bias.detach().float().clone()
    return now if rounded.bias_N is None else now + rounded.bias_N


def _take_over(work: Work, name: str, weight: QTensor, bias: Tensor | None, applied: Transformed | None) -> None:
    """Give the float linear the weight and the bias that compute, on the input as it is, what the codes stand for."""
    linear, w_NK = work.linear(name), weight.dequantize()
    if applied is not None:
        w_NK /= applied.scale_K
        if applied.shift_K is not None:
            assert bias is not None
            bias = bias - w_NK @ applied.shift_K
    with torch.no_grad():
        linear.weight.copy_(w_NK)
        if bias is not None:
            linear.bias.copy_(bias)
