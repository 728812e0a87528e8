"""The order of the work: the only file that knows it.

    open ▸ (calibrate) quantize ▸ search on tuning data ▸ write ▸ reload ▸ judge on held-out data ▸ verify ▸ time ▸
    report

What is measured before an interruption is kept in a journal beside the result and used again; the result itself appears
complete or not at all.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bitwright
from bitwright.checkpoints.compressed_tensors import QuantizedParts, write_checkpoint
from bitwright.checkpoints.directory import atomic_directory, check_out, check_space, write_file
from bitwright.errors import InputError, RecipeError
from bitwright.evaluate import Interval, judge, paired_bootstrap
from bitwright.evaluate.kinds import Outputs
from bitwright.models.load import license_of, source_bytes
from bitwright.pipeline.job import Job, Progress, Quiet, Texts, open_job
from bitwright.pipeline.variants import (
    candidate,
    describe_distributions,
    quantize_linears,
    quantize_tables,
    run_task,
    sensitivity_measure,
)
from bitwright.plan import Plan, half_names, plan_rows, quantized_names
from bitwright.recipe import Recipe, read_recipe, recipe_yaml
from bitwright.record import RECORD_FILE, RECORD_VERSION, Record, read_record, write_record
from bitwright.report import render_model_card, write_report
from bitwright.runtime.bench import run_bench
from bitwright.runtime.environment import environment
from bitwright.runtime.load import load
from bitwright.runtime.model import Model
from bitwright.runtime.verify import verify
from bitwright.search.fallback import Step, find_fallback, step_rows
from bitwright.search.journal import Journal
from bitwright.search.sensitivity import measure_sensitivity, parts_of, ranked_units

_DEFAULT_TEXTS = Texts()
JOURNAL, STAGED = "journal.jsonl", "checkpoint"  # in the work directory
_EXIT_UNVERIFIED, _EXIT_OVER_BUDGET = 1, 3
_BENCH_SHAPES = ((1, 16), (8, 128))
_VERIFY_SHAPE = (4, 32)  # sequences × tokens that every runtime must agree on


@dataclass(frozen=True, slots=True)
class Result:
    """What a run made.

    exit_code: 0; 3 if the budget is not met or the sample cannot decide it; 1 if a target runtime failed the check.
    """

    directory: Path
    record: Record
    exit_code: int


def quantize(
    model: str | Path,
    *,
    out: str | Path,
    max_loss: float | None = None,
    recipe: Recipe | str | Path | None = None,
    data: Sequence[str] = (),
    evaluation: str | None = None,
    kind: str | None = None,
    metric: str | None = None,
    samples: int = 1000,
    overwrite: bool = False,
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
        recipe: a Recipe, or the path of one; by default all linears W8A8 with dynamic asymmetric activations.
        data, evaluation, kind, metric, samples: see `Texts`.
        sensitivity: measure every layer even if the budget does not need it; speed: time the result.
        command: what a person would type to do this again; for the record.

    Raises:
        BitwrightError: the message says what, where, and what to do. A budget that is not met is no error: look at
            `exit_code`, or `record["evaluation"]["verdict"]`.
    """
    progress, out = progress or Quiet(), Path(out)
    recipe = _resolve(recipe, max_loss)
    begun = time.perf_counter()
    _check_destination(out, Path(model), overwrite=overwrite)
    texts = Texts(tuple(data), evaluation, kind, metric, samples)
    progress.say(f"loading {model}")
    job = open_job(model, recipe, texts, trust_remote_code=trust_remote_code)
    check_out(out, job.loaded.path, overwrite=overwrite)
    with _work_directory(out, sum(row.bytes_after for row in job.plan), progress) as work:
        return _run(
            job, work, out, sensitivity=sensitivity, speed=speed, command=command, begun=begun, progress=progress
        )


