"""The range slot: from values, or their histogram, to scale and zero point.

    absmax, min_max                keep every value
    percentile, entropy, mse       saturate: give up the largest magnitudes for a finer grid on the rest
    imatrix, awq_clip              the same, by what the layer's inputs make of it (weights only)
    moving_average                 the mean of what each batch alone would have chosen

A tensor (N, K) gets a range per tensor, row or group, as the spec says; dynamic per-token activations are rows. A
histogram describes one whole tensor, so it needs a `per_tensor` spec.
"""

from fractions import Fraction
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from bitwright.errors import NumericsError
from bitwright.numerics.entropy import entropy
from bitwright.numerics.extremes import ScaleAndZero, Values, clipped, extremes, full_range
from bitwright.numerics.grids import grouped, scale_and_zero_point
from bitwright.numerics.histogram import Histogram
from bitwright.numerics.importance import Importance
from bitwright.numerics.least_error import LEAST_CLIP, awq_clip, imatrix, mse
from bitwright.numerics.spec import QuantSpec

PERCENT = 99.99  # of the values that the percentile range keeps


class RangeFunction(Protocol):
    """What fills the range slot. Bind a range's own options with `functools.partial`."""

    def __call__(
        self,
        values: Values,
        spec: QuantSpec,
        *,
        dtype: torch.dtype = torch.float32,
        importance: Importance | None = None,
    ) -> ScaleAndZero:
        """Scale (stored as dtype) and zero point (None if symmetric) of shape (N, G).

        importance: of the inputs that the weights meet; only the ranges that weigh errors by it look at it, and they
        refuse to do without.
        """
        ...


def absmax(
    values: Values, spec: QuantSpec, *, dtype: torch.dtype = torch.float32, importance: Importance | None = None
) -> ScaleAndZero:
    """[−a, a] with a the largest magnitude. On an asymmetric grid this leaves the zero point in the middle.

    On the ternary and binary grids a is the mean magnitude: see `full_range`.

    Raises:
        NumericsError: NaN, infinite or no values, or a shape that does not fit the spec. So do all ranges.
    """
    lo, hi = full_range(values, spec)
    reach = torch.maximum(-lo, hi)
    return scale_and_zero_point(-reach, reach, spec, dtype)


def min_max(
    values: Values, spec: QuantSpec, *, dtype: torch.dtype = torch.float32, importance: Importance | None = None
) -> ScaleAndZero:
    """[smallest, largest] value. On a symmetric grid this is `absmax`."""
    return scale_and_zero_point(*full_range(values, spec), spec, dtype)


def percentile(
    values: Values,
    spec: QuantSpec,
    *,
    percent: float = PERCENT,
    dtype: torch.dtype = torch.float32,
    importance: Importance | None = None,
) -> ScaleAndZero:
    """The narrowest range that keeps `percent` % of the values (rounded up to whole values).

    Symmetric: the smallest T with that share of |x| ≤ T. Asymmetric: half of what is given up is cut at either end.
    Exact on a tensor; on a histogram the range is widened to the edge of its bin.

    Raises:
        NumericsError: percent is not in (0, 100].
    """
    if not 0 < percent <= 100:
        raise NumericsError(f"percent = {percent}: give a number above 0 and at most 100")
    lo, hi = extremes(values, spec)
    share = 1 - Fraction(str(percent)) / 100  # exact; 1 − 0.999 in floats would keep one value of a thousand too many
    if spec.symmetric:
        if isinstance(values, Histogram):
            kept = _kept_bins(values.magnitude_counts, share)
            limit = torch.tensor(kept * values.width, dtype=torch.float64)
        else:
            limit = _largest_kept(grouped(values, spec).abs(), share)
        return scale_and_zero_point(*clipped(lo, hi, limit), spec, dtype)
    if isinstance(values, Histogram):
        top = values.edges[_kept_bins(values.counts, share / 2)]
        bottom = values.edges.flip(0)[_kept_bins(values.counts.flip(0), share / 2)]
    else:
        x_NGg = grouped(values, spec)
        top, bottom = _largest_kept(x_NGg, share / 2), -_largest_kept(-x_NGg, share / 2)
    return scale_and_zero_point(torch.maximum(lo, bottom), torch.minimum(hi, top), spec, dtype)


def moving_average(
    values: Values,
    spec: QuantSpec,
    *,
    decay: float | None = None,
    dtype: torch.dtype = torch.float32,
    importance: Importance | None = None,
) -> ScaleAndZero:
    """The average over batches of each batch's own range (±absmax if symmetric). A tensor is one batch.

    Args:
        decay: None for the plain mean; a number in [0, 1) for the exponential one, r ← decay · r + (1 − decay) · batch,
            which starts at the first batch.

    Raises:
        NumericsError: decay is outside [0, 1).
    """
    if decay is not None and not 0 <= decay < 1:
        raise NumericsError(f"decay = {decay}: give a number in [0, 1), or None for the plain mean")
    if not isinstance(values, Histogram):
        return min_max(values, spec, dtype=dtype)
    extremes(values, spec)
    ranges_B2 = torch.tensor(values.batch_ranges, dtype=torch.float64)
    lo_B, hi_B = ranges_B2[:, 0].clamp(max=0), ranges_B2[:, 1].clamp(min=0)
    if spec.symmetric:
        hi_B = torch.maximum(-lo_B, hi_B)
        lo_B = -hi_B
    n_batches = len(ranges_B2)
    if decay is None:
        weight_B = torch.full((n_batches,), 1 / n_batches, dtype=torch.float64)
    else:
        weight_B = (1 - decay) * decay ** torch.arange(n_batches - 1, -1, -1, dtype=torch.float64)
        weight_B[0] = decay ** (n_batches - 1)
    lo, hi = (weight_B * lo_B).sum(), (weight_B * hi_B).sum()
    return scale_and_zero_point(lo.reshape(1, 1), hi.reshape(1, 1), spec, dtype)


# What a recipe can name.
RANGES: dict[str, RangeFunction] = {
    "absmax": absmax,
    "min_max": min_max,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
    "moving_average": moving_average,
    "imatrix": imatrix,
    "awq_clip": awq_clip,
}
# Those of them that weigh errors by the inputs a weight meets: for calibrated weights, not for the inputs themselves.
WEIGHT_RANGES = ("imatrix", "awq_clip")


def range_named(name: str, *, percent: float = PERCENT, clip: float = LEAST_CLIP) -> RangeFunction:
    """A range of `RANGES` with its options bound: those of `percentile` and of `awq_clip`."""
    bound: dict[str, RangeFunction] = {
        "percentile": partial(percentile, percent=percent), "awq_clip": partial(awq_clip, least=clip)
    }  # fmt: skip
    return bound.get(name, RANGES[name])


def _largest_kept(x_NGg: Tensor, share: Fraction) -> Tensor:
    """The largest value per (N, G) once `share` of them, rounded down, is dropped from the top: float64."""
    count = x_NGg.shape[-1]
    return x_NGg.float().kthvalue(count - int(count * share), dim=-1).values.double()


def _kept_bins(counts: Tensor, share: Fraction) -> int:
    """How many bins, from the first, remain once `share` of the values is dropped from the last bins inward."""
    in_or_beyond = counts.flip(0).cumsum(0).flip(0)
    return int((in_or_beyond > int(int(counts.sum()) * share)).nonzero().max()) + 1
