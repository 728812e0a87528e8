"""Where every range starts: how far the values reach."""

import torch
from torch import Tensor

from bitwright.errors import NumericsError
from bitwright.numerics.grids import check_finite, grouped
from bitwright.numerics.histogram import Histogram
from bitwright.numerics.spec import QuantSpec

Values = Tensor | Histogram
ScaleAndZero = tuple[Tensor, Tensor | None]
"""scale_NG, zero_point_NG"""


def extremes(values: Values, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each group: float64 (N, G).

    Raises:
        NumericsError: NaN, infinite or no values, a shape that does not fit the spec, or a grid without use for them.
    """
    if spec.is_mean_scaled:
        raise NumericsError(
            f"the {spec.grid} grid needs a mean magnitude as its scale; use the absmax, mse, imatrix or awq_clip range"
        )
    if isinstance(values, Histogram):
        if not spec.per_tensor:
            raise NumericsError("a histogram describes one whole tensor; use a spec with per_tensor = True")
        ends = torch.tensor([values.minimum, values.maximum], dtype=torch.float64)
        return ends[0].reshape(1, 1), ends[1].reshape(1, 1)
    lo, hi = torch.aminmax(grouped(values, spec), dim=-1)
    if not bool((torch.isfinite(lo) & torch.isfinite(hi)).all()):  # NaN and infinity spread to them
        check_finite(values, "the values to choose a range for")
    return lo.double(), hi.double()


def full_range(values: Values, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """The range that gives nothing up, widened to include 0: float64 (N, G) each.

    From the smallest to the largest value; on the ternary and binary grids ∓ the mean magnitude, which is their scale
    by definition (Rastegari et al. 2016, XNOR-Net; Ma et al. 2024, BitNet b1.58). Raises as `extremes`.
    """
    if spec.is_mean_scaled and isinstance(values, Tensor):
        check_finite(values, "the values to choose a range for")
        mean = grouped(values, spec).abs().mean(-1, dtype=torch.float64)
        return -mean, mean
    lo, hi = extremes(values, spec)
    return lo.clamp(max=0), hi.clamp(min=0)


def clipped(lo: Tensor, hi: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of [lo, hi], widened to include 0, between −limit and limit."""
    return torch.maximum(lo.clamp(max=0), -limit), torch.minimum(hi.clamp(min=0), limit)
