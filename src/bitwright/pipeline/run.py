"""Runs the steps of `quantize` in order. Only this file knows the order.

    open ▸ (calibrate) quantize ▸ (train) ▸ search on tuning data ▸ write ▸ reload ▸ judge on held-out data ▸ verify ▸
    time ▸ report

What is measured before an interruption is kept in a journal beside the result and used again; the result itself appears
complete or not at all.
"""

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import bitwright
from bitwright.checkpoints.leftovers import split_source_files
from bitwright.checkpoints.result import atomic_directory, check_out, write_file
from bitwright.errors import InputError
from bitwright.families.tasks import TaskName
from bitwright.files.reading import read_text
from bitwright.pipeline.attention import decide_attention, unmeasured_attention, with_cost
from bitwright.pipeline.decision import decision_facts, resolve_auto
from bitwright.pipeline.decoded import float_source
from bitwright.pipeline.enough import cannot_decide
from bitwright.pipeline.facts import layer_rows, model_facts, size_facts, warnings_of
from bitwright.pipeline.job import Job, compared_with_library, open_job
from bitwright.pipeline.judging import Judged, judge_result
from bitwright.pipeline.loss_weights import without_weights_that_do_not_fit
from bitwright.pipeline.measuring import on_tuning_data
from bitwright.pipeline.parts import measure_parts, rank_units
from bitwright.pipeline.polish_lessons import check_polish, disk_needed
from bitwright.pipeline.polishing import without_polish
from bitwright.pipeline.request import (
    RECIPE_FILE,
    STUDY_FOLDER,
    Asked,
    TrainingAsked,
    make_texts,
    reproducing_command,
    resolve_recipe,
)
from bitwright.pipeline.smallest import all_int8, job_ladders, search_smallest, smallest_facts
from bitwright.pipeline.speed_front import MOST_VARIANTS, Timed, measure_front
from bitwright.pipeline.stages import improve, stages_of
from bitwright.pipeline.training import Lesson, open_lesson
from bitwright.pipeline.trials import Setup
from bitwright.pipeline.tune import Tune, check_tune, tuned
from bitwright.pipeline.variants import quantize_model, stored_plan, with_finer, with_tables, write_variant
from bitwright.pipeline.workspace import JOURNAL, STAGED, claim, work_directory
from bitwright.progress import Progress, Quiet
from bitwright.recipe import Recipe, recipe_yaml
from bitwright.record import HELD, RECORD_FILE, Environment, Record, Sensitivity, as_data, from_data, write_record
from bitwright.runtime.environment import environment
from bitwright.search.attention import float_attention
from bitwright.search.fallback import Step, find_fallback, step_rows, units_by_error
from bitwright.search.journal import Journal
from bitwright.search.ladder import Ladders, Moves, rung_by_rung
from bitwright.search.sensitivity import ranked_units


@dataclass(frozen=True, slots=True)
class Result:
    """What a run made.

    Attributes:
        directory: where it lies.
        measured: everything measured, typed. `record` is the same as plain data.
        exit_code: what the command ends with: 0 done, 3 not shown to be inside the budget, 1 if a runtime gives other
            outputs than those that were judged.
    """

    directory: Path
    measured: Record
    exit_code: int

    @property
    def record(self) -> dict[str, Any]:
        """Everything measured, as dicts and lists: `result.record["evaluation"]["loss"]`."""
        data: dict[str, Any] = as_data(self.measured)
        return data


