"""`encode` that does not run a text twice: metrics share texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bitwright.calibration.columns import TextPair
from bitwright.evaluate.kinds import Encode, Outputs, Window


def remembering(encode: Encode) -> Encode:
    """`encode`, but that it runs only texts that it has not run before. Where that stacks its outputs, so does this."""
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