def _run(
    job: Job, work: Path, out: Path, *, sensitivity: bool, speed: bool, command: str | None, begun: float,
    progress: Progress,
) -> Result:  # fmt: skip
    """All of `quantize` that comes after what can be refused beforehand."""
    recipe, trust = job.recipe, job.trust_remote_code
    journal = Journal(work / JOURNAL, job.context())
    if journal.values:
        progress.say(f"going on where an earlier run stopped: {len(journal.values)} measurements are there")

    with job.timed("quantize"):
        layers, tables = quantize_linears(job, job.plan, progress), quantize_tables(job)
    found: dict[str, Any] = {}

    def ranking() -> tuple[str, ...]:
        if not found:
            with job.timed("sensitivity"):
                found.update(_sensitivity(job, layers, journal, progress))
        return ranked_units(found)

    with job.timed("search"):
        kept, steps = _search(job, layers, tables, ranking, journal, progress)
    if sensitivity:
        ranking()

    final_recipe = recipe.with_fallback(kept, "sensitive: kept in 16 bit to stay inside the budget")
    plan = job.plan_for(final_recipe)
    staged = work / STAGED
    with job.timed("write"):
        shutil.rmtree(staged, ignore_errors=True)
        kept_layers = {name: layers[name] for name in quantized_names(plan)}
        parts = QuantizedParts(kept_layers, half_names(plan), tables)
        write_checkpoint(job.loaded.path, staged, parts, job.names, model_card="")
    with job.timed("evaluate"):
        final = load(staged, trust_remote_code=trust)
        float_outputs = run_task(job.held_out, job.model, progress, "held-out texts, float")
        quant_outputs = run_task(job.held_out, final, progress, "held-out texts, quantized")
        interval = paired_bootstrap(job.held_out, float_outputs, quant_outputs, seed=recipe.seed)
    evaluation_record, exit_code = _evaluation(job, interval, float_outputs, quant_outputs, recipe)
    record: Record = {
        "record_version": RECORD_VERSION,
        "bitwright_version": bitwright.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command or f"bitwright quantize {job.loaded.path.name} --max-loss {recipe.budget.max_loss:.4%}",
        "exit_code": exit_code,
        "model": _model_facts(job),
        "recipe": final_recipe.model_dump(mode="json"),
        "plan": plan_rows(plan),
        "evaluation": evaluation_record,
        "steps": step_rows(steps),
        "sensitivity": (found | {"n_samples": len(job.probe), "metric": job.tuning.kind.metric}) if found else None,
        "distributions": describe_distributions(job, layers),
        "size": _size(job, staged, plan),
    }
    with job.timed("verify"):
        progress.say("reloading the result in a clean process, in every target runtime")
        record["verify"] = _verify(job, final, staged, plan)
    if exit_code == 0 and any(row["ok"] is False for row in record["verify"]):
        record["exit_code"] = exit_code = _EXIT_UNVERIFIED
    if speed:
        del final  # the timed processes need the memory
        with job.timed("speed"):
            measured = run_bench(
                staged, source=job.loaded.path, shapes=_BENCH_SHAPES, threads=torch.get_num_threads(), rounds=3,
                rivals=False, progress=progress.say, track=progress.track,
            )  # fmt: skip
        record["speed"] = {key: value for key, value in measured.items() if key not in ("size", "blocks")}
    job.timings_s["total"] = round(time.perf_counter() - begun, 3)
    record |= {"warnings": _warnings(record, journal), "environment": environment(), "timings_s": dict(job.timings_s)}
    _publish(staged, out, record, final_recipe, job)
    return Result(out, record, exit_code)