def quantize(
    model: str | Path,
    *,
    out: str | Path,
    max_loss: float | None = None,
    min_speedup: float | None = None,
    goal: Literal["smallest"] | None = None,
    recipe: Recipe | str | Path | None = None,
    targets: str | Sequence[str] | None = None,
    data: str | Sequence[str] = (),
    evaluation: str | Path | None = None,
    kind: str | None = None,
    metric: str | None = None,
    samples: int = 1000,
    task: TaskName | None = None,
    overwrite: bool = False,
    judged: bool = True,
    sensitivity: bool = False,
    speed: bool = True,
    tune: Tune | int | None = None,
    trust_remote_code: bool = False,
    training: TrainingAsked | None = None,
    command: str | None = None,
    progress: Progress | None = None,
) -> Result:
    """Quantize a model within an accuracy budget, and write the result with its report.

    Args:
        model: a model directory, or the name of a model on the hub.
        out: directory of the result. While the work goes on, a hidden directory beside it keeps what was measured.
        max_loss: the loss allowed, as a fraction of the float model's score. By default the recipe's, or 0.01.
        min_speedup: how many times as fast as torch (the faster of float32 and bf16) the result should be. Variants
            with more and fewer linears in 16 bit are then timed.
        goal: "smallest" gives each set of linears that share an input 4, 8 or 16 bits, so that the model is as small as
            the budget allows. The recipe names no schemes then.
        recipe: a Recipe, the path of one, or the name of one that Bitwright brings. By default all linears get 8-bit
            weights and activations.
        targets: runtimes that must load the result, such as "vllm". By default the recipe's, or Bitwright, and
            transformers if it can.
        data: texts, as `--data` takes them: a file, a data set or "builtin#KIND", or several of those.
        evaluation: labelled data, as `--eval` takes them: a file or a directory.
        kind: what `evaluation` holds, if its columns leave that open, such as "similarity".
        metric: your own metric, as "file.py:function".
        samples: how many texts decide where there are no labels.
        task: what the model is for, if its files leave that open, such as "embedding".
        overwrite: replace a result that is in `out` already.
        judged: evaluate the result, give more bits where it lost too much, check it and time it. Without this it is
            only quantized and written, and attention stays float unless the recipe asks for int8: nobody measured
            what that costs.
        sensitivity: measure every layer of an encoder for the report.
        speed: time the result.
        tune: how a tuner looks for a better recipe first. A number is the most configurations that it tries, and it
            tries them only if the recipe loses too much on tuning texts.
        trust_remote_code: run code that the model's repository brings.
        training: how to train what was quantized, with the float model as teacher. With `only_if_over`, only if the
            loss is over the budget, before more bits are given; else always, and no bits are given.
        command: what a person would type to do this again; the record keeps it.
        progress: what is told of the steps; by default nothing.

    Returns:
        What was made and measured, and the exit code that the command would end with.

    Raises:
        BitwrightError: the message says what, where, and what to do. A budget that is not met is no error: look at
            `exit_code`, or `record["evaluation"]["verdict"]`.
    """
    progress = progress or Quiet()
    recipe = resolve_recipe(recipe, max_loss, min_speedup, targets, goal)
    begun = time.perf_counter()
    _check_destination(Path(out), Path(model), overwrite=overwrite)
    if recipe.budget.goal is not None and not judged:
        raise InputError(
            f"goal: {recipe.budget.goal} needs a verdict, but this run does not judge its result (--no-judge); "
            "leave one of the two out"
        )
    if recipe.budget.min_speedup is not None and not (judged and speed):
        raise InputError(
            f"min_speedup = {recipe.budget.min_speedup:g}: this run measures no speed; leave one of the two out"
        )
    if training is not None and not judged:
        raise InputError("training is compared with what it began with, but this run judges nothing; leave one out")
    texts = make_texts(data, evaluation, kind, metric, samples)
    command = command or reproducing_command(model, Path(out), recipe, texts, task)
    asked = Asked(Path(out), overwrite, judged, sensitivity, speed, command, training)
    tune = Tune(tune, if_needed=True) if isinstance(tune, int) else tune
    if tune is not None:
        check_tune(tune, recipe)
    with ExitStack() as stack:
        source = stack.enter_context(float_source(model, asked.out, progress))
        if tune is not None:
            setup = Setup(model, recipe, texts, task, trust_remote_code)
            found = stack.enter_context(tuned(source, setup, asked, tune, progress))
            recipe, asked = found.recipe, replace(asked, tuning=found.section, study_files=found.files)
        progress.say(f"loading {model}")
        job = open_job(
            source, recipe, texts, trust_remote_code=trust_remote_code, task=task, compares=True, judged=judged
        )
        return _begin(job, asked, begun, progress)


