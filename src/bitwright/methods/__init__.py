"""The methods: one file each, none imports another; these tables are how a recipe's words find them.

rounding : (w_NK, LayerStats | None, QuantSpec, range) -> QTensor
"""

from collections.abc import Callable

from torch import Tensor

from bitwright.calibration.observers import LayerStats
from bitwright.methods.rtn import rtn
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.ranges import RangeFunction
from bitwright.numerics.spec import QuantSpec

__all__ = ["ROUNDINGS", "Rounding", "rtn"]

Rounding = Callable[[Tensor, LayerStats | None, QuantSpec, RangeFunction], QTensor]

ROUNDINGS: dict[str, Rounding] = {"rtn": rtn}
