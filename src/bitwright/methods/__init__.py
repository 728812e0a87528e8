"""The methods: one file each, none imports another; these tables are how a recipe's words find them.

A method fills three slots. A **transform** moves difficulty between activations and weights without changing the float
function, a **range** chooses scale and zero point (`numerics.RANGES`), a **rounding** chooses the codes.
"""

from dataclasses import dataclass

from bitwright.methods.rtn import rtn
from bitwright.methods.slots import Rounded, Rounding, Transform, Transformed

__all__ = ["METHODS", "ROUNDINGS", "TRANSFORMS", "Method", "Rounded", "Rounding", "Transform", "Transformed"]

ROUNDINGS: dict[str, Rounding] = {"rtn": rtn}
TRANSFORMS: dict[str, Transform] = {}


@dataclass(frozen=True, slots=True)
class Method:
    """One choice per slot. transform: name in TRANSFORMS, or None. range: the weight's range. rounding: in ROUNDINGS.

    note: when it is the right one, for `bitwright plan`.
    """

    transform: str | None
    range: str
    rounding: str
    note: str


METHODS: dict[str, Method] = {
    "rtn": Method(None, "absmax", "rtn", "no calibration; 8-bit weights rarely need more"),
}
