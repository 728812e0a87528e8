"""SmoothQuant: divide the features of the input that have outliers, and multiply the weights that read them.

Xiao et al., 2211.10438, equation 4. Rounding a token to 8 bits costs every feature what the largest one needs; weights
have room to spare.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bitwright.calibration.observers import LayerStats
from bitwright.errors import NumericsError
from bitwright.methods.scaling import best_of, centred, expected_error
from bitwright.methods.slots import Error, Transformed
from bitwright.numerics.grids import check_finite
from bitwright.numerics.spec import Scheme

_SEARCHED = tuple(step / 20 for step in range(21))
_SMALLEST = 1e-5  # relative to the largest: a weight column of zeros would ask for an infinite scale


def smoothquant(
    weights: Sequence[Tensor],
    stats: LayerStats,
    scheme: Scheme,
    error: Error | None,
    *,
    alpha: float | None = 0.5,
) -> Transformed | None:
    """scale_j = max|X_j|^α / max|W_j|^(1−α), W_j the column j of all readers together.

    α = 0 makes the columns of the weights equally large, α = 1 the features of the input. Features that were always 0
    keep scale 1.

    Args:
        weights: (N, K) each, every reader of the input, quantized or not.
        alpha: in [0, 1]; None tries 0, 0.05, … 1.
        error: what the candidates are judged by; None takes `expected_error` of the statistics.

    Returns:
        The scale, with alpha, error_before and error_after in its notes; None where the error is not reduced.

    Raises:
        NumericsError: alpha outside [0, 1]; NaN or infinite weights, or readers with another K than the statistics.
    """
    if alpha is not None and not 0 <= alpha <= 1:
        raise NumericsError(f"alpha = {alpha}: choose one in [0, 1], or None to search")
    error = error or expected_error(weights, stats, scheme)
    x_K, w_K = stats.absmax_K.double(), _column_absmax(weights)
    candidates = (
        Transformed(smoothing_scale(x_K, w_K, a), notes={"alpha": a})
        for a in (_SEARCHED if alpha is None else (alpha,))
    )
    return best_of(candidates, error)


def smoothing_scale(x_K: Tensor, w_K: Tensor, alpha: float) -> Tensor:
    """The scale from the largest magnitude of each input feature and of each weight column: float32 (K,)."""
    alive_K = x_K > 0
    if not bool(alive_K.any()) or not bool(w_K.any()):
        return torch.ones_like(x_K, dtype=torch.float32)
    x_K, w_K = x_K / x_K.max(), (w_K / w_K.max()).clamp(min=_SMALLEST)
    return centred((x_K**alpha / w_K ** (1 - alpha)).clamp(min=_SMALLEST), alive_K)


def _column_absmax(weights: Sequence[Tensor]) -> Tensor:
    """Largest magnitude in each column of all weights: float64 (K,)."""
    for w in weights:
        check_finite(w, "the weights that read the input")
    return torch.stack([w.abs().amax(0).double().cpu() for w in weights]).amax(0)
