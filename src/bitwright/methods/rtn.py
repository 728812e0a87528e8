"""Round to nearest: every value takes the code closest to it. The baseline; at 8 bits usually all that is needed."""

from torch import Tensor

from bitwright.calibration.observers import LayerStats
from bitwright.methods.importance import importance_of
from bitwright.methods.slots import Rounded
from bitwright.numerics.grids import quantize
from bitwright.numerics.ranges import RangeFunction
from bitwright.numerics.spec import QuantSpec


def rtn(w_NK: Tensor, stats: LayerStats | None, spec: QuantSpec, range_function: RangeFunction) -> Rounded:
    """Choose a range, then round.

    Args:
        w_NK: float weight; not modified.
        stats: of the layer's inputs, for ranges that weigh errors by them; the others do without.

    Raises:
        NumericsError: NaN or infinite weights, or a shape that does not fit the spec.
    """
    scale_NG, zero_point_NG = range_function(w_NK, spec, importance=importance_of(stats))
    return Rounded(quantize(w_NK, scale_NG, zero_point_NG, spec))
