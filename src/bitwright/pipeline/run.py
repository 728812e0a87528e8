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
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bitwright
from bitwright.checkpoints.compressed_tensors import QuantizedParts, write_checkpoint
from bitwright.checkpoints.directory import atomic_directory, check_out, write_file
from bitwright.checkpoints.stored import StoredLinear
from bitwright.evaluate import Interval, judge, paired_bootstrap
from bitwright.evaluate.kinds import Outputs
from bitwright.models.load import license_of, source_bytes
from bitwright.numerics.qtensor import QTensor
from bitwright.pipeline.job import Job, open_job
from bitwright.pipeline.request import RECIPE_FILE, Progress, Quiet, make_texts, reproducing_command, resolve_recipe
from bitwright.pipeline.study import BENCH_SHAPES
from bitwright.pipeline.variants import (
    candidate,
    dequantized,
    describe_distributions,
    measure_parts,
    quantize_linears,
    quantize_tables,
    run_task,
)
from bitwright.pipeline.workspace import JOURNAL, STAGED, work_directory
from bitwright.plan import Plan, half_names, plan_rows, quantized_names
from bitwright.recipe import Recipe, recipe_yaml
from bitwright.record import RECORD_FILE, RECORD_VERSION, Record, write_record
from bitwright.report import render_model_card, write_report
from bitwright.runtime.bench import run_bench
from bitwright.runtime.environment import environment
from bitwright.runtime.load import load
from bitwright.runtime.verify import verify
from bitwright.search.fallback import Step, find_fallback, step_rows
from bitwright.search.journal import Journal
from bitwright.search.sensitivity import ranked_units

_EXIT_UNVERIFIED, _EXIT_OVER_BUDGET = 1, 3
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
    data: str | Sequence[str] = (),
    evaluation: str | Path | None = None,
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
    recipe = resolve_recipe(recipe, max_loss)
    begun = time.perf_counter()
    _check_destination(out, Path(model), overwrite=overwrite)
    texts = make_texts(data, evaluation, kind, metric, samples)
    command = command or reproducing_command(model, out, recipe, texts)
    progress.say(f"loading {model}")
    job = open_job(model, recipe, texts, trust_remote_code=trust_remote_code)
    check_out(out, job.loaded.path, overwrite=overwrite)
    with work_directory(out, sum(row.bytes_after for row in job.plan), progress) as work:
        return _run(
            job,
            work,
            out,
            sensitivity=sensitivity,
            speed=speed,
            overwrite=overwrite,
            command=command,
            begun=begun,
            progress=progress,
        )


def _run(
    job: Job, work: Path, out: Path, *, sensitivity: bool, speed: bool, overwrite: bool, command: str, begun: float,
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
                found.update(measure_parts(job, layers, journal, progress))
        return ranked_units(found)

    with job.timed("search"):
        kept, steps = _search(job, layers, tables, ranking, journal, progress)
    job.timings_s["search"] = round(job.timings_s["search"] - job.timings_s.get("sensitivity", 0.0), 3)
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
        "command": command,
        "exit_code": exit_code,
        "model": _model_facts(job),
        "recipe": final_recipe.model_dump(mode="json"),
        "plan": plan_rows(plan),
        "evaluation": evaluation_record,
        "steps": step_rows(steps),
        "sensitivity": found or None,
        "distributions": describe_distributions(job, kept_layers),
        "size": _size(job, staged, plan),
    }
    with job.timed("verify"):
        progress.say("reloading the result in a clean process, in every target runtime")
        record["verify"] = _verify(job, staged, plan, layers, tables)
    if exit_code == 0 and any(row["ok"] is False for row in record["verify"]):
        record["exit_code"] = exit_code = _EXIT_UNVERIFIED
    if speed:
        del final  # the timed processes need the memory
        with job.timed("speed"):
            measured = run_bench(
                staged, source=job.loaded.path, shapes=BENCH_SHAPES, threads=torch.get_num_threads(), rounds=3,
                rivals=False, progress=progress.say, track=progress.track,
            )  # fmt: skip
        record["speed"] = {key: value for key, value in measured.items() if key not in ("size", "blocks")}
    job.timings_s["total"] = round(time.perf_counter() - begun, 3)
    record |= {
        "warnings": _warnings(job, record, journal),
        "environment": environment(),
        "timings_s": dict(job.timings_s),
    }
    _publish(staged, out, record, final_recipe, job, overwrite=overwrite)
    return Result(out, record, exit_code)


def _check_destination(out: Path, source: Path, *, overwrite: bool) -> None:
    """Refuse a bad destination before the model is loaded."""
    if source.is_dir():
        check_out(out, source, overwrite=overwrite)


def _search(
    job: Job,
    layers: dict[str, StoredLinear],
    tables: dict[str, QTensor],
    ranking: Callable[[], tuple[str, ...]],
    journal: Journal,
    progress: Progress,
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
        "n_tuning": job.tuning.n_units,
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


def _verify(
    job: Job, staged: Path, plan: Plan, layers: dict[str, StoredLinear], tables: dict[str, QTensor]
) -> list[dict[str, Any]]:
    batch, limit = _VERIFY_SHAPE[0], min(_VERIFY_SHAPE[1], job.model.max_tokens)
    pool = [
        i for ids in job.model.tokenize(job.probe) for i in ids
    ]  # real tokens: random ones are far from what it knows
    ids = np.resize(np.array(pool, dtype=np.int64), (batch, limit))
    mask = torch.ones(batch, limit, dtype=torch.int64)
    # With nothing quantized the directory is an ordinary float model, and is loaded as one.
    ours = candidate if quantized_names(plan) or tables else dequantized
    expected = [
        np.stack([row.reshape(-1) for row in make(job, plan, layers, tables).rows(torch.from_numpy(ids), mask)])
        for make in (ours, dequantized)
    ]
    calls = sum(site.calls for site in job.sites if site.name in quantized_names(plan))
    targets = list(job.recipe.targets)
    if job.loaded.task != "embedding":
        targets = [target for target in targets if target != "sentence-transformers"]
    elif "transformers" in targets and "sentence-transformers" not in targets:
        targets.append("sentence-transformers")
    return verify(staged, targets, ids, expected[0], expected[1], calls)


def _warnings(job: Job, record: Record, journal: Journal) -> list[str]:
    texts = list(job.warnings)
    if record["evaluation"]["n_held_out"] < 2:
        texts.append("the metric gives a single number: choices were made on the same data that the verdict is about")
    texts += [f"{row['target']}: {row['detail']}" for row in record["verify"] if row["ok"] is not True]
    if journal.reused:
        texts.append(f"{journal.reused} measurements were taken by an earlier run that was interrupted")
    return texts


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