def _begin(job: Job, asked: Asked, begun: float, progress: Progress) -> Result:
    """The checks that need the model, and then the work."""
    recipe, judged = job.recipe, asked.judged
    front = recipe.budget.min_speedup is not None
    job = compared_with_library(job, judges=judged, progress=progress)
    if judged and job.scored.missing_pairs:
        progress.say(
            f"this model reads pairs of texts ({job.scored.missing_pairs}), and none were given, so there will be "
            "no verdict: give pairs with --data FILE#FIRST,SECOND"
        )
    hopeless = cannot_decide(job) if judged else None
    if hopeless is not None:
        progress.say(hopeless)
        job = replace(job, warnings=[*job.warnings, hopeless])
    searches = judged and (hopeless is None or front or job.recipe.budget.accept_point_estimate)
    job = resolve_auto(job, progress)
    lesson = None if asked.training is None else open_lesson(job, asked.training)
    if lesson is not None and not lesson.asked.only_if_over:
        searches = False  # the scheme is what the user trains for
    check_polish(job)
    check_out(asked.out, job.opened.loaded.path, overwrite=asked.overwrite)
    # The result, and a candidate while it is measured. All-INT8 takes less than twice what 4 bits take.
    checkpoints = 2 + front * MOST_VARIANTS + 2 * (recipe.budget.goal is not None)
    needed = checkpoints * sum(row.bytes_after for row in job.plan) + disk_needed(job)
    with work_directory(asked.out, needed, progress) as work:
        return _run(job, asked, work, begun, progress, lesson, searches=searches)


