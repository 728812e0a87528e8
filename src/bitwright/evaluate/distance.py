"""Measures how far a quantized model's outputs are from the float model's, smoothly enough for few texts.

Metrics that decide (ranks of similarities, answers that flip) move in steps, and on few texts not at all.
"""

import numpy as np

from bitwright.evaluate.kinds import Outputs
from bitwright.evaluate.metrics import cosine


def output_distance(float_rows: Outputs, quant_rows: Outputs, *, embeddings: bool) -> float:
    """The distance between the outputs of two models for the same texts: one row per text, of any shape.

    Embeddings, whose length says nothing: the mean of 1 − cos. Logits and scores: Σ‖q − f‖² / Σ‖f − mean‖², where the
    mean is that of each column over all float rows; what moves all texts alike counts too.
    """
    if embeddings:
        return 1 - cosine(np.stack(list(float_rows)), np.stack(list(quant_rows)))[0]
    left, right = (
        np.concatenate([np.atleast_2d(np.asarray(row, dtype=np.float64)) for row in rows])
        for rows in (float_rows, quant_rows)
    )
    spread = float(np.square(left - left.mean(axis=0)).sum())
    return float(np.square(right - left).sum()) / (spread or 1.0)
