"""The methods: one file each, none imports another; these tables are how a recipe's words find them.

A method fills three slots. A **transform** moves difficulty between activations and weights without changing the float
function, a **range** chooses scale and zero point (`numerics.RANGES`), a **rounding** chooses the codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from bitwright.calibration.observers import LayerStats
from bitwright.methods.awq import awq
from bitwright.methods.bias_correction import with_bias_correction
from bitwright.methods.gptq import gptq
from bitwright.methods.loss_weighted import with_loss_weights
from bitwright.methods.mismatch import with_mismatch_correction
from bitwright.methods.reproduce import reproduce
from bitwright.methods.rtn import rtn
from bitwright.methods.shift import shift
from bitwright.methods.slots import Error, Rounded, Rounding, Transform, Transformed
from bitwright.methods.smoothquant import Alpha, smoothquant

__all__ = [
    "METHODS", "REPRODUCE", "ROUNDINGS", "TRANSFORMS", "WEIGHTS_ALONE", "Alpha", "Error", "Method", "Rounded",
    "Rounding", "Transform", "Transformed", "rounding_of", "transform_of",
]  # fmt: skip

ROUNDINGS: dict[str, Rounding] = {"rtn": rtn, "gptq": gptq, "reproduce": reproduce}
WEIGHTS_ALONE = ("rtn", "reproduce")  # roundings that look at no inputs
REPRODUCE = "reproduce"
TRANSFORMS: dict[str, Transform] = {"smoothquant": smoothquant, "shift": shift, "awq": awq}


@dataclass(frozen=True, slots=True)
class Method:
    """One choice per slot. transform: name in TRANSFORMS, or None. range: the weight's range. rounding: in ROUNDINGS.

    note: when it is the right one, for whoever has to choose.
    """

    transform: str | None
    range: str
    rounding: str
    note: str


METHODS: dict[str, Method] = {
    "rtn": Method(None, "min_max", "rtn", "looks at the weights alone; enough for most 8-bit weights"),
    "rtn_mse": Method(None, "mse", "rtn", "looks at the weights alone; clips ranges for the least squared error"),
    "imatrix": Method(None, "imatrix", "rtn", "clips ranges for the least error, weighted by the inputs' mean square"),
    "gptq": Method(None, "imatrix", "gptq", "for weights below 8 bits; later columns make up for earlier errors"),
    "awq": Method("awq", "awq_clip", "rtn", "for weights below 8 bits; columns with large inputs lose less"),
    "awq_gptq": Method("awq", "imatrix", "gptq", "for 4 bits and less; awq and gptq together"),
    "smoothquant": Method("smoothquant", "min_max", "rtn", "for 8-bit activations with outlier features"),
    "smoothquant_gptq": Method(
        "smoothquant", "min_max", "gptq", "for 8-bit activations and weights; the most accurate"
    ),
    "smoothquant_shift": Method(
        "shift", "min_max", "rtn", "for activations that are off centre, in models with biases"
    ),
    REPRODUCE: Method(None, "min_max", "reproduce", "for weights that are codes of 4 bits already, which it keeps"),
}


def transform_of(method: str, *, alpha: Alpha, shiftable: bool) -> Transform | None:
    """The transform of a method with its options bound.

    alpha: SmoothQuant's, as that takes it. shiftable: whether the input can be shifted; else it is only scaled.
    """
    smooth: Transform = partial(smoothquant, alpha=alpha)
    name = METHODS[method].transform
    if name is None:
        return None
    bound: dict[str, Transform] = {
        "smoothquant": smooth, "shift": partial(shift, then=smooth) if shiftable else smooth
    }  # fmt: skip
    return bound.get(name, TRANSFORMS[name])


def rounding_of(
    method: str, *, act_order: bool, damping: float, bias_correction: bool, mismatch: float = 0.0,
    weighted: Sequence[LayerStats] = (),
) -> Rounding:  # fmt: skip
    """The rounding of a method with its options bound.

    mismatch: the share of the mismatch to the float model's inputs that GPTQ makes up for. weighted: statistics of the
    inputs weighted by the loss, of each group of rows, for GPTQ.
    """
    name = METHODS[method].rounding
    rounding: Rounding = partial(gptq, act_order=act_order, damping=damping) if name == "gptq" else ROUNDINGS[name]
    if name == "gptq" and weighted:
        rounding = with_loss_weights(rounding, weighted)
    if bias_correction:
        rounding = with_bias_correction(rounding)
    if name == "gptq" and mismatch:
        rounding = with_mismatch_correction(rounding, share=mismatch, damping=damping)
    return rounding