def _run(
    job: Job, asked: Asked, work: Path, begun: float, progress: Progress, lesson: Lesson | None, *, searches: bool
) -> Result:  # fmt: skip
    """The work of `quantize` after all checks. searches: whether to search for a fallback."""
    claim(work, job.context() | ({} if lesson is None else {"training": lesson.digest()}))
    journal = Journal(work / JOURNAL, "")
    if journal.values:
        progress.say(f"continuing an interrupted run: {len(journal.values)} measurements are already there")

    job = without_weights_that_do_not_fit(job)
    climbs = job_ladders(job) if asked.judged else Ladders()
    with job.timed("quantize"):
        quantized = with_tables(job, quantize_model(job, work, progress))
    with job.timed("improve"):
        stages = stages_of(job, lesson, journal, work, progress)
        better = improve(job, quantized, stages, journal, work, progress, judged=asked.judged)
    if (polished := better.told.get("polish")) is not None and not polished.kept:
        job = without_polish(job)
    quantized, journal = with_finer(job, better.quantized, climbs), better.journal
    found: list[Sensitivity] = []

    def by_sensitivity() -> tuple[str, ...]:
        if not found:
            with job.timed("sensitivity"):
                analysis = measure_parts if asked.sensitivity else rank_units
                found.append(analysis(job, quantized, journal, progress))
        return ranked_units(found[0])

    # A variant of a language model costs a pass of the whole: it is ranked by what was measured while quantizing.
    ranked = partial(units_by_error, quantized.account) if job.opened.streams else by_sensitivity
    goal = job.recipe.budget.goal

    def ranking() -> Moves:
        return rung_by_rung(ranked(), climbs)

    # Linears are chosen with float attention; then attention is decided for them.
    plain = job.with_recipe(float_attention(job.recipe))
    measure = on_tuning_data(plain, quantized, journal, work, progress)
    chosen: Step | None = None
    steps: list[Step] = []
    timed: Timed | None = None
    if searches:
        with job.timed("search"):
            if goal is not None:
                chosen, steps = search_smallest(plain, quantized, climbs, measure, journal, work, progress)
            else:
                chosen, steps = find_fallback(plain.recipe, ranking, measure)
    recipe, settled = plain.recipe if chosen is None else chosen.recipe, unmeasured_attention(job)
    if asked.judged:
        with job.timed("attention"):
            settled = decide_attention(job, recipe, quantized, measure, journal, work)
    job = job.with_recipe(settled.applied(job.recipe))
    recipe = settled.applied(recipe)
    if chosen is not None and job.recipe.budget.min_speedup is not None:
        with job.timed("search"):
            timed = measure_front(job, quantized, ranking(), chosen, measure, work, progress)
        chosen, recipe = timed.chosen, timed.chosen.recipe
        again = {step.kept: step for step in timed.steps}  # with the attention that was decided
        steps = [again.pop(step.kept, step) for step in steps] + list(again.values())
    if searches:
        job.timings_s["search"] = round(job.timings_s["search"] - job.timings_s.get("sensitivity", 0.0), 3)
    if asked.judged and asked.sensitivity and not job.opened.streams:
        by_sensitivity()

    final = job.with_recipe(recipe)
    staged = work / STAGED
    with job.timed("write"):
        shutil.rmtree(staged, ignore_errors=True)
        write_variant(final, quantized, staged)
    final = replace(final, plan=with_cost(stored_plan(final, quantized), settled.cost))
    judged = Judged()
    if asked.judged:
        searched = len(steps) > 1 or bool(settled.rules) or job.decision is not None
        with all_int8(job, quantized, climbs, work, timed=asked.speed) as beside:
            judged = judge_result(final, staged, quantized, asked, timed, progress, searched=searched, beside=beside)
    if not judged.on_engine:
        final = replace(final, plan=tuple(row for row in final.plan if row.role != HELD))
    layers = layer_rows(quantized.account, final.plan)
    job.timings_s["total"] = round(time.perf_counter() - begun, 3)
    record = Record(
        bitwright_version=bitwright.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=asked.command,
        exit_code=judged.exit_code,
        model=model_facts(job),
        recipe=final.recipe.model_dump(mode="json"),
        plan=final.plan,
        layers=layers,
        steps=step_rows(steps, chosen),
        training=better.told.get("train"),
        sensitivity=found[0] if found else None,
        size=size_facts(final, staged),
        left_out=tuple(split_source_files(job.opened.loaded.directory)[1]),
        decision=None if job.decision is None else decision_facts(job.decision),
        evaluation=judged.evaluation,
        distributions=judged.distributions,
        verify=judged.verified,
        front=None if timed is None else timed.front,
        smallest=None if goal is None else smallest_facts(job, final.plan, climbs),
        tuning=asked.tuning,
        polish=polished,
        attention=settled.cost,
        speed=judged.speed,
        warnings=warnings_of(final, layers, judged.evaluation, judged.verified or (), journal),
        environment=from_data(Environment, environment()),
        timings_s=dict(job.timings_s),
    )
    _publish(staged, record, final, asked)
    return Result(asked.out, record, record.exit_code)


def _check_destination(out: Path, source: Path, *, overwrite: bool) -> None:
    """Refuse a bad destination before the model is loaded."""
    if source.is_dir():
        check_out(out, source, overwrite=overwrite)


def _publish(staged: Path, record: Record, job: Job, asked: Asked) -> None:
    """Add record, report, recipe and model card, then move the directory to its place in one step."""
    from bitwright.report import render_model_card, write_report  # Bokeh's memory is needed only now

    readme = job.opened.loaded.path / "README.md"
    source_card = read_text(readme)
    check_out(asked.out, job.opened.loaded.path, overwrite=asked.overwrite)  # again: the work took time
    written = {RECIPE_FILE: recipe_yaml(job.recipe), "README.md": render_model_card(record, source_card)}
    for name, content in written.items():
        (staged / name).unlink(missing_ok=True)
        write_file(staged / name, content.encode())
    for name, file in asked.study_files.items():
        (staged / STUDY_FOLDER).mkdir(exist_ok=True)
        shutil.copyfile(file, staged / STUDY_FOLDER / name)
    write_record(record, staged / RECORD_FILE)
    write_report(staged)
    with atomic_directory(asked.out, 0) as folder:
        for item in sorted(staged.iterdir()):
            item.rename(folder / item.name)
