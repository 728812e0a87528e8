"""Shift: move every input feature to the middle of its range, then let another transform scale what is left.

Outlier Suppression+ (Wei et al., 2304.09145, section 4.1). Outliers often lie all on one side; a range that need not
reach from zero to them is half as wide.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bitwright.calibration.observers import LayerStats, rescaled
from bitwright.methods.scaling import best_of, expected_error
from bitwright.methods.slots import Error, Transform, Transformed
from bitwright.numerics.schemes import Scheme


def shift(
    weights: Sequence[Tensor],
    stats: LayerStats,
    scheme: Scheme,
    error: Error | None,
    *,
    then: Transform | None = None,
) -> Transformed | None:
    """shift_j = (max_j + min_j) / 2, followed by the scale that `then` finds for the shifted input.

    For producers that can take a shift (a norm with a bias), or as an input transform.

    Args:
        then: e.g. SmoothQuant. It sees the shifted statistics, which have no mean magnitudes, and the same weights.
        error: what is compared; None takes the expected error of the statistics.

    Returns:
        Shift alone or with a scale, or the scale without a shift, whichever has the least error: with error_before,
        error_after and the notes of `then`; None where none of them reduces the error.

    Raises:
        NumericsError: NaN or infinite weights, or readers with another K than the statistics.
    """
    judge = error or expected_error(weights, stats, scheme)
    z_K = (stats.max_K + stats.min_K) / 2
    alone = Transformed(torch.ones_like(z_K), z_K)

    def judge_shifted(transformed: Transformed | None) -> float:
        return judge(alone if transformed is None else replace(transformed, shift_K=z_K))

    candidates = [alone]
    if then is not None:
        shifted = then(weights, rescaled(stats, alone.transform), scheme, judge_shifted)
        scaled = then(weights, stats, scheme, judge)
        candidates += [replace(shifted, shift_K=z_K)] if shifted else []
        candidates += [scaled] if scaled else []
    return best_of(candidates, judge)
