"""Puts a rounded linear in its place: in the form that is stored, and in the model in memory."""

import torch
from torch import Tensor

from bitwright.methods import Rounded
from bitwright.numerics.linear import QuantizedLinear, StaticGrid
from bitwright.quantizing.work import Work


def put_in_place(work: Work, name: str, rounded: Rounded, static: StaticGrid | None) -> None:
    """Keep the quantized linear, and let the float one compute what that will, but for the rounding of its input.
    Mutates `work` and its model.
    """
    linear, transform = work.linear(name), work.applied.get(name)
    new = _new_bias(work, name, rounded)
    bias = new if new is not None or linear.bias is None else linear.bias.detach().float().clone()
    made = QuantizedLinear(rounded.qtensor, bias, work.scheme(name).input, static, transform)
    work.layers[name] = made
    if new is not None:
        work.rebiased.add(name)
    weight_NK, bias_N = made.effective()
    with torch.no_grad():
        linear.weight.copy_(weight_NK)
        if bias_N is not None and linear.bias is not None:
            linear.bias.copy_(bias_N)


def _new_bias(work: Work, name: str, rounded: Rounded) -> Tensor | None:
    """The bias of the rounded weight if it differs from the model's: float32 (N,)."""
    bias, transform = work.linear(name).bias, work.applied.get(name)
    shifted = transform is not None and transform.shift_K is not None
    if rounded.bias_N is None and not shifted:
        return None
    now = torch.zeros(work.linear(name).out_features) if bias is None else bias.detach().float().clone()
    return now if rounded.bias_N is None else now + rounded.bias_N
