"""The head of a language model as the engine holds it: in 8 bits, on the operator of 4-bit weights."""

import numpy as np

from bitwright.engine.halves import joined_halves
from bitwright.engine.linears import Linear
from bitwright.errors import EngineError
from bitwright.numerics.linear import FloatLinear

_GROUP = 64  # inputs, at most, that share a scale


def head_in_int8(linear: Linear) -> Linear:
    """Rows of a float linear in 8 bits, with a scale for each group of inputs, as one of 4 bits that reads its inputs
    twice.

    It is held in halves (`halves.py`), so inputs are rounded by groups, too. With one scale for each row and token, as
    int8 linears have, the perplexity of SmolLM2-135M rose by 0.6 %, not 0.2 %.
    """
    assert isinstance(linear, FloatLinear), "what is quantized is held as it is"
    n, k = linear.shape
    group = next((size for size in range(_GROUP, 0, -8) if k % size == 0), None)
    if group is None:
        raise EngineError(f"a head with K = {k} inputs cannot be held in int8: K must be a multiple of 8")
    values_NGg = linear.widened().reshape(n, k // group, group)
    largest_NG = abs(values_NGg).max(axis=2)
    if not np.isfinite(largest_NG).all():  # the generic path, which is tried next, names the tensor
        raise EngineError("a head that holds NaN or infinity cannot be held in int8")
    scale_NG = held_scales(largest_NG / np.float32(127))
    above_NGg = np.divide(values_NGg, scale_NG[..., None])
    np.rint(above_NGg, out=above_NGg)
    above_NGg += np.float32(128)
    above_NK = np.clip(above_NGg, 0, 255, out=above_NGg).astype(np.uint8).reshape(n, k)
    codes_NK = np.empty((n, 2 * k), np.uint8)
    np.right_shift(above_NK, 4, out=codes_NK[:, :k])
    np.bitwise_and(above_NK, 15, out=codes_NK[:, k:])
    return joined_halves(codes_NK, np.concatenate([16 * scale_NG, scale_NG], axis=1), group, linear.bias_N)


def held_scales(exact: np.ndarray) -> np.ndarray:
    """Scales that bf16 holds, not below these: kernels read such scales in half the bytes."""
    bits = np.maximum(exact, np.float32(2.0**-100)).view(np.uint32) + np.uint32(0xFFFF)
    held: np.ndarray = (bits & np.uint32(0xFFFF0000)).view(np.float32)
    return held
