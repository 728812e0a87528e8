"""What the transforms share: the error that they reduce, and how they choose among candidates.

The error of a set of linears that share an input x, per token and summed over their N outputs, is split in two: what
rounding the weights does, and what rounding the input adds, as if the two were independent,

    E‖(Q(Ŵ) − Ŵ) x̂‖² + E‖Ŵ e‖²  =  tr(ΔŴ E[x̂x̂ᵀ] ΔŴᵀ) + Σ_j ‖Ŵ_j‖² E[e_j²]

with Ŵ = W · diag(scale) and x̂ = (x − shift) / scale. It needs no token: the Gram matrix says all.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bitwright.calibration.observers import LayerStats, rescaled
from bitwright.calibration.precision import fast_matmul
from bitwright.errors import NumericsError
from bitwright.methods.slots import Error, Transformed
from bitwright.numerics.grids import check_finite, fake_quantize
from bitwright.numerics.linear import InputTransform
from bitwright.numerics.ranges import RangeFunction, absmax
from bitwright.numerics.schemes import Scheme, fit_group
from bitwright.numerics.spec import QuantSpec

_POINTS = 64  # of the numeric integral over a token's largest magnitude
_SAMPLED_ROWS = 512  # of all readers together; more change the choice by less than the next grid point does


def expected_error(
    weights: Sequence[Tensor],
    stats: LayerStats,
    scheme: Scheme,
    range_function: RangeFunction = absmax,
    *,
    rows: int = _SAMPLED_ROWS,
) -> Error:
    """The squared output error per token that quantization is expected to leave, as a function of the transform.

    Args:
        weights: (N, K) each, all readers of the input; not modified.
        stats: of that input. Without a Gram matrix its features count as uncorrelated.
        scheme: its weight spec is fitted to K; what it leaves in 16 bit adds no error.
        range_function: of the weight.
        rows: the error is measured on that many outputs, drawn with a fixed seed, and scaled up to all of them.

    Raises:
        NumericsError: NaN or infinite weights, or readers that do not all have the K of the statistics.
    """
    w_NK, share = _sampled(weights, len(stats.min_K), rows)
    spec = fit_group(scheme, w_NK.shape[1])[0].weight
    ones_K = torch.ones_like(stats.min_K)

    def error(transformed: Transformed | None) -> float:
        transform = InputTransform(ones_K) if transformed is None else transformed.transform
        w = transform.absorbed(w_NK)
        total = 0.0
        if spec is not None:  # Δ is taken back to x − shift, whose Gram matrix all scales share
            delta = transform.restored(fake_quantize(w, *range_function(w, spec), spec) - w)
            seen = stats if transform.shift_K is None else rescaled(stats, InputTransform(ones_K, transform.shift_K))
            total += _quadratic(delta, seen) / stats.n_tokens
        if scheme.input is not None:
            seen = rescaled(replace(stats, gram_KK=None), transform)
            total += float(w.square().sum(0).double().cpu() @ input_noise(seen, scheme.input))
        return total * share

    return error


def input_noise(stats: LayerStats, spec: QuantSpec) -> Tensor:
    """Mean square of the rounding error of each input feature: float64 (K,).

    step² / 12 where values spread over many steps, and never more than E[x²], which is what rounding to zero costs.
    The step of a static range is that of the extremes. A dynamic range is the token's own; the mean square of its
    width is that of K independent normal features with the means and variances seen.
    """
    mean_square_K = stats.sum_sq_K / stats.n_tokens
    steps = spec.half_steps if spec.symmetric else 2**spec.bits - 1
    if spec.dynamic:
        std_K = (mean_square_K - stats.mean_K.square()).clamp(min=0).sqrt()
        width_sq = _mean_square_width(stats.mean_K, std_K, spec.symmetric)
    else:
        hi, lo = max(float(stats.max_K.max()), 0.0), min(float(stats.min_K.min()), 0.0)
        width_sq = max(hi, -lo) ** 2 if spec.symmetric else (hi - lo) ** 2
    return mean_square_K.clamp(max=width_sq / steps**2 / 12)


def input_error(weight_NK: Tensor, stats: LayerStats, spec: QuantSpec) -> float:
    """How far rounding the input is expected to move the outputs of an ordinary token, relative to their length:

        √(Σ_j ‖W_j‖² E[e_j²] / Σ_j ‖W_j‖² (E|x_j|)²)

    The mean magnitude stands for the typical value: a mean square would be that of a few tokens a thousand times as
    large as the others, which some models have, and which a static range rounds well at the cost of all others. So
    E[e²] is no more than that value squared, which is what rounding to zero costs: the result is from 0 to 1.
    """
    typical_K = (
        stats.sum_sq_K if stats.sum_abs_K is None else stats.sum_abs_K.square() / stats.n_tokens
    ) / stats.n_tokens
    columns_K = weight_NK.float().square().sum(0).double().cpu()
    signal, noise = (float(columns_K @ part) for part in (typical_K, input_noise(stats, spec).minimum(typical_K)))
    return math.sqrt(noise / signal) if signal > 0 else 0.0


def best_of(candidates: Iterable[Transformed], error: Error) -> Transformed | None:
    """The candidate with the least error, with `error_before` and `error_after` in its notes; None if none helps.

    Raises:
        NumericsError: the error without a transform is NaN or infinite, so nothing can be compared with it.
    """
    before = error(None)
    if not math.isfinite(before):
        raise NumericsError(
            f"the error before a transform is {before}; look for NaN or infinity in weights or calibration inputs"
        )
    best, least = None, before
    for candidate in candidates:
        after = error(candidate)
        if after < least:
            best, least = candidate, after
    if best is None:
        return None
    return replace(best, notes={**best.notes, "error_before": before, "error_after": least})


def centred(scale_K: Tensor, alive_K: Tensor) -> Tensor:
    """`scale_K` divided by √(max · min) of the features alive, and 1 for the others: float32 (K,).

    A common factor moves nothing between weights and inputs; without it scales stay near 1, far from the ends of fp16.
    """
    if not bool(alive_K.any()):
        return torch.ones_like(scale_K, dtype=torch.float32)
    alive = scale_K[alive_K]
    return torch.where(alive_K, scale_K / (alive.max() * alive.min()).sqrt(), 1.0).float()


def _sampled(weights: Sequence[Tensor], k: int, rows: int) -> tuple[Tensor, float]:
    """Rows drawn from all readers as if they were one matrix: float32 (≤ rows, K), and how many each stands for."""
    if not weights or any(w.ndim != 2 or w.shape[1] != k for w in weights):
        shapes = ", ".join(str(tuple(w.shape)) for w in weights) or "none"
        raise NumericsError(f"the input has K = {k} features; its readers' weights must be (N, {k}), got {shapes}")
    for w in weights:
        check_finite(w, "the weights that read the input")
    n = sum(len(w) for w in weights)
    if n <= rows:
        return torch.cat([w.float() for w in weights]), 1.0
    drawn = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:rows].sort().values
    ends = torch.tensor([len(w) for w in weights]).cumsum(0)
    starts = ends - torch.tensor([len(w) for w in weights])
    chosen = [drawn[(drawn >= a) & (drawn < b)] - a for a, b in zip(starts, ends, strict=True)]
    return torch.cat([w[rows_N.to(w.device)].float() for w, rows_N in zip(weights, chosen, strict=True)]), n / rows


def _quadratic(delta_NK: Tensor, stats: LayerStats) -> float:
    """tr(Δ G Δᵀ), with the diagonal of G alone where it was not kept whole."""
    if stats.gram_KK is None:
        return float(delta_NK.square().sum(0).double().cpu() @ stats.sum_sq_K)
    with fast_matmul():
        product_NK = delta_NK @ stats.gram_KK.to(delta_NK)
    return float((product_NK * delta_NK).sum(dtype=torch.float64))


def _mean_square_width(mean_K: Tensor, std_K: Tensor, symmetric: bool) -> float:
    """E[max|x|²] of one token if symmetric, else E[(hi − lo)²] with hi ≥ 0 ≥ lo its ends, taken as independent.

    From E[h] = ∫ P(h > t) dt and E[h²] = ∫ 2t P(h > t) dt, with P(h ≤ t) = Π_j P(x_j ≤ t), by the midpoint rule.
    """
    reach = float((mean_K.abs() + 6 * std_K).max())
    if reach == 0:
        return 0.0
    std_K = std_K.clamp(min=1e-6 * reach)
    dt = reach / _POINTS
    t_T1 = (torch.arange(_POINTS, dtype=torch.float64) + 0.5)[:, None] * dt
    above_K, below_K = torch.special.ndtr((t_T1 - mean_K) / std_K), torch.special.ndtr((-t_T1 - mean_K) / std_K)
    if symmetric:
        exceeds_T = 1 - (above_K - below_K).prod(1)
        return float((2 * t_T1[:, 0] * exceeds_T).sum()) * dt
    hi_T, lo_T = 1 - above_K.prod(1), 1 - (1 - below_K).prod(1)
    squares = float((2 * t_T1[:, 0] * (hi_T + lo_T)).sum()) * dt
    return squares + 2 * float(hi_T.sum()) * float(lo_T.sum()) * dt**2