def preview(
    model: str | Path, *, recipe: Recipe | None = None, texts: Texts = _DEFAULT_TEXTS, sensitivity: bool = True,
    trust_remote_code: bool = False, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The plan of `quantize` and what it would cost in time, memory and disk. Writes nothing.

    Returns:
        {"model", "plan": rows as in the Record, "estimate": {"seconds", "memory_bytes", "disk_bytes", "source_bytes"}}.
        The time is extrapolated from one timed batch; within a factor of two if no fallback search is needed.
    """
    progress = progress or Quiet()
    job = open_job(model, recipe or Recipe(), texts, trust_remote_code=trust_remote_code)
    sample = list(job.probe[:32])
    job.model.encode(sample[:2])
    start = time.perf_counter()
    job.model.encode(sample)
    per_text = (time.perf_counter() - start) / len(sample)
    names = quantized_names(job.plan)
    parts = (
        {part.members for part in parts_of([site for site in job.sites if site.name in names])} if sensitivity else ()
    )
    tuning, held_out = (max(len(task.texts), 1) for task in (job.tuning, job.held_out))
    encoded = len(parts) * max(tuning, len(job.probe)) + 2 * (tuning + held_out)
    source, after = source_bytes(job.loaded.path), sum(row.bytes_after for row in job.plan)
    in_float32 = sum(p.numel() * 4 for p in job.loaded.model.parameters())
    return {
        "model": job.loaded.name,
        "plan": plan_rows(job.plan),
        "estimate": {
            "seconds": 30 + encoded * per_text,
            "memory_bytes": 2 * in_float32 + 2 * after,
            "disk_bytes": after,
            "source_bytes": source,
        },
    }


def analyze(
    model: str | Path, *, recipe: Recipe | str | Path | None = None, texts: Texts = _DEFAULT_TEXTS,
    journal: str | Path | None = None, trust_remote_code: bool = False, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Rank the linears of a model by the Earth Mover's Distance that quantizing each puts between the outputs.

    Args:
        journal: a file that keeps the measurements, so that a stopped analysis goes on.

    Returns:
        The Record's `sensitivity`, with "model".
    """
    progress = progress or Quiet()
    job = open_job(model, _resolve(recipe, None), texts, trust_remote_code=trust_remote_code)
    layers = quantize_linears(job, job.plan, progress)
    notes = Journal(None if journal is None else Path(journal), job.context())
    found = _sensitivity(job, layers, notes, progress)
    return {"model": job.loaded.name, "metric": job.tuning.kind.metric, "n_samples": len(job.probe)} | found


def bench(
    directory: str | Path, *, source: str | Path | None = None, shapes: Sequence[tuple[int, int]] = _BENCH_SHAPES,
    threads: int | None = None, rounds: int = 5, rivals: bool = True, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure a result against its float original, which lies at `source`, or where the record says it was."""
    directory, progress = Path(directory), progress or Quiet()
    if source is None and (directory / RECORD_FILE).is_file():
        recorded = Path(str(read_record(directory)["model"].get("source", "")))  # as it was typed: may be relative
        source = recorded if (recorded / "config.json").is_file() else None
    return run_bench(
        directory, source=None if source is None else Path(source), shapes=shapes, rounds=rounds, rivals=rivals,
        threads=threads or torch.get_num_threads(), progress=progress.say, track=progress.track,
    )  # fmt: skip


def _resolve(recipe: Recipe | str | Path | None, max_loss: float | None) -> Recipe:
    resolved = recipe if isinstance(recipe, Recipe) else Recipe() if recipe is None else read_recipe(Path(recipe))
    if max_loss is None:
        return resolved
    if not 0 < max_loss < 1:
        raise RecipeError(f"max_loss = {max_loss}: a fraction between 0 and 1, such as 0.01 for 1 %")
    return resolved.model_copy(update={"budget": resolved.budget.model_copy(update={"max_loss": max_loss})})


def _check_destination(out: Path, source: Path, *, overwrite: bool) -> None:
    """Refuse a bad destination before the model is loaded."""
    if source.is_dir():
        check_out(out, source, overwrite=overwrite)


@contextmanager
def _work_directory(out: Path, needed: int, progress: Progress) -> Iterator[Path]:
    """Where measurements and the staged checkpoint lie until the result is complete.

    It goes when the work is done. Of a run that ends early the measurements stay, if there are any.
    """
    work = out.parent / f".{out.name}.bitwright"
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{work}: cannot be created ({error.strerror}); choose another --out") from None
    try:
        check_space(work, needed)
        yield work
    except BaseException:
        shutil.rmtree(work / STAGED, ignore_errors=True)
        if (work / JOURNAL).exists():
            progress.say(f"what was measured is kept in {work}; the same command goes on from there")
        else:
            shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)


def _sensitivity(job: Job, layers: dict[str, Any], journal: Journal, progress: Progress) -> dict[str, Any]:
    sites = [site for site in job.sites if site.name in layers]
    measure = sensitivity_measure(job, layers)
    return measure_sensitivity(
        sites, measure, journal, track=lambda parts: progress.track(list(parts), "sensitivity of every layer")
    )


def _search(
    job: Job, layers: dict[str, Any], tables: dict[str, Any], ranking: Any, journal: Journal, progress: Progress
) -> tuple[tuple[str, ...], list[Step]]:
    """Units to keep in 16 bit, decided on the tuning data."""
    float_outputs: list[Outputs] = []

    def measure(kept: tuple[str, ...]) -> Step:
        plan = job.plan_for(job.recipe.with_fallback(kept, "tried"))

        def bounds() -> list[float]:
            if not float_outputs:
                float_outputs.append(run_task(job.tuning, job.model, progress, "tuning texts, float"))
            model = candidate(job, plan, layers, tables)
            what = f"tuning texts, {len(kept)} units in 16 bit"
            outputs = run_task(job.tuning, model, progress, what)
            interval = paired_bootstrap(job.tuning, float_outputs[0], outputs, seed=job.recipe.seed)
            return [interval.loss, interval.upper]

        loss, upper = journal.remember("step:" + "\0".join(kept), bounds)
        return Step(kept, loss, upper, sum(row.bytes_after for row in plan))

    return find_fallback(ranking, measure, job.recipe.budget.max_loss)


def _evaluation(
    job: Job, interval: Interval, float_outputs: Outputs, quant_outputs: Outputs, recipe: Recipe
) -> tuple[dict[str, Any], int]:
    task, budget = job.held_out, recipe.budget
    verdict = judge(interval, budget.max_loss)
    float_score, quantized_score = task.scores(float_outputs, quant_outputs)
    met = verdict.verdict == "met" or (
        verdict.verdict == "undecided" and budget.accept_point_estimate and interval.loss <= budget.max_loss
    )
    facts = {
        "metric": {
            "name": task.kind.metric,
            "kind": task.kind.name,
            "task": task.name,
            "unit": task.kind.unit,
            "label_free": task.kind.label_free,
            "higher_is_better": task.kind.higher_is_better,
        },
        "n_tuning": _n_units(job.tuning),
        "n_held_out": interval.n_units,
        "float_score": float_score,
        "quantized_score": quantized_score,
        "loss": interval.loss,
        "loss_lower": interval.lower,
        "loss_upper": interval.upper,
        "confidence": interval.confidence,
        "max_loss": budget.max_loss,
        "verdict": verdict.verdict,
        "sentence": verdict.sentence,
        "needed_samples": verdict.needed_samples,
        "accepted_point_estimate": met and verdict.verdict != "met",
        "companions": task.companions(float_outputs, quant_outputs),
        "seed": recipe.seed,
    }
    return facts, 0 if met else _EXIT_OVER_BUDGET


def _n_units(task: Any) -> int | None:
    return len(task.kind.groups(task.texts)) if task.texts else None


def _model_facts(job: Job) -> dict[str, Any]:
    loaded = job.loaded
    blocks = {site.block for site in job.sites if site.block is not None}
    return {
        "name": loaded.path.name if Path(loaded.name).is_dir() else loaded.name,
        "source": loaded.name,
        "model_type": loaded.config.model_type,
        "architectures": list(loaded.config.architectures or []),
        "task": loaded.task,
        "n_parameters": sum(p.numel() for p in loaded.model.parameters()),
        "n_blocks": len(blocks),
        "license": license_of(loaded.path),
        "source_sha256": job.source_sha256,
        "dtype": str(job.source_dtype).removeprefix("torch."),
    }


def _size(job: Job, staged: Path, plan: Plan) -> dict[str, int]:
    return {
        "source_bytes": source_bytes(job.loaded.path),
        "checkpoint_bytes": sum(file.stat().st_size for file in staged.glob("*.safetensors")),
        "weights_before": sum(row.bytes_before for row in plan),
        "weights_after": sum(row.bytes_after for row in plan),
    }


def _verify(job: Job, final: Model, staged: Path, plan: Plan) -> list[dict[str, Any]]:
    batch, limit = _VERIFY_SHAPE[0], min(_VERIFY_SHAPE[1], job.model.max_tokens)
    pool = [
        i for ids in job.model.tokenize(job.probe) for i in ids
    ]  # real tokens: random ones are far from what it knows
    ids = np.resize(np.array(pool, dtype=np.int64), (batch, limit))
    rows = final.rows(torch.from_numpy(ids), torch.ones(batch, limit, dtype=torch.int64))
    ours = np.stack([row.reshape(-1) for row in rows])
    calls = sum(site.calls for site in job.sites if site.name in quantized_names(plan))
    targets = [target for target in job.recipe.targets if target != "sentence-transformers"]
    if job.loaded.task == "embedding" and "transformers" in targets:
        targets.append("sentence-transformers")
    return verify(staged, targets, ids, ours, calls)


def _warnings(record: Record, journal: Journal) -> list[str]:
    texts = [f"{row['target']}: {row['detail']}" for row in record["verify"] if row["ok"] is not True]
    if journal.reused:
        texts.append(f"{journal.reused} measurements were taken by an earlier run that was interrupted")
    return texts


def _publish(staged: Path, out: Path, record: Record, recipe: Recipe, job: Job) -> None:
    """Add record, report, recipe and model card, and put the directory in its place in one step."""
    readme = job.loaded.path / "README.md"
    source_card = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else None
    for name, content in (("recipe.yaml", recipe_yaml(recipe)), ("README.md", render_model_card(record, source_card))):
        (staged / name).unlink(missing_ok=True)
        write_file(staged / name, content.encode())
    write_record(record, staged / RECORD_FILE)
    write_report(staged)
    with atomic_directory(out, 0) as folder:
        for item in sorted(staged.iterdir()):
            item.rename(folder / item.name)
