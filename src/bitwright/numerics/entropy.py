"""The range that loses least information."""

import torch
from torch import Tensor

from bitwright.errors import NumericsError
from bitwright.numerics.extremes import ScaleAndZero, Values, clipped, extremes
from bitwright.numerics.grids import grouped, scale_and_zero_point
from bitwright.numerics.histogram import Histogram
from bitwright.numerics.importance import Importance
from bitwright.numerics.spec import QuantSpec

_FEWEST_VALUES = 2048  # one for each bin that a histogram uses at least
_FIRST_BIN = 128  # of the entropy search, as in NVIDIA's calibrators: one bin per level at 8 bits


def entropy(
    values: Values, spec: QuantSpec, *, dtype: torch.dtype = torch.float32, importance: Importance | None = None
) -> ScaleAndZero:
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
    lo, hi = extremes(values, spec)
    if isinstance(values, Histogram):
        limit = torch.tensor([[_entropy_threshold(values, spec)]], dtype=torch.float64)
    else:
        thresholds = [_entropy_threshold(Histogram.of(x), spec) for x in grouped(values, spec).flatten(0, 1)]
        limit = torch.tensor(thresholds, dtype=torch.float64).reshape(lo.shape).to(lo.device)
    return scale_and_zero_point(*clipped(lo, hi, limit), spec, dtype)


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
