"""8-bit codes with scales for groups as two 4-bit weights side by side along K, which integer products take.

A code c + 128 is 16 · high + low, so c · scale = (high − 8) · 16 scale + low · scale. Such a linear reads each input
twice, one after the other.
"""

import numpy as np

from bitwright.engine.linears import Inputs, Linear, input_group
from bitwright.numerics.linear import FloatLinear, QuantizedLinear
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec


def in_halves(linear: Linear, inputs: Inputs) -> Linear:
    """A linear of 8-bit codes with scales for groups of inputs that the file leaves in 16 bits, in halves where inputs
    are rounded to int8. Any other linear is returned as it is. No value of the weight changes.
    """
    if inputs != "int8" or isinstance(linear, FloatLinear) or linear.input_spec is not None:
        return linear
    spec, transform = linear.weight.spec, linear.transform
    if spec.bits != 8 or not spec.symmetric or spec.group_size is None or transform is not None:
        return linear
    above_NK, k = linear.weight.codes_NK.view(np.uint8) ^ np.uint8(128), linear.shape[1]  # c + 128
    codes_NK = np.empty((linear.shape[0], 2 * k), np.uint8)
    np.right_shift(above_NK, 4, out=codes_NK[:, :k])
    np.bitwise_and(above_NK, 15, out=codes_NK[:, k:])
    scale_NG = linear.weight.scale_NG.astype(np.float32, copy=False)
    halves = joined_halves(codes_NK, np.concatenate([16 * scale_NG, scale_NG], axis=1), spec.group_size, linear.bias_N)
    return halves if input_group(halves) else linear


def joined_halves(
    codes_NK: np.ndarray, scale_NG: np.ndarray, group: int, bias_N: np.ndarray | None
) -> QuantizedLinear:  # fmt: skip
    """The linear of codes from 0 to 15: high halves, and beside them the low ones. Mutates the codes."""
    codes_NK -= 8  # wraps, as it must
    zero_NG = np.zeros(scale_NG.shape, np.int8)
    zero_NG[:, scale_NG.shape[1] // 2 :] = -8
    spec = QuantSpec(4, symmetric=False, group_size=group)
    return QuantizedLinear(QTensor(codes_NK.view(np.int8), scale_NG, zero_NG, spec), bias_N)
