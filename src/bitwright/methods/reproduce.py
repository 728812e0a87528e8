"""Weights that are codes already, as those of a model that was trained for a grid: they stay what they are."""

from torch import Tensor

from bitwright.calibration.observers import LayerStats
from bitwright.methods.rtn import rtn
from bitwright.methods.slots import Rounded
from bitwright.numerics.known_grid import find_codes, is_reproducible
from bitwright.numerics.ranges import RangeFunction
from bitwright.numerics.spec import QuantSpec


def reproduce(w_NK: Tensor, stats: LayerStats | None, spec: QuantSpec, range_function: RangeFunction) -> Rounded:
    """The codes that the weights are (`known_grid.find_codes`); where they are none, round to nearest, and say so.

    Raises:
        NumericsError: as `rtn`.
    """
    found = find_codes(w_NK, spec) if is_reproducible(spec) else None
    if found is not None:
        return Rounded(found)
    rounded = rtn(w_NK, stats, spec, range_function)
    reason = "its weights are no codes of this scheme, or a fold changed them"
    return Rounded(rounded.qtensor, rounded.bias_N, rounded.notes | {"gave_way_to": "rtn", "reason": reason})
