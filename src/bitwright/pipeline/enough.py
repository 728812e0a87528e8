"""Whether the texts of a run can decide, asked before the work, in the words of the one who gave them."""

from bitwright.evaluate import Given, undecidable
from bitwright.pipeline.job import Job
from bitwright.pipeline.scored import Scored

# What a file holds one of for each unit; other units are called by their own name.
_IN_FILES = {"examples": "rows", "pairs": "rows"}


def given(scored: Scored, n_outputs: int) -> Given:
    """What the units that judge were drawn from, those of tuning with them. n_outputs: of a model, on the held-out
    side; a custom metric's examples are counted by them.
    """
    tuning, held_out = scored.tuning.n_units, scored.held_out.n_units
    kind = scored.held_out.kind
    if tuning is None or held_out is None:
        return Given(n_outputs, f"{kind.unit}, half of which judge,")
    if kind.label_free:
        return Given(tuning + held_out, f"{kind.unit} (--samples), half of which judge,")
    noun = _IN_FILES.get(kind.unit, kind.unit)
    return Given(tuning + held_out, f"{noun} of {scored.held_out.name}, half of which judge,")


def cannot_decide(job: Job) -> str | None:
    """Why no result could be shown to be inside the budget on these texts, and how much would be enough; None where one
    could, where the float model's outputs are not known yet, and on built-in texts, to which nobody adds.

    Raises:
        DataError: the float model scores 0.
    """
    outputs = None if job.reference is None else job.reference.held_out
    if outputs is None or job.opened.streams or job.scored.missing_pairs or job.scored.by_kind:
        return None
    max_loss, seed = job.recipe.budget.max_loss, job.recipe.seed
    return undecidable(job.scored.held_out, outputs, max_loss, given(job.scored, len(outputs)), seed=seed)
