"""Wraps `encode` so that no text runs twice, because metrics share texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bitwright.calibration.columns import TextPair
from bitwright.evaluate.kinds import Encode, Outputs, Window


def remembering(encode: Encode) -> Encode:
    """Wrap `encode` so that it runs only new texts. It stacks its outputs if `encode` does."""
    known: dict[Any, np.ndarray] = {}
    stacks = False

    def remembered(items: Sequence[str] | Sequence[TextPair] | Sequence[Window]) -> Outputs:
        nonlocal stacks
        new: list[Any] = [item for item in dict.fromkeys(items) if item not in known]
        if new:
            outputs = encode(new)
            stacks = isinstance(outputs, np.ndarray)
            known.update(zip(new, outputs, strict=True))
        rows = [known[item] for item in items]
        return np.stack(rows) if stacks else rows

    return remembered
