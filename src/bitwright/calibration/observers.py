"""What calibration sees at the input of one linear layer. It merges, so batches and calls can be observed apart.

    merge(observe(None, a), observe(None, b))  =  observe(observe(None, a), b)

exactly in counts, extremes and batch ranges; the float64 sums differ by their rounding alone. Observing a‖b at once
gives the same, but as one batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import NumericsError
from bitwright.numerics.histogram import Histogram


@dataclass(frozen=True, slots=True, eq=False)
class LayerStats:
    """Statistics over every token that entered one linear layer.

    n_tokens: tokens seen.
    min_K, max_K: float32, extremes of each input feature.
    sum_abs_K: float64, Σ|x| of each input feature.
    histogram: of all values, all features together.
    """

    n_tokens: int
    min_K: Tensor
    max_K: Tensor
    sum_abs_K: Tensor
    histogram: Histogram

    @property
    def absmax_K(self) -> Tensor:
        """Largest magnitude of each input feature: float32 (K,)."""
        return torch.maximum(-self.min_K, self.max_K)

    @property
    def mean_abs_K(self) -> Tensor:
        """Mean magnitude of each input feature: float64 (K,)."""
        return self.sum_abs_K / self.n_tokens


def observe(stats: LayerStats | None, x_MK: Tensor) -> LayerStats:
    """Add one batch to the statistics; neither argument is changed.

    Args:
        stats: what was seen so far, None at first.
        x_MK: floating (M, K), real tokens only: the caller drops padding rows.

    Raises:
        NumericsError: no tokens, NaN or infinity among them, or another K than before.
    """
    if x_MK.ndim != 2:
        raise NumericsError(f"statistics need rows of tokens (M, K), got shape {tuple(x_MK.shape)}")
    x_MK = x_MK.detach().float()
    histogram = Histogram.of(x_MK)
    min_K, max_K = torch.aminmax(x_MK, dim=0)
    sum_abs_K = x_MK.abs().sum(0, dtype=torch.float64)
    batch = LayerStats(len(x_MK), min_K.cpu(), max_K.cpu(), sum_abs_K.cpu(), histogram)
    return batch if stats is None else merge(stats, batch)


def merge(a: LayerStats, b: LayerStats) -> LayerStats:
    """Statistics of both; the batches of `a` come first.

    Raises:
        NumericsError: they are of layers with different numbers of input features.
    """
    if a.min_K.shape != b.min_K.shape:
        raise NumericsError(f"cannot merge statistics of K = {len(a.min_K)} and K = {len(b.min_K)} input features")
    return LayerStats(
        a.n_tokens + b.n_tokens,
        torch.minimum(a.min_K, b.min_K),
        torch.maximum(a.max_K, b.max_K),
        a.sum_abs_K + b.sum_abs_K,
        a.histogram + b.histogram,
    )
