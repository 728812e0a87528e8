"""One histogram over everything that calibration sees: streaming, mergeable exactly, O(bins) memory.

Bins are [i·width, (i+1)·width) for i in [−4096, 4096). The width is the power of two that the largest magnitude seen so
far asks for, so the bins in use (2048 to 4096 on the longer side) are decided by the data alone and not by the order
in which they came. When a larger value arrives the width doubles and bins merge in pairs, which is exact: the bin of x
at twice the width is ⌊⌊x/width⌋/2⌋. Hence

    Histogram.of(a) + Histogram.of(b)  has the counts of  Histogram.of(a‖b).

Searching once over this, rather than keeping the best range of any batch, is what makes a calibration independent of
how its samples were batched.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import NumericsError
from bitwright.numerics.grids import check_finite

_BINS_PER_SIDE = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Counts of signed values, with the exact extremes of each batch.

    counts: int64 (8192,), on the CPU; the first half counts negative values.
    batch_ranges: (minimum, maximum) of every batch, in order.
    """

    counts: Tensor
    batch_ranges: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, values: Tensor) -> "Histogram":
        """The histogram of one batch: any shape, any floating dtype, read as float32.

        Raises:
            NumericsError: no values, or NaN or infinity among them.
        """
        if values.numel() == 0:
            raise NumericsError("cannot take the histogram of an empty tensor; drop batches without tokens")
        values = values.detach().float()
        check_finite(values, "the values to count")
        lo, hi = (float(extreme) for extreme in torch.aminmax(values))
        # float64: a subnormal divided by a large width must not become −0 and change bins.
        index = torch.floor(values.double().flatten() * 2.0 ** -_exponent(max(-lo, hi))).long() + _BINS_PER_SIDE
        return cls(torch.bincount(index, minlength=2 * _BINS_PER_SIDE).cpu(), ((lo, hi),))

    def __add__(self, other: "Histogram") -> "Histogram":
        """Both histograms in one; neither is changed."""
        exponent = _exponent(max(self.absmax, other.absmax))
        counts = _coarsened(self, exponent) + _coarsened(other, exponent)
        return Histogram(counts, self.batch_ranges + other.batch_ranges)

    @property
    def minimum(self) -> float:
        """The smallest value counted, exactly."""
        return min(lo for lo, _ in self.batch_ranges)

    @property
    def maximum(self) -> float:
        """The largest value counted, exactly."""
        return max(hi for _, hi in self.batch_ranges)

    @property
    def absmax(self) -> float:
        """The largest magnitude counted, exactly."""
        return max(-self.minimum, self.maximum)

    @property
    def width(self) -> float:
        """Width of a bin: a power of two."""
        return 2.0 ** _exponent(self.absmax)

    @property
    def edges(self) -> Tensor:
        """The 8193 bin edges, float64, ascending."""
        return torch.arange(-_BINS_PER_SIDE, _BINS_PER_SIDE + 1, dtype=torch.float64) * self.width

    @property
    def magnitude_counts(self) -> Tensor:
        """Counts of |x| in bins of `width` from 0 upward, up to the last that is not empty: int64."""
        folded = self.counts[_BINS_PER_SIDE:] + self.counts[:_BINS_PER_SIDE].flip(0)
        return folded[: int(folded.nonzero().max()) + 1]


def _exponent(absmax: float) -> int:
    """log2 of the bin width: the least e with absmax < 4096 · 2^e. Zeros alone fit any width; the finest will do."""
    return math.frexp(absmax)[1] - int(math.log2(_BINS_PER_SIDE)) if absmax else -1000


def _coarsened(histogram: Histogram, exponent: int) -> Tensor:
    """Counts in bins of width 2^exponent, which is no narrower than the histogram's own."""
    shift = min(exponent - _exponent(histogram.absmax), 62)  # beyond 13 every bin is 0 or −1 already; int64 has 63
    index = torch.arange(-_BINS_PER_SIDE, _BINS_PER_SIDE) >> shift
    return torch.zeros_like(histogram.counts).index_add_(0, index + _BINS_PER_SIDE, histogram.counts)
