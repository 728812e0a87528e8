"""What is done to rows before a linear multiplies them: a transform, a grid, or one after the other."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bitwright.engine.ops.binder import Binder
from bitwright.kernels.input_grid import InputGrid


@dataclass(frozen=True, slots=True, eq=False)
class PaddedTransform:
    """(x − shift) · multiplier of each feature. Two are equal if their values are.

    shift_K, multiplier_K: float32, padded to a multiple of 64.
    """

    shift_K: np.ndarray
    multiplier_K: np.ndarray

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PaddedTransform):
            return NotImplemented
        return np.array_equal(self.shift_K, other.shift_K) and np.array_equal(self.multiplier_K, other.multiplier_K)


def bind_input(to: Binder, grid: InputGrid | None, transform: PaddedTransform | None) -> Any:
    """Both as the struct that native code takes; None for rows that stay as they are, or whose groups need no grid."""
    if grid is None and transform is None:
        return None
    shift, multiplier = (None, None) if transform is None else (transform.shift_K, transform.multiplier_K)
    grid = grid or InputGrid("asymmetric")  # of a transform alone: `Round` looks at no grid then
    return to.native.InputGrid(
        shift=to.array(shift),
        multiplier=to.array(multiplier),
        mode=to.native.QuantizeMode[grid.mode],
        static_scale=grid.scale,
        static_zero_point=grid.zero_point,
        code_min=grid.code_min,
    )
