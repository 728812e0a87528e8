"""The range slot: from values, or their histogram, to scale and zero point.

    absmax, min_max                keep every value
    percentile, entropy, mse       saturate: give up the largest magnitudes for a finer grid on the rest
    moving_average                 the mean of what each batch alone would have chosen

A tensor (N, K) gets a range per tensor, row or group, as the spec says; dynamic per-token activations are rows. A
histogram describes one whole tensor, so it needs a `per_tensor` spec.
"""

from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor

from bitwright.errors import NumericsError
from bitwright.numerics.grids import check_finite, grouped, round_to_codes, scale_and_zero_point
from bitwright.numerics.histogram import Histogram
from bitwright.numerics.spec import QuantSpec

Values = Tensor | Histogram
Grid = tuple[Tensor, Tensor | None]  # scale_NG, zero_point_NG


class RangeFunction(Protocol):
    """What fills the range slot. Bind a range's own options with `functools.partial`."""

    def __call__(self, values: Values, spec: QuantSpec, *, dtype: torch.dtype = torch.float32) -> Grid:
        """Scale (stored as dtype) and zero point (None if symmetric) of shape (N, G)."""
        ...


def absmax(values: Values, spec: QuantSpec, *, dtype: torch.dtype = torch.float32) -> Grid:
    """[−a, a] with a the largest magnitude. On an asymmetric grid this leaves the zero point in the middle.

    Raises:
        NumericsError: NaN, infinite or no values, or a shape that does not fit the spec. So do all ranges.
    """
    lo, hi = _extremes(values, spec)
    reach = torch.maximum(-lo, hi)
    return scale_and_zero_point(-reach, reach, spec, dtype)


def min_max(values: Values, spec: QuantSpec, *, dtype: torch.dtype = torch.float32) -> Grid:
    """[smallest, largest] value. On a symmetric grid this is `absmax`."""
    return scale_and_zero_point(*_extremes(values, spec), spec, dtype)


def percentile(values: Values, spec: QuantSpec, *, percent: float = 99.99, dtype: torch.dtype = torch.float32) -> Grid:
    """The narrowest range that keeps `percent` % of the values (rounded up to whole values).

    Symmetric: the smallest T with that share of |x| ≤ T. Asymmetric: half of what is given up is cut at either end.
    Exact on a tensor; on a histogram the range is widened to the edge of its bin.

    Raises:
        NumericsError: percent is not in (0, 100].
    """
    if not 0 < percent <= 100:
        raise NumericsError(f"percent = {percent}: choose one above 0 and at most 100")
    lo, hi = _extremes(values, spec)
    share = 1 - Fraction(str(percent)) / 100  # exact; 1 − 0.999 in floats would keep one value of a thousand too many
    if spec.symmetric:
        if isinstance(values, Histogram):
            kept = _kept_bins(values.magnitude_counts, share)
            limit = torch.tensor(kept * values.width, dtype=torch.float64)
        else:
            limit = _largest_kept(grouped(values, spec).abs(), share)
        return scale_and_zero_point(*_clipped(lo, hi, limit), spec, dtype)
    if isinstance(values, Histogram):
        top = values.edges[_kept_bins(values.counts, share / 2)]
        bottom = values.edges.flip(0)[_kept_bins(values.counts.flip(0), share / 2)]
    else:
        x_NGg = grouped(values, spec)
        top, bottom = _largest_kept(x_NGg, share / 2), -_largest_kept(-x_NGg, share / 2)
    return scale_and_zero_point(torch.maximum(lo, bottom), torch.minimum(hi, top), spec, dtype)


