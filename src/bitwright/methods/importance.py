"""What calibration knows about a weight's inputs, in the form that ranges understand."""

from bitwright.calibration.observers import LayerStats
from bitwright.numerics.importance import Importance


def importance_of(stats: LayerStats | None) -> Importance | None:
    """The second moments of the inputs, summed over the tokens; None without statistics."""
    return None if stats is None else Importance(stats.sum_sq_K, stats.gram_KK)
