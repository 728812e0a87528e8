"""Checks before the work whether a run's texts are enough for a verdict."""

from bitwright.evaluate import Given, undecidable
from bitwright.pipeline.job import Job
from bitwright.pipeline.scored import Scored

# What a file holds one of for each unit; other units are called by their own name.
_IN_FILES = {"examples": "rows", "pairs": "rows"}


def given(scored: Scored, n_outputs: int) -> Given:
    """What the judging and the tuning examples were drawn from. n_outputs: the number of outputs on the held-out side,
    by which a custom metric's examples are counted.
    """
    tuning, held_out = scored.tuning.n_units, scored.held_out.n_units
    kind = scored.held_out.kind
    if tuning is None or held_out is None:
        return Given(n_outputs, f"{kind.unit} (half of them judge)")
    if kind.label_free:
        return Given(tuning + held_out, f"{kind.unit} (--samples; half of them judge)")
    noun = _IN_FILES.get(kind.unit, kind.unit)
    return Given(tuning + held_out, f"{noun} of {scored.held_out.name} (half of them judge)")


def cannot_decide(job: Job) -> str | None:
    """Why these texts can never show that a result is inside the budget, and how many would be enough. None if they
    can, if the float model's outputs are not known yet, or for built-in texts, to which nobody can add.

    Raises:
        DataError: the float model scores 0.
    """
    outputs = None if job.reference is None else job.reference.held_out
    if outputs is None or job.opened.streams or job.scored.missing_pairs or job.scored.by_kind:
        return None
    max_loss, seed = job.recipe.budget.max_loss, job.recipe.seed
    return undecidable(job.scored.held_out, outputs, max_loss, given(job.scored, len(outputs)), seed=seed)
