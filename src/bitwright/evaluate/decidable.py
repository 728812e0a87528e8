"""Tells from the float model's outputs, before the work, whether a sample can decide at all.

The best to be hoped for is a quantized model that answers everything as the original does. If even then a loss above
the budget could not be excluded, no search for a better recipe helps, only more data do.
"""

import math

import numpy as np

from bitwright.evaluate.budget import Given, paired_bootstrap, percent
from bitwright.evaluate.kinds import Outputs
from bitwright.evaluate.tasks import Task

_BARELY = 1e-6  # relative change of outputs that no answer is near enough to notice


def undecidable(task: Task, float_outputs: Outputs, max_loss: float, given: Given, *, seed: int = 0) -> str | None:
    """Why these texts can never show that a loss is inside `max_loss`, and how many would be enough; None if they can.

    Of means (accuracy, nDCG, macro F1) a loss of 3 / (n · score) is never excluded by n units, whatever they show; of
    rank correlations, and of answers that are estimated from margins, less data tell more.

    Args:
        task: what judges. given: what it was drawn from.

    Raises:
        DataError: the float model scores 0.
    """
    rng = np.random.default_rng(seed)
    nearly = [np.asarray(row) * (1 + _BARELY * rng.normal(size=np.shape(row))) for row in float_outputs]
    interval = paired_bootstrap(task, float_outputs, nearly, seed=seed)
    if interval.upper <= max_loss:
        return None
    judged = f"{interval.n_units} {interval.unit} are used to judge"
    if not math.isfinite(interval.upper):
        return (
            f"{task.name}: {judged}, but the metric returns a single number, which has no bound; return a value per "
            "example"
        )
    needed = given.enough(math.ceil(interval.n_units * interval.upper / max_loss), interval.n_units)
    return (
        f"{task.name}: only {judged}. Even if none of them changed, the loss could be up to "
        f"{percent(interval.upper)}, which is more than the budget of {percent(max_loss)}. About {needed} "
        f"{given.noun} would decide it"
    )
