"""The order of the work: the only file that knows it.

    open ▸ (calibrate) quantize ▸ search on tuning data ▸ write ▸ reload ▸ judge on held-out data ▸ verify ▸ time ▸
    report

What is measured before an interruption is kept in a journal beside the result and used again; the result itself appears
complete or not at all.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

import bitwright
from bitwright.checkpoints.result import atomic_directory, check_out, write_file
from bitwright.errors import InputError
from bitwright.evaluate import paired_bootstrap
from bitwright.evaluate.kinds import Outputs
from bitwright.numerics.qtensor import QTensor
from bitwright.pipeline.decision import decision_facts, resolve_auto
from bitwright.pipeline.facts import (
    evaluation_facts,
    layer_rows,
    model_facts,
    size_facts,
    verify_in_runtimes,
    warnings_of,
)
from bitwright.pipeline.front import MOST_VARIANTS, measure_front
from bitwright.pipeline.job import Job, open_job
from bitwright.pipeline.request import RECIPE_FILE, make_texts, reproducing_command, resolve_recipe
from bitwright.pipeline.study import BENCH_SHAPES
from bitwright.pipeline.variants import (
    candidate,
    describe_distributions,
    measure_parts,
    quantize_model,
    quantize_tables,
    run_task,
    write_variant,
)
from bitwright.pipeline.workspace import JOURNAL, STAGED, claim, work_directory
from bitwright.plan import Plan, plan_rows
from bitwright.progress import Progress, Quiet
from bitwright.quantizing.layers import Quantized
from bitwright.recipe import Recipe, recipe_yaml
from bitwright.record import RECORD_FILE, RECORD_VERSION, Record, write_record
from bitwright.report import render_model_card, write_report
from bitwright.runtime.bench import run_bench
from bitwright.runtime.environment import environment
from bitwright.runtime.load import load
from bitwright.search.fallback import Step, Units, find_fallback, step_rows, units_by_error
from bitwright.search.journal import Journal
from bitwright.search.sensitivity import ranked_units

_EXIT_UNVERIFIED, _EXIT_OVER_BUDGET = 1, 3


@dataclass(frozen=True, slots=True)
class Result:
    """What a run made.

    exit_code: 0; 3 if the budget is not met, the sample cannot decide it, or the result is not fast enough; 1 if a
    target runtime failed the check.
    """

    directory: Path
    record: Record
    exit_code: int


def quantize(
    model: str | Path,
    *,
    out: str | Path,
    max_loss: float | None = None,
    min_speedup: float | None = None,
    recipe: Recipe | str | Path | None = None,
    data: str | Sequence[str] = (),
    evaluation: str | Path | None = None,
    kind: str | None = None,
    metric: str | None = None,
    samples: int = 1000,
    overwrite: bool = False,
    judged: bool = True,
    sensitivity: bool = True,
    speed: bool = True,
    trust_remote_code: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
) -> Result:
    """Quantize a model within an accuracy budget, write the checkpoint and its report.

    Args:
        model: a model directory or a hub name.
        out: directory of the result. While the work goes on, a hidden directory beside it keeps what was measured.
        max_loss: loss allowed, as a fraction of the float model's score; overrides the recipe's.
        min_speedup: how many times as fast as the faster of float32 and bf16 (torch) the result should be; the
            front of speed and loss is then measured. Overrides the recipe's.
        recipe: a Recipe, or the path of one; by default all linears W8A8 with dynamic asymmetric activations.
        data, evaluation, kind, metric, samples: see `Texts`.
        judged: evaluate the result, search for a fallback, verify and time it. Without, it is quantized and written.
        sensitivity: measure every layer even if the budget does not need it; speed: time the result.
        command: what a person would type to do this again; for the record.

    Raises:
        BitwrightError: the message says what, where, and what to do. A budget that is not met is no error: look at
            `exit_code`, or `record["evaluation"]["verdict"]`.
    """
    progress, out = progress or Quiet(), Path(out)
    recipe = resolve_recipe(recipe, max_loss, min_speedup)
    begun = time.perf_counter()
    _check_destination(out, Path(model), overwrite=overwrite)
    texts = make_texts(data, evaluation, kind, metric, samples)
    command = command or reproducing_command(model, out, recipe, texts)
    progress.say(f"loading {model}")
    job = open_job(model, recipe, texts, trust_remote_code=trust_remote_code)
    front = recipe.budget.min_speedup is not None
    if front and (job.streams or not judged or not speed):
        why = "language models are not timed" if job.streams else "this run times nothing"
        raise InputError(f"min_speedup = {recipe.budget.min_speedup:g}: {why}; leave it out")
    job = resolve_auto(job, progress)
    check_out(out, job.loaded.path, overwrite=overwrite)
    checkpoints = 1 + front * MOST_VARIANTS
    with work_directory(out, checkpoints * sum(row.bytes_after for row in job.plan), progress) as work:
        return _run(
            job,
            work,
            out,
            judged=judged,
            sensitivity=sensitivity,
            speed=speed,
            overwrite=overwrite,
            command=command,
            begun=begun,
            progress=progress,
        )


def _run(
    job: Job, work: Path, out: Path, *, judged: bool, sensitivity: bool, speed: bool, overwrite: bool, command: str,
    begun: float, progress: Progress,
) -> Result:  # fmt: skip
    """All of `quantize` that comes after what can be refused beforehand."""
    claim(work, job.context())
    journal = Journal(work / JOURNAL, "")
    if journal.values:
        progress.say(f"going on where an earlier run stopped: {len(journal.values)} measurements are there")

    with job.timed("quantize"):
        quantized, tables = quantize_model(job, work, progress), quantize_tables(job)
    found: dict[str, Any] = {}

    def by_sensitivity() -> tuple[str, ...]:
        if not found:
            with job.timed("sensitivity"):
                found.update(measure_parts(job, quantized, journal, progress))
        return ranked_units(found)

    # Of a language model a variant costs a pass of the whole: it is ranked by what was measured while quantizing.
    ranking = partial(units_by_error, quantized.account) if job.streams else by_sensitivity
    kept: Units = ()
    steps: dict[Units, Step] = {}
    front: Record = {}
    if judged:
        measure = _on_tuning_data(job, quantized, tables, steps, journal, progress)
        budget = job.recipe.budget
        with job.timed("search"):
            kept, _ = find_fallback(ranking, measure, budget.max_loss)
            if budget.min_speedup is not None:
                kept, front = measure_front(
                    job, quantized, tables, ranking(), kept, measure, budget.min_speedup, work, progress
                )
        job.timings_s["search"] = round(job.timings_s["search"] - job.timings_s.get("sensitivity", 0.0), 3)
        if sensitivity and not job.streams:
            by_sensitivity()

    recipe = job.recipe.with_fallback(kept, "sensitive: kept in 16 bit to stay inside the budget")
    plan = job.plan_for(recipe)
    staged = work / STAGED
    with job.timed("write"):
        shutil.rmtree(staged, ignore_errors=True)
        write_variant(job, plan, quantized, tables, staged)
    record: Record = {
        "record_version": RECORD_VERSION,
        "bitwright_version": bitwright.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "exit_code": 0,
        "model": model_facts(job),
        "recipe": recipe.model_dump(mode="json"),
        "plan": plan_rows(plan),
        "layers": layer_rows(quantized.account, plan),
        "steps": step_rows(list(steps.values()), kept),
        "sensitivity": found or None,
        "size": size_facts(job, staged, plan),
    }
    if job.decision is not None:
        record["decision"] = decision_facts(job.decision)
    if judged:
        record |= _judged(job, staged, plan, quantized, tables, speed=speed and not front, progress=progress) | front
        if front and not front["front"]["met"] and record["exit_code"] == 0:
            record["exit_code"] = _EXIT_OVER_BUDGET
    job.timings_s["total"] = round(time.perf_counter() - begun, 3)
    record |= {
        "warnings": warnings_of(job, record, journal),
        "environment": environment(),
        "timings_s": dict(job.timings_s),
    }
    _publish(staged, out, record, recipe, job, overwrite=overwrite)
    return Result(out, record, record["exit_code"])


def _judged(
    job: Job, staged: Path, plan: Plan, quantized: Quantized, tables: dict[str, QTensor], *, speed: bool,
    progress: Progress,
) -> Record:  # fmt: skip
    """What the Record says of a result that was written: its loss on held-out data, its outputs in each runtime, its
    speed.
    """
    record: Record = {}
    with job.timed("evaluate"):
        # Perplexity is a matter of small differences, and nothing here is timed: float32 around the integers.
        final = load(staged, trust_remote_code=job.trust_remote_code, compute="float32" if job.streams else "auto")
        float_outputs = run_task(job.held_out, job.model, progress, "held-out texts, float")
        quant_outputs = run_task(job.held_out, final, progress, "held-out texts, quantized")
        interval = paired_bootstrap(job.held_out, float_outputs, quant_outputs, seed=job.recipe.seed)
    record["evaluation"], met = evaluation_facts(job, interval, float_outputs, quant_outputs)
    record["exit_code"] = 0 if met else _EXIT_OVER_BUDGET
    record["distributions"] = None if job.streams else describe_distributions(job, plan, quantized)
    with job.timed("verify"):
        progress.say("reloading the result in a clean process, in every target runtime")
        record["verify"] = verify_in_runtimes(job, staged, plan, quantized, tables)
    if met and any(row["ok"] is False for row in record["verify"]):
        record["exit_code"] = _EXIT_UNVERIFIED
    if speed and not job.streams:
        del final  # the timed processes need the memory
        with job.timed("speed"):
            measured = run_bench(
                staged, source=job.loaded.path, shapes=BENCH_SHAPES, threads=torch.get_num_threads(), rounds=3,
                rivals=False, progress=progress.say, track=progress.track,
            )  # fmt: skip
        record["speed"] = {key: value for key, value in measured.items() if key not in ("size", "blocks")}
    return record


def _check_destination(out: Path, source: Path, *, overwrite: bool) -> None:
    """Refuse a bad destination before the model is loaded."""
    if source.is_dir():
        check_out(out, source, overwrite=overwrite)


def _on_tuning_data(
    job: Job, quantized: Quantized, tables: dict[str, QTensor], steps: dict[Units, Step], journal: Journal,
    progress: Progress,
) -> Callable[[Units], Step]:  # fmt: skip
    """A function of the units that stay in 16 bit: the loss on tuning data. `steps` gets what it measures."""
    float_outputs: list[Outputs] = []

    def measure(kept: Units) -> Step:
        plan = job.plan_for(job.recipe.with_fallback(kept, "tried"))

        def bounds() -> list[float]:
            if not float_outputs:
                float_outputs.append(run_task(job.tuning, job.model, progress, "tuning texts, float"))
            model = candidate(job, plan, quantized, tables)
            what = f"tuning texts, {len(kept)} units in 16 bit"
            outputs = run_task(job.tuning, model, progress, what)
            interval = paired_bootstrap(job.tuning, float_outputs[0], outputs, seed=job.recipe.seed)
            return [interval.loss, interval.upper]

        loss, upper = journal.remember("step:" + "\0".join(kept), bounds)
        steps[kept] = Step(kept, loss, upper, sum(row.bytes_after for row in plan))
        return steps[kept]

    return measure


def _publish(staged: Path, out: Path, record: Record, recipe: Recipe, job: Job, *, overwrite: bool) -> None:
    """Add record, report, recipe and model card, and put the directory in its place in one step."""
    readme = job.loaded.path / "README.md"
    source_card = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else None
    check_out(out, job.loaded.path, overwrite=overwrite)  # again: the work took time
    for name, content in ((RECIPE_FILE, recipe_yaml(recipe)), ("README.md", render_model_card(record, source_card))):
        (staged / name).unlink(missing_ok=True)
        write_file(staged / name, content.encode())
    write_record(record, staged / RECORD_FILE)
    write_report(staged)
    with atomic_directory(out, 0) as folder:
        for item in sorted(staged.iterdir()):
            item.rename(folder / item.name)
