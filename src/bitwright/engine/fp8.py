"""FP8 linears in int8, where that is asked for: half the bytes that bf16 takes, and a loss that is told."""

from typing import Literal, NamedTuple

import numpy as np

from bitwright.engine.heads import held_scales
from bitwright.numerics.arrays import Bf16
from bitwright.numerics.linear import FloatLinear, QuantizedLinear
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec

Fp8 = Literal["bf16", "int8"]  # how FP8 weights are held
_GROUPS = (64, 32)  # inputs that share a scale; both divide the blocks of FP8 files


class Change(NamedTuple):
    """Σ (ŵ − w)² and Σ w² of a weight that was rounded once more."""

    error: float
    total: float


def in_int8(linear: FloatLinear) -> tuple[QuantizedLinear, Change] | None:
    """A linear in 8 bits with a scale for each group of inputs, scale = max|w| / 127, raised to what bf16 holds; and
    what that changes. None where no group divides K.
    """
    weight_NK, (n, k) = linear.weight_NK, linear.shape
    group = next((size for size in _GROUPS if k % size == 0), None)
    if group is None:
        return None
    wide_NK = weight_NK.widen() if isinstance(weight_NK, Bf16) else weight_NK
    values_NGg = wide_NK.reshape(n, -1, group)
    scale_NG = held_scales(abs(values_NGg).max(axis=2) / np.float32(127))
    steps_NGg = np.rint(values_NGg / scale_NG[..., None])
    error = float(np.square(steps_NGg * scale_NG[..., None] - values_NGg).sum(dtype=np.float64))
    weight = QTensor(steps_NGg.astype(np.int8).reshape(n, k), scale_NG, None, QuantSpec(group_size=group))
    total = float(np.square(values_NGg).sum(dtype=np.float64))
    return QuantizedLinear(weight, linear.bias_N), Change(error, total)


def change_words(changes: list[Change]) -> str:
    """ "14 × FP8 linears run as int8 by groups of inputs, which changes their weights by 0.61 %" """
    error, total = (sum(parts) for parts in zip(*changes, strict=True))
    percent = 100 * (error / total) ** 0.5 if total else 0.0
    return (
        f"{len(changes)} × FP8 linears run as int8 by groups of inputs, which changes their weights by {percent:.2f} %"
    )
