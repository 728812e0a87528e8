"""AWQ scaling: weights that meet large inputs are multiplied before they are rounded, so that they lose less.

Lin et al., 2306.00978, section 3.2, with the search of the exponent on the Gram matrix instead of on tokens. The clip
search of the same paper is a range, `awq_clip`.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from bitwright.calibration.observers import LayerStats
from bitwright.errors import NumericsError
from bitwright.methods.scaling import best_of, centred, expected_error
from bitwright.methods.slots import Error, Transformed
from bitwright.numerics.grids import check_finite, grouped
from bitwright.numerics.ranges import RangeFunction, min_max
from bitwright.numerics.schemes import Scheme, fit_group
from bitwright.numerics.spec import QuantSpec

_SMALLEST = 1e-4


def awq(
    weights: Sequence[Tensor],
    stats: LayerStats,
    scheme: Scheme,
    error: Error | None,
    *,
    grid: int = 20,
    duo: bool | Literal["both"] = "both",
    range_function: RangeFunction = min_max,
) -> Transformed | None:
    """scale_j = x̄_j^r, or with `duo` x̄_j^r / (w̄_j^(1−r) + 1e-4), for the r of 0, 1/grid, … with the least error.

    x̄_j is the mean of |X_j|, relative to the largest of them; w̄_j the mean of |W_j| of all readers, each value
    relative to the largest of its group. Features that were always 0 keep scale 1.

    Args:
        weights: (N, K) each, every reader of the input, quantized or not.
        error: what the candidates are judged by; None takes `expected_error` of the statistics, with `range_function`
            as the range of the weights.
        grid: how many exponents are tried.
        duo: whether the weights take part in the scale; "both" tries it with and without.

    Returns:
        The scale, with exponent, duo, error_before and error_after in its notes; None where none reduces the error, or
        where the scheme leaves the weights in 16 bit.

    Raises:
        NumericsError: grid < 1; NaN or infinite weights; readers with another K than the statistics; no mean
            magnitudes, as after a shift.
    """
    if grid < 1:
        raise NumericsError(f"grid = {grid}: give at least 1, so that an exponent is tried")
    spec = fit_group(scheme, len(stats.min_K))[0].weight
    if spec is None:
        return None
    error = error or expected_error(weights, stats, scheme, range_function)
    alive_K = stats.absmax_K > 0
    x_K = stats.mean_abs_K / stats.mean_abs_K.max().clamp(min=torch.finfo(torch.float64).tiny)
    w_K = _mean_relative_magnitude(weights, spec)

    def candidates() -> Iterator[Transformed]:
        for with_weights in (True, False) if duo == "both" else (duo,):
            for r in (step / grid for step in range(grid)):
                if r or with_weights:  # x̄^0 is no scale at all
                    scale_K = x_K**r / (w_K ** (1 - r) + 1e-4) if with_weights else x_K**r
                    scale_K = centred(scale_K.clamp(min=_SMALLEST), alive_K)
                    yield Transformed(scale_K, notes={"exponent": r, "duo": with_weights})

    return best_of(candidates(), error)


def _mean_relative_magnitude(weights: Sequence[Tensor], spec: QuantSpec) -> Tensor:
    """Mean over all rows of |w| / max|w| of its group: float64 (K,)."""
    total, rows = torch.zeros(weights[0].shape[1], dtype=torch.float64), 0
    for w in weights:
        check_finite(w, "the weights that read the input")
        magnitude_NGg = grouped(w.float().abs(), spec)
        relative = magnitude_NGg / magnitude_NGg.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        total += relative.reshape(w.shape).sum(0, dtype=torch.float64).cpu()
        rows += len(w)
    return total / rows
