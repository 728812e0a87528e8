"""What makes a quantized model better before bits are added: a table of stages, the quickest first."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from bitwright.pipeline.job import Job
from bitwright.pipeline.measuring import on_tuning_data
from bitwright.pipeline.polishing import polish_model
from bitwright.pipeline.resources import polish_minutes
from bitwright.pipeline.training import Lesson, train_linears
from bitwright.progress import Progress
from bitwright.quantizing.layers import Quantized
from bitwright.record import Polished, Training
from bitwright.search.attention import float_attention
from bitwright.search.journal import Journal
from bitwright.search.measured import Measured

Told = Training | Polished


class Stage(NamedTuple):
    """One way to make it better. minutes: that it takes. only_if_over: whether it runs only while the loss is not shown
    to be inside the budget. improve: gives the better one, and what the Record says of it."""

    name: str
    minutes: float
    only_if_over: bool
    improve: Callable[[Quantized], tuple[Quantized, Told]]


@dataclass(frozen=True, slots=True)
class Improved:
    """What the stages made. journal: where measurements of it belong. told: by stage, what the Record says."""

    quantized: Quantized
    journal: Journal
    told: dict[str, Any]


def stages_of(job: Job, lesson: Lesson | None, journal: Journal, work: Path, progress: Progress) -> list[Stage]:
    """The stages that a run asks for, in the order of the minutes that they will take."""
    stages = []
    if job.recipe.polish is not None:
        minutes = 0.0 if lesson is None else polish_minutes(job)
        stages.append(Stage("polish", minutes, False, lambda q: polish_model(job, q, work, progress)))
    if lesson is not None:
        minutes = math.inf if lesson.asked.minutes is None else lesson.asked.minutes
        over = lesson.asked.only_if_over
        stages.append(Stage("train", minutes, over, lambda q: train_linears(job, q, lesson, journal, work, progress)))
    return sorted(stages, key=lambda stage: stage.minutes)


def improve(
    job: Job, quantized: Quantized, stages: Sequence[Stage], journal: Journal, work: Path, progress: Progress, *,
    judged: bool,
) -> Improved:  # fmt: skip
    """Run the stages one after another. What does not lower the loss on tuning data is undone.

    judged: whether anything is measured; if not, every stage is believed.
    """
    plain = job.with_recipe(float_attention(job.recipe))

    def measured(of: Quantized, kept: Journal) -> Measured:
        return on_tuning_data(plain, of, kept, work, progress)(plain.recipe)

    found = Improved(quantized, journal, {})
    for stage in stages:
        before = measured(found.quantized, found.journal) if judged else None
        if stage.only_if_over and before is not None and before.bound <= job.recipe.budget.max_loss:
            break
        better, told = stage.improve(found.quantized)
        after = Journal(journal.path, f"after {stage.name}")
        if before is not None and told.kept:
            loss = measured(better, after).loss
            told = replace(told, before=before.loss, after=loss, kept=loss <= before.loss)
            if not told.kept:
                progress.say(
                    f"{stage.name}: the loss on tuning data is {loss:.2%} after it and {before.loss:.2%} before, so "
                    "the model stays as it was"
                )
        found = Improved(
            better if told.kept else found.quantized,
            after if told.kept else found.journal,
            found.told | {stage.name: told},
        )
    return found
