"""Ranges that are searched: the one that leaves the least error, by three measures of it.

    mse         Σ (w − ŵ)²
    imatrix     Σ E[x²] (w − ŵ)²            what that costs at the output, were inputs uncorrelated
    awq_clip    (w − ŵ) E[x xᵀ] (w − ŵ)ᵀ    the same with their correlation, within each group

A group's range does not depend on other groups. Of equals the one tried first is taken, and the full range is that.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from bitwright.errors import NumericsError
from bitwright.numerics.codebooks import fit_codebook
from bitwright.numerics.extremes import ScaleAndZero, Values, full_range
from bitwright.numerics.grids import check_finite, grouped, nearest_codes, scale_and_zero_point
from bitwright.numerics.histogram import Histogram
from bitwright.numerics.importance import Importance
from bitwright.numerics.qtensor import code_values
from bitwright.numerics.spec import QuantSpec

Measure = Callable[[Tensor], Tensor]
"""From the differences (N, G, K/G), which it may overwrite, to the error (N, G), in any unit that grows with it."""

_CHUNK = 2**19  # weights searched at a time: few enough for the caches, enough to be worth waking every core
_COARSE, _STEPS = range(88, 27, -12), (6, 3, 1)  # % of the full range; then around the best so far
LEAST_CLIP, _CLIP_STEP = 0.55, 5  # of the full range, and in %, as AWQ's published code
_MULTIPLES = range(250, 49, -10)  # % of the mean magnitude, where that is the full range
_BINS = 8192


def mse(
    values: Values, spec: QuantSpec, *, dtype: torch.dtype = torch.float32, importance: Importance | None = None
) -> ScaleAndZero:
    """[smallest, largest], shrunk by that factor of 1.00, 0.99, …, 0.01 which gives the least squared error.

    On a histogram all factors are tried; the error is that of its bin centres, weighted by their counts. On a tensor
    1.00, 0.88, …, 0.28 are, then those 0.06, 0.03 and 0.01 beside the best so far. On the ternary and binary grids the
    optimum is known: see `_best_mean`. Never worse than `absmax` (`min_max` if asymmetric) on what it measures.

    On the kmeans grid the levels are fitted to the full range first, and then to the ranges that are best with those
    levels; unless that lost more, these are taken.

    importance: part of the slot's signature; all values count alike here.
    """
    if not isinstance(values, Histogram):
        return _least_squares(values, spec, None, dtype)
    used = values.counts.nonzero().flatten()
    centres = (values.edges[used] + values.width / 2)[None, None]
    measure = _weighted_squares(values.counts[used].double().sqrt())
    return _search(centres, full_range(values, spec), spec, dtype, None, measure, range(99, 0, -1))


def imatrix(
    values: Values, spec: QuantSpec, *, dtype: torch.dtype = torch.float32, importance: Importance | None = None
) -> ScaleAndZero:
    """As `mse`, with each squared error weighted by the mean square of the input that the weight meets.

    The full range where all inputs of a group are 0.

    Raises:
        NumericsError: no importance, or of another K; a histogram, or one scale for a whole tensor.
    """
    w_NK, importance = _checked("imatrix", values, spec, importance)
    return _least_squares(w_NK, spec, importance.mean_square_K, dtype)


def awq_clip(
    values: Values,
    spec: QuantSpec,
    *,
    least: float = LEAST_CLIP,
    dtype: torch.dtype = torch.float32,
    importance: Importance | None = None,
) -> ScaleAndZero:
    """[smallest, largest], shrunk by that factor of 1.00, 0.95, …, `least` which changes the group's output least.

    The change is Δw G Δwᵀ with the block of the Gram matrix that belongs to the group's inputs (Lin et al. 2023, AWQ,
    and its code, which samples tokens instead); without a Gram matrix it is that of `imatrix`. On the ternary and
    binary grids the factors are 1, 2.5, 2.4, …, 0.5, of the mean magnitude.

    Raises:
        NumericsError: as `imatrix`; least is not in (0, 1].
    """
    if not 0 < least <= 1:
        raise NumericsError(f"clip = {least}: give a share of the full range above 0 and at most 1")
    w_NK, importance = _checked("awq_clip", values, spec, importance)
    clips = range(100 - _CLIP_STEP, round(100 * least) - 1, -_CLIP_STEP)
    size = spec.group_size or w_NK.shape[1]
    measure = (
        _weighted_squares(_root_weights(importance.mean_square_K.to(w_NK.device), size))
        if importance.gram_KK is None
        else _change_of_output(importance.gram_KK.to(w_NK.device), size)
    )
    return _least(w_NK, spec, dtype, measure, _MULTIPLES if spec.is_mean_scaled else clips)


def _least_squares(w_NK: Tensor, spec: QuantSpec, weight_K: Tensor | None, dtype: torch.dtype) -> ScaleAndZero:
    check_finite(w_NK, "the values to choose a range for")
    root = None if weight_K is None else _root_weights(weight_K.to(w_NK.device), spec.group_size or len(weight_K))
    if spec.is_mean_scaled:
        return _in_chunks(w_NK, spec, lambda w_nK: _best_mean(w_nK, spec, root, dtype))
    return _least(w_NK, spec, dtype, _weighted_squares(root), _COARSE, _STEPS)


def _least(
    w_NK: Tensor,
    spec: QuantSpec,
    dtype: torch.dtype,
    measure: Measure,
    percents: Iterable[int],
    steps: Iterable[int] = (),
) -> ScaleAndZero:
    """`_search` on every group of a weight, in float32."""
    full = scale_and_zero_point(*full_range(w_NK, spec), spec, dtype)
    table = _nearest_levels(w_NK, full[0], spec)

    def choose(w_nK: Tensor) -> ScaleAndZero:
        x_nGg = grouped(w_nK.float(), spec)
        return _search(x_nGg, full_range(w_nK, spec), spec, dtype, table, measure, percents, steps)

    best = _in_chunks(w_NK, spec, choose)
    if spec.grid != "kmeans":
        return best
    x_NGg, unit = grouped(w_NK.float(), spec), full[0].max()

    def loss(grid: ScaleAndZero) -> float:
        table = _nearest_levels(w_NK, grid[0], spec)
        return float(measure(_difference(x_NGg / unit, grid[0][..., None] / unit, None, spec, table)).sum())

    return min(full, best, key=loss)  # the levels will be fitted to the scales chosen, all groups together


def _search(
    x_NGg: Tensor,
    ends: tuple[Tensor, Tensor],
    spec: QuantSpec,
    dtype: torch.dtype,
    table: Tensor | None,
    measure: Measure,
    percents: Iterable[int],
    steps: Iterable[int] = (),
) -> ScaleAndZero:
    """The range ends · p/100 that measures least: p = 100, then of `percents`, then each of `steps` beside the best."""
    lo_NG, hi_NG = ends
    # Powers of two change no rounding, and keep squares from vanishing or overflowing.
    _, exponent = torch.frexp(torch.maximum(-lo_NG, hi_NG))
    unit_NG = torch.ldexp(torch.ones_like(lo_NG), -exponent.clamp(-126, 126)).to(x_NGg.dtype)
    x_NGg = x_NGg * unit_NG[..., None]

    def shrunk(percent_NG: Tensor) -> ScaleAndZero:
        return scale_and_zero_point(lo_NG * percent_NG / 100, hi_NG * percent_NG / 100, spec, dtype)

    def loss(percent_NG: Tensor) -> Tensor:
        scale, zero = shrunk(percent_NG)
        zero_NG1 = None if zero is None else zero[..., None]
        scale_NG1 = (scale * unit_NG).to(x_NGg.dtype)[..., None]
        return measure(_difference(x_NGg, scale_NG1, zero_NG1, spec, table))

    best = torch.full_like(lo_NG, 100)
    least = loss(best)

    def best_with(percent_NG: Tensor) -> tuple[Tensor, Tensor]:
        error = loss(percent_NG)
        better = error < least
        return torch.where(better, percent_NG, best), torch.where(better, error, least)

    for percent in percents:
        best, least = best_with(torch.full_like(best, percent))
    for step in steps:
        centre = best
        best, least = best_with((centre + step).clamp(max=100))
        best, least = best_with(centre - step)
    return shrunk(best)


def _difference(x: Tensor, scale: Tensor, zero: Tensor | None, spec: QuantSpec, table: Tensor | None) -> Tensor:
    """ŵ − w. Of a codebook grid, values within 1/8192 of the middle between two levels may take either."""
    if table is None:
        values: Tensor = code_values(nearest_codes(x, scale, zero, spec), scale, zero, spec)
        return values.sub_(x)
    steps = x / scale
    index = ((steps + 1).mul_(_BINS / 2)).clamp_(0, _BINS - 1).int()
    return table.index_select(0, index.flatten()).reshape(x.shape).sub_(steps).mul_(scale)


def _nearest_levels(w_NK: Tensor, scale_NG: Tensor, spec: QuantSpec) -> Tensor | None:
    """The level nearest to the middle of each of 8192 bins from −1 to 1 (looking it up beats searching three times)."""
    if not spec.has_codebook:
        return None
    codebook = fit_codebook(w_NK, scale_NG, spec) if spec.grid == "kmeans" else None
    one = torch.ones((), device=w_NK.device)
    centres = (torch.arange(_BINS, device=w_NK.device) + 0.5) * (2 / _BINS) - 1
    nearest: Tensor = code_values(nearest_codes(centres, one, None, spec, codebook), one, None, spec, codebook)
    return nearest


def _best_mean(w_NK: Tensor, spec: QuantSpec, root_Gg: Tensor | None, dtype: torch.dtype) -> ScaleAndZero:
    """The ternary or binary grid of least weighted squared error, exactly.

    The best scale for a set of values that become ±1 is their weighted mean magnitude, s = Σ h|w| / Σ h, and takes
    s² Σ h off the error. On the binary grid that is all values; on the ternary one the best set is the m largest for
    some m, so all of those are compared. Where all weights are 0, the plain mean of all.
    """
    x_NGg = grouped(w_NK, spec).abs().float()
    h_NGg = torch.ones_like(x_NGg) if root_Gg is None else root_Gg.square().expand_as(x_NGg)
    if spec.grid == "ternary":
        x_NGg, order = x_NGg.sort(dim=-1, descending=True)
        h_NGg = h_NGg.gather(-1, order)
    weight, moment = (part.cumsum(-1, dtype=torch.float64) for part in (h_NGg, x_NGg.double() * h_NGg))
    mean = moment / weight.clamp(min=torch.finfo(torch.float64).tiny)
    if spec.grid == "ternary":
        mean = mean.gather(-1, (moment * mean).argmax(-1, keepdim=True))
    scale = mean[..., -1]
    scale = torch.where(scale > 0, scale, x_NGg.mean(-1, dtype=torch.float64))
    return scale_and_zero_point(-scale, scale, spec, dtype)


def _weighted_squares(root: Tensor | None) -> Measure:
    """Σ (root · difference)², or without weights."""

    def measure(difference_NGg: Tensor) -> Tensor:
        weighted = difference_NGg if root is None else difference_NGg.mul_(root)
        return weighted.square_().sum(-1)

    return measure


def _change_of_output(gram_KK: Tensor, size: int) -> Measure:
    """difference · G · differenceᵀ with each group's own block of the Gram matrix."""
    starts = range(0, len(gram_KK), size)
    blocks_Ggg = torch.stack([gram_KK[k : k + size, k : k + size] for k in starts]).float()

    def measure(difference_NGg: Tensor) -> Tensor:
        difference_GNg = difference_NGg.transpose(0, 1)
        return (difference_GNg @ blocks_Ggg).mul_(difference_GNg).sum(-1).T

    return measure


