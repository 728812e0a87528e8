"""Where the scale of a weight in training comes from.

learned    a parameter, trained with the weights                              (Esser et al. 2020, LSQ)
weights    the weights themselves, at each step: their largest magnitude, on the ternary and binary grids their mean
                                                                              (Ma et al. 2024, BitNet b1.58)
median     the median magnitude, for the ternary grid: it moves less          (Nielsen et al. 2025)
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from bitwright.numerics import RANGES
from bitwright.numerics.grids import grouped
from bitwright.numerics.spec import QuantSpec

ScaleRule = Literal["learned", "weights", "median"]


def of_weights(w_NK: Tensor, spec: QuantSpec) -> Tensor:
    """The scale that keeps every value, or that is the mean magnitude where the grid is scaled by it: float32 (N,
    G)."""
    return RANGES["absmax"](w_NK, spec)[0]


def median(w_NK: Tensor, spec: QuantSpec) -> Tensor:
    """The median magnitude of each group: float32 (N, G), positive."""
    middle_NG = grouped(w_NK, spec).abs().median(dim=-1).values
    return middle_NG.clamp(min=torch.finfo(torch.float32).tiny)


# The rules that follow from the weights (N, K).
SCALE_RULES: Mapping[str, Callable[[Tensor, QuantSpec], Tensor]] = {"weights": of_weights, "median": median}