def entropy(values: Values, spec: QuantSpec, *, dtype: torch.dtype = torch.float32) -> Grid:
    """The clipping threshold that loses least information, by Kullback–Leibler divergence (Migacz, GTC 2017, S7310).

    Candidate thresholds are the bin edges of the magnitude histogram from the 128th on, and never fewer bins than
    levels. The reference is the histogram up to the threshold, with everything beyond it added to its last bin. The
    candidate is the same bins, without what lies beyond, merged into as many levels as the grid has, each spread back
    evenly over its bins that are not empty. (Thresholds behind an empty bin diverge infinitely if they cut anything.)
    The first bin takes the count of the second, lest a spike at zero (padding, ReLU) decide. Of several thresholds with
    the least divergence (within 1e-9 nat) the widest is taken.

    Levels: 2^(b−1) on a symmetric grid; on an asymmetric one as many as fall on [0, absmax] of the full range, from
    2^(b−1) for even data to 2^b for data of one sign.

    Meant for activations. On a tensor it builds and searches one histogram for every row or group.

    Raises:
        NumericsError: fewer than 2048 values share a scale. A histogram with gaps has no use for this search: one
            value and everything beyond it added on top have no divergence at all, so nearly everything is cut.
    """
    lo, hi = _extremes(values, spec)
    if isinstance(values, Histogram):
        limit = torch.tensor([[_entropy_threshold(values, spec)]], dtype=torch.float64)
    else:
        thresholds = [_entropy_threshold(Histogram.of(x), spec) for x in grouped(values, spec).flatten(0, 1)]
        limit = torch.tensor(thresholds, dtype=torch.float64).reshape(lo.shape).to(lo.device)
    return scale_and_zero_point(*_clipped(lo, hi, limit), spec, dtype)


def mse(values: Values, spec: QuantSpec, *, dtype: torch.dtype = torch.float32) -> Grid:
    """[smallest, largest], shrunk by that factor of 1.00, 0.99, …, 0.01 which gives the least squared error.

    Of equals the widest is taken. On a histogram the error is that of its bin centres, weighted by their counts.
    Never worse than `min_max` on what it measures.
    """
    lo, hi = _extremes(values, spec)
    if isinstance(values, Histogram):
        used = values.counts.nonzero().flatten()
        x_NGg, root_counts = (values.edges[used] + values.width / 2)[None, None], values.counts[used].double().sqrt()
    else:
        x_NGg, root_counts = grouped(values, spec), None

    def shrunk(percent_NG: Tensor) -> Grid:
        factor_NG = percent_NG / 100
        return scale_and_zero_point(lo.clamp(max=0) * factor_NG, hi.clamp(min=0) * factor_NG, spec, dtype)

    best_percent, best_error = torch.full_like(lo, 100), torch.full_like(lo, torch.inf)
    for percent in range(100, 0, -1):
        percent_NG = torch.full_like(lo, percent)
        error = _error(x_NGg, root_counts, shrunk(percent_NG), spec)
        best_percent = torch.where(error < best_error, percent_NG, best_percent)
        best_error = torch.minimum(error, best_error)
    return shrunk(best_percent)


def moving_average(
    values: Values, spec: QuantSpec, *, decay: float | None = None, dtype: torch.dtype = torch.float32
) -> Grid:
    """The average over batches of each batch's own range (±absmax if symmetric). A tensor is one batch.

    Args:
        decay: None for the plain mean; a number in [0, 1) for the exponential one, r ← decay · r + (1 − decay) · batch,
            which starts at the first batch.

    Raises:
        NumericsError: decay is outside [0, 1).
    """
    if decay is not None and not 0 <= decay < 1:
        raise NumericsError(f"decay = {decay}: choose one in [0, 1), or None for the plain mean")
    if not isinstance(values, Histogram):
        return min_max(values, spec, dtype=dtype)
    _extremes(values, spec)
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
}


