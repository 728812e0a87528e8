"""SmoothQuant: divide the features of the input that have outliers, and multiply the weights that read them.

Xiao et al., 2211.10438, equation 4. Rounding a token to 8 bits costs every feature what the largest one needs; weights
have room to spare.

The paper measures features by their largest magnitude over all tokens. That is what sets a static range. A dynamic one
is each token's own, and a maximum over many thousand tokens says little about it. Its rounding leaves, at the output,

    E[max_j (x_j / s_j)²] · Σ_j s_j² ‖W_j‖²   ≤   Σ_j E[x_j²] / s_j² · Σ_j s_j² ‖W_j‖²

which s_j = √(rms(X_j) / ‖W_j‖) makes least: the same formula at α = ½, of root mean squares instead of maxima. (With a
p-norm in place of the sum, α = p / (p + 2).)
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from bitwright.calibration.observers import LayerStats
from bitwright.errors import NumericsError
from bitwright.methods.scaling import best_of, centred, expected_error
from bitwright.methods.slots import Error, Transformed
from bitwright.numerics.grids import check_finite
from bitwright.numerics.schemes import Scheme

Alpha = float | Literal["search"] | None
Statistic = Literal["absmax", "rms"]
_DYNAMIC = 0.4  # measured on a small Llama: 0.35 to 0.45 is best, below ½ because the weights are rounded as well
_SEARCHED = tuple(step / 20 for step in range(21))
_SMALLEST = 1e-5  # relative to the largest: a weight column of zeros would ask for an infinite scale


def smoothquant(
    weights: Sequence[Tensor],
    stats: LayerStats,
    scheme: Scheme,
    error: Error | None,
    *,
    alpha: Alpha = None,
    statistic: Statistic | None = None,
) -> Transformed | None:
    """scale_j = |X_j|^α / |W_j|^(1−α), |·| the largest magnitude or the root mean square, W_j column j of all readers.

    α = 0 makes the columns of the weights equally large, α = 1 the features of the input. Features that were always 0
    keep scale 1.

    Args:
        weights: (N, K) each, every reader of the input, quantized or not.
        alpha: in [0, 1]; "search" tries 0, 0.05, … 1; None takes 0.4 with root mean squares and searches with
            largest magnitudes, where the best differs from model to model.
        statistic: None takes "absmax" where the scheme's input is static, "rms" elsewhere.
        error: what the candidates are judged by; None takes `expected_error` of the statistics.

    Returns:
        The scale, with alpha, statistic, error_before and error_after in its notes; None where the error is not
        reduced.

    Raises:
        NumericsError: alpha outside [0, 1]; NaN or infinite weights, or readers with another K than the statistics.
    """
    if isinstance(alpha, float | int) and not 0 <= alpha <= 1:
        raise NumericsError(f"alpha = {alpha}: give a number in [0, 1], or search")
    error = error or expected_error(weights, stats, scheme)
    if statistic is None:
        statistic = "absmax" if scheme.input is not None and not scheme.input.dynamic else "rms"
    if alpha is None:
        alpha = _DYNAMIC if statistic == "rms" else "search"
    x_K, w_K = magnitudes(weights, stats, statistic)
    candidates = (
        Transformed(smoothing_scale(x_K, w_K, a), notes={"alpha": a, "statistic": statistic})
        for a in (_SEARCHED if alpha == "search" else (alpha,))
    )
    return best_of(candidates, error)


def smoothing_scale(x_K: Tensor, w_K: Tensor, alpha: float) -> Tensor:
    """The scale from the magnitude of each input feature and of each weight column: float32 (K,)."""
    alive_K = x_K > 0
    if not bool(alive_K.any()) or not bool(w_K.any()):
        return torch.ones_like(x_K, dtype=torch.float32)
    x_K, w_K = x_K / x_K.max(), (w_K / w_K.max()).clamp(min=_SMALLEST)
    return centred((x_K**alpha / w_K ** (1 - alpha)).clamp(min=_SMALLEST), alive_K)


def magnitudes(weights: Sequence[Tensor], stats: LayerStats, statistic: Statistic) -> tuple[Tensor, Tensor]:
    """Of each input feature, and of each column of all weights together: float64 (K,) both."""
    for w in weights:
        check_finite(w, "the weights that read the input")
    if statistic == "absmax":
        return stats.absmax_K.double(), torch.stack([w.abs().amax(0).double().cpu() for w in weights]).amax(0)
    sum_sq_K = torch.stack([w.float().square().sum(0, dtype=torch.float64).cpu() for w in weights]).sum(0)
    # Extremes are exact where sums are not: a feature that a shift made 0 throughout is told by them.
    x_K = torch.where(stats.absmax_K > 0, (stats.sum_sq_K / stats.n_tokens).sqrt(), 0.0)
    return x_K, (sum_sq_K / sum(len(w) for w in weights)).sqrt()