def _root_weights(weight_K: Tensor, size: int) -> Tensor:
    """√(weight / largest): float32 (G, K/G). A common factor changes nothing; this one keeps squares in range."""
    largest = weight_K.max()
    return (weight_K / torch.where(largest > 0, largest, 1)).sqrt().float().reshape(-1, size)


def _in_chunks(w_NK: Tensor, spec: QuantSpec, choose: Callable[[Tensor], ScaleAndZero]) -> ScaleAndZero:
    """`choose` on some rows at a time, unless all share a scale."""
    if spec.per_tensor:
        return choose(w_NK)
    scales, zeros = zip(*map(choose, torch.split(w_NK, max(_CHUNK // w_NK.shape[1], 1))), strict=True)
    return torch.cat(scales), None if zeros[0] is None else torch.cat(zeros)


def _checked(name: str, values: Values, spec: QuantSpec, importance: Importance | None) -> tuple[Tensor, Importance]:
    """The arguments of a range that weighs errors, as what they must be."""
    if isinstance(values, Histogram) or spec.per_tensor:
        raise NumericsError(f"the {name} range is only for weights with a scale per row or group; use mse")
    if importance is None:
        raise NumericsError(f"the {name} range needs the layer's inputs to weigh errors; calibrate, or use mse")
    check_finite(values, "the values to choose a range for")
    if len(importance.mean_square_K) != values.shape[-1]:
        raise NumericsError(
            f"importance has K = {len(importance.mean_square_K)}, but the weight has K = {values.shape[-1]}"
        )
    return values, importance
