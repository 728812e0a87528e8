"""Statistics of the inputs of one linear layer. They can be merged, so batches can be observed separately.

    merge(observe(None, a), observe(None, b))  =  observe(observe(None, a), b)

exactly in counts, extremes and batch ranges; the sums differ by their rounding alone. Observing a‖b at once gives the
same, but as one batch.

A large calibration passes through here once per layer, so `observe` costs little more than the product that makes the
Gram matrix. Its fast way reads the tokens once, multiplies them in bf16 and adds to the Gram matrix where it lies.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitwright.errors import NumericsError
from bitwright.kernels import cpu
from bitwright.numerics.grids import check_finite
from bitwright.numerics.histogram import Histogram
from bitwright.numerics.linear import InputTransform


@dataclass(frozen=True, slots=True, eq=False)
class LayerStats:
    """Statistics over every token that entered one linear layer.

    n_tokens: tokens seen.
    min_K, max_K: float32, extremes of each input feature.
    sum_K, sum_abs_K, sum_sq_K: float64, Σx, Σ|x| and Σx² of each input feature; Σx² is the Gram matrix's diagonal if
        there is one. sum_abs_K is None once a shift was taken out: it does not follow from the rest.
    histogram: of all values, all features together; None once features were scaled: it takes a second pass.
    gram_KK: float32, Σ x xᵀ, where asked for.
    mismatch_KK, even_KK: float32, Σ (x₀ − x) xᵀ / ‖x‖² and Σ x xᵀ / ‖x‖², where the inputs x₀ of the float model were
        seen beside; None once a shift was taken out.
    """

    n_tokens: int
    min_K: Tensor
    max_K: Tensor
    sum_K: Tensor
    sum_abs_K: Tensor | None
    sum_sq_K: Tensor
    histogram: Histogram | None
    gram_KK: Tensor | None = None
    mismatch_KK: Tensor | None = None
    even_KK: Tensor | None = None

    @property
    def absmax_K(self) -> Tensor:
        """Largest magnitude of each input feature: float32 (K,)."""
        return torch.maximum(-self.min_K, self.max_K)

    @property
    def mean_K(self) -> Tensor:
        """Mean of each input feature: float64 (K,)."""
        return self.sum_K / self.n_tokens

    @property
    def mean_abs_K(self) -> Tensor:
        """Mean magnitude of each input feature: float64 (K,)."""
        if self.sum_abs_K is None:
            raise NumericsError("the mean magnitudes are not known after a shift; observe the inputs again")
        return self.sum_abs_K / self.n_tokens


def observe(
    stats: LayerStats | None, x_MK: Tensor, *, gram: bool = False, histogram: bool = True, fast: bool = False
) -> LayerStats:
    """Add one batch to the statistics. Neither argument is changed unless `fast`.

    Args:
        stats: what was seen so far, None at first.
        x_MK: floating (M, K), real tokens only: the caller drops padding rows.
        gram: keep Σ x xᵀ (K² floats). histogram: keep the histogram (a pass of its own over the values).
        fast: where the CPU multiplies bf16, the Gram matrix is that of x rounded to bf16, summed in float32, and is
            added to that of `stats` in place: `stats` is used up, also if this raises.

    Raises:
        NumericsError: no tokens, NaN or infinity among them, or another K than before.
    """
    if x_MK.ndim != 2 or len(x_MK) == 0:
        raise NumericsError(
            f"statistics need rows of tokens (M, K), but the shape is {tuple(x_MK.shape)}; remove padding and empty "
            "batches"
        )
    x_MK = x_MK.detach()
    if fast and gram and x_MK.is_cpu and cpu.has_gram() and (stats is None or stats.gram_KK is not None):
        return _observe_fast(stats, x_MK, histogram)
    x_MK = x_MK.float()
    min_K, max_K = x_MK.amin(0), x_MK.amax(0)  # `aminmax` over rows is ten times slower
    check_finite(min_K - max_K, _EXTREMES)  # NaN and infinity spread to them
    gram_KK = _gram(x_MK) if gram else None
    batch = LayerStats(
        len(x_MK),
        min_K.cpu(),
        max_K.cpu(),
        _sum(x_MK, torch.positive).cpu(),
        _sum(x_MK, torch.abs).cpu(),
        _sum(x_MK, torch.square).cpu() if gram_KK is None else gram_KK.diagonal().double().cpu(),
        Histogram.of(x_MK) if histogram else None,
        None if gram_KK is None else gram_KK.cpu(),
    )
    return batch if stats is None else merge(stats, batch)


def observe_beside(
    stats: LayerStats | None, x_MK: Tensor, original_MK: Tensor | None = None, *, histogram: bool = True,
    fast: bool = False,
) -> LayerStats:  # fmt: skip
    """`observe` with a Gram matrix, and with the mismatch to the float model's inputs.

    original_MK: floating, those of the same tokens; without them there is no mismatch.

    Raises:
        NumericsError: as `observe`; NaN or infinity among the float model's inputs; others had them, or had none.
    """
    seen = observe(stats, x_MK, gram=True, histogram=histogram, fast=fast)
    if stats is not None and (stats.mismatch_KK is None) != (original_MK is None):
        raise NumericsError("the float model's inputs must be given with every batch, or with none")
    if original_MK is None:
        return seen
    if original_MK.shape != x_MK.shape:
        raise NumericsError(f"inputs are {tuple(x_MK.shape)}, but the float model's {tuple(original_MK.shape)}")
    # Of a language model's first tokens some features are thousands of times as large as of all others: not weighed
    # down, those tokens alone would be corrected.
    x_MK = x_MK.detach().float()
    even_MK = x_MK / x_MK.square().sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    mismatch_KK, even_KK = ((original_MK.detach().float() - x_MK).T @ even_MK).cpu(), (x_MK.T @ even_MK).cpu()
    check_finite(mismatch_KK.diagonal(), "the inputs of the float model")
    if stats is not None and stats.mismatch_KK is not None and stats.even_KK is not None:
        mismatch_KK, even_KK = stats.mismatch_KK + mismatch_KK, stats.even_KK + even_KK
    return replace(seen, mismatch_KK=mismatch_KK, even_KK=even_KK)


def _observe_fast(stats: LayerStats | None, x_MK: Tensor, histogram: bool) -> LayerStats:
    """`observe` with a Gram matrix, which is taken over from `stats`."""
    k = x_MK.shape[1]
    gram_KK = None if stats is None else stats.gram_KK
    if gram_KK is None:
        gram_KK = torch.zeros(k, k)
    _check_features(len(gram_KK), k)
    seen = cpu.add_gram(x_MK if x_MK.dtype == torch.bfloat16 else x_MK.float(), gram_KK)
    check_finite(seen.min_K, _EXTREMES)
    batch = LayerStats(
        len(x_MK), *seen, torch.zeros(k, dtype=torch.float64), Histogram.of(x_MK) if histogram else None
    )  # fmt: skip
    merged = batch if stats is None else merge(stats, batch)
    return replace(merged, sum_sq_K=gram_KK.diagonal().double(), gram_KK=gram_KK)


_EXTREMES = "the extremes of the input features"
_ROWS = 512  # of a run: what a core's cache holds at the usual widths
_COLUMNS = 384  # of a block of the Gram matrix: wide enough for a fast product


def _sum(x_MK: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """Σ of(x) per feature, float64 (K,): float32 within runs of rows, which stay in cache, float64 over the runs."""
    return torch.stack([of(x).sum(0) for x in torch.split(x_MK, _ROWS)]).sum(0, dtype=torch.float64)


def _gram(x_MK: Tensor) -> Tensor:
    """Σ x xᵀ, float32 (K, K): the blocks on and above the diagonal are computed, the others are their mirror."""
    k = x_MK.shape[1]
    gram_KK = x_MK.new_empty(k, k)
    for begin in range(0, k, _COLUMNS):
        end = min(begin + _COLUMNS, k)
        gram_KK[begin:end, begin:] = x_MK[:, begin:end].T @ x_MK[:, begin:]
        gram_KK[end:, begin:end] = gram_KK[begin:end, end:].T
    return gram_KK


def merge(a: LayerStats, b: LayerStats) -> LayerStats:
    """The statistics of both; the batches of `a` come first. The result has only what both have.

    Raises:
        NumericsError: they are of layers with different numbers of input features.
    """
    _check_features(len(a.min_K), len(b.min_K))
    return LayerStats(
        a.n_tokens + b.n_tokens,
        torch.minimum(a.min_K, b.min_K),
        torch.maximum(a.max_K, b.max_K),
        a.sum_K + b.sum_K,
        None if a.sum_abs_K is None or b.sum_abs_K is None else a.sum_abs_K + b.sum_abs_K,
        a.sum_sq_K + b.sum_sq_K,
        None if a.histogram is None or b.histogram is None else a.histogram + b.histogram,
        None if a.gram_KK is None or b.gram_KK is None else a.gram_KK + b.gram_KK,
        None if a.mismatch_KK is None or b.mismatch_KK is None else a.mismatch_KK + b.mismatch_KK,
        None if a.even_KK is None or b.even_KK is None else a.even_KK + b.even_KK,
    )


def _check_features(ours: int, theirs: int) -> None:
    if ours != theirs:
        raise NumericsError(f"statistics of K = {ours} and of K = {theirs} input features cannot be merged")


def rescaled(stats: LayerStats, transform: InputTransform) -> LayerStats:
    """Statistics of x̂ = (x − shift) / scale, from those of x: exact, but the histogram is lost.

    With n tokens, sum s = Σx and D = diag(scale):  Σx̂ = D⁻¹(s − n z),  Σx̂x̂ᵀ = D⁻¹(Σxxᵀ − s zᵀ − z sᵀ + n z zᵀ)D⁻¹.

    """
    ones_K = torch.ones_like(stats.min_K)
    scale = (ones_K if transform.scale_K is None else transform.scale_K).double().cpu()
    shift_K = transform.shift_K
    z = torch.zeros_like(scale) if shift_K is None else shift_K.double().cpu()
    n, s = stats.n_tokens, stats.sum_K
    gram = stats.gram_KK
    if gram is not None:
        if shift_K is not None:
            gram = gram.double() - torch.outer(s, z) - torch.outer(z, s) + n * torch.outer(z, z)
        gram = (gram / scale.to(gram.dtype)[:, None] / scale.to(gram.dtype)).float()
    mismatch, even = (
        None if matrix is None or shift_K is not None else matrix / scale.float()[:, None] / scale.float()
        for matrix in (stats.mismatch_KK, stats.even_KK)
    )
    return LayerStats(
        n,
        ((stats.min_K - z) / scale).float(),
        ((stats.max_K - z) / scale).float(),
        (s - n * z) / scale,
        None if stats.sum_abs_K is None or shift_K is not None else stats.sum_abs_K / scale,
        (stats.sum_sq_K - 2 * z * s + n * z.square()).clamp(min=0) / scale.square(),
        None,
        gram,
        mismatch,
        even,
    )