def _extremes(values: Values, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Smallest and largest value per (N, G), float64."""
    if isinstance(values, Histogram):
        if not spec.per_tensor:
            raise NumericsError("a histogram describes one whole tensor; use a spec with per_tensor = True")
        ends = torch.tensor([values.minimum, values.maximum], dtype=torch.float64)
        return ends[0].reshape(1, 1), ends[1].reshape(1, 1)
    check_finite(values, "the values to choose a range for")
    lo, hi = torch.aminmax(grouped(values, spec), dim=-1)
    return lo.double(), hi.double()


def _clipped(lo: Tensor, hi: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of [lo, hi], widened to include 0, between −limit and limit."""
    return torch.maximum(lo.clamp(max=0), -limit), torch.minimum(hi.clamp(min=0), limit)


def _largest_kept(x_NGg: Tensor, share: Fraction) -> Tensor:
    """The largest value per (N, G) once `share` of them, rounded down, is dropped from the top: float64."""
    count = x_NGg.shape[-1]
    return x_NGg.float().kthvalue(count - int(count * share), dim=-1).values.double()


def _kept_bins(counts: Tensor, share: Fraction) -> int:
    """How many bins, from the first, remain once `share` of the values is dropped from the last bins inward."""
    in_or_beyond = counts.flip(0).cumsum(0).flip(0)
    return int((in_or_beyond > int(int(counts.sum()) * share)).nonzero().max()) + 1


def _error(x_NGg: Tensor, root_counts: Tensor | None, grid: Grid, spec: QuantSpec) -> Tensor:
    """‖x − dequantize(quantize(x))‖₂ per (N, G), summed in float64; each value counts root_counts² times, or once."""
    scale, zero = grid[0][..., None], None if grid[1] is None else grid[1][..., None]
    steps = round_to_codes(x_NGg, scale, zero, spec)
    if zero is not None:
        steps -= zero
    difference = steps.mul_(scale).sub_(x_NGg)
    if root_counts is not None:
        difference *= root_counts
    norm: Tensor = torch.linalg.vector_norm(difference, dim=-1, dtype=torch.float64)
    return norm


_FEWEST_VALUES = 2048  # one for each bin that a histogram uses at least
_FIRST_BIN = 128  # of the entropy search, as in NVIDIA's calibrators: one bin per level at 8 bits


def _entropy_threshold(histogram: Histogram, spec: QuantSpec) -> float:
    """The threshold of `entropy`.

    With c the bin counts, i the number of bins kept, m_l the mass and z_l the number of non-empty bins of level l, all
    sums below come from prefix sums, so that every candidate costs O(levels):

        KL_i = (Σ_{j<i−1} c_j log c_j + r log r − Σ_l m_l log(m_l / z_l) − out · log q) / n − log n + log(n − out)

    where out = mass beyond bin i, r = c_{i−1} + out is the reference's last bin, and q the candidate's.
    """
    counts = histogram.magnitude_counts.double()
    if counts.sum() < _FEWEST_VALUES:
        raise NumericsError(
            f"the entropy range needs at least {_FEWEST_VALUES} values per scale to fill its histogram, got "
            f"{int(counts.sum())}; calibrate on more tokens, or use the mse range"
        )
    if histogram.absmax == 0:
        return 0.0
    counts[0] = counts[1]
    span = max(histogram.maximum, 0.0) - min(histogram.minimum, 0.0)
    levels = 2 ** (spec.bits - 1) if spec.symmetric else round(2**spec.bits * histogram.absmax / span)

    kept_C = counts.nonzero().flatten() + 1
    kept_C = kept_C[kept_C >= max(_FIRST_BIN, levels)]
    # Level l of a candidate that keeps i bins starts at bin ⌈l·i / levels⌉.
    edges_CL = -(torch.arange(levels + 1) * kept_C[:, None] // -levels)
    mass_CL = _prefix(counts)[edges_CL].diff(dim=1)
    filled_CL = _prefix((counts > 0).double())[edges_CL].diff(dim=1)
    density_CL = mass_CL / filled_CL.clamp(min=1)

    n, inside_C, last_C = counts.sum(), _prefix(counts)[kept_C], counts[kept_C - 1]
    out_C = n - inside_C
    reference_C = _prefix(torch.xlogy(counts, counts))[kept_C - 1] + torch.xlogy(last_C + out_C, last_C + out_C)
    candidate_C = torch.xlogy(mass_CL, density_CL).sum(1) + torch.xlogy(out_C, density_CL[:, -1])
    divergence_C = (reference_C - candidate_C) / n - n.log() + inside_C.log()
    return float(kept_C[divergence_C <= divergence_C.min() + 1e-9].max()) * histogram.width


def _prefix(x: Tensor) -> Tensor:
    """[0, x₀, x₀+x₁, …]"""
    return torch.cat([x.new_zeros(1), x.cumsum(0)])
