"""Judges a result after it is written: its loss on held-out data, its outputs in each runtime, and its speed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bitwright.errors import ExitCode
from bitwright.evaluate import Task, joined, loss_interval, metric_found
from bitwright.evaluate.kinds import Outputs
from bitwright.pipeline.facts import Compared, evaluation_facts, verify_in_runtimes
from bitwright.pipeline.job import Job
from bitwright.pipeline.measuring import run_task
from bitwright.pipeline.request import Asked
from bitwright.pipeline.speed_front import Timed
from bitwright.pipeline.study import timed_shapes
from bitwright.pipeline.value_histograms import describe_distributions
from bitwright.progress import Progress
from bitwright.quantizing.layers import Quantized
from bitwright.record import Distribution, Evaluation, Front, Speed, Verification, from_data
from bitwright.runtime.bench import Schedule, run_bench
from bitwright.runtime.bench_load import LoadLimit
from bitwright.runtime.load import load
from bitwright.runtime.model import Model


@dataclass(frozen=True, slots=True)
class Judged:
    """The measurements of a written result: its loss on held-out data, its outputs in each runtime, and its speed. All
    are None if it was not judged. on_engine: whether Bitwright's engine gave the outputs that were judged.
    """

    exit_code: int = ExitCode.DONE
    evaluation: Evaluation | None = None
    distributions: tuple[Distribution, ...] | None = None
    verified: tuple[Verification, ...] | None = None
    speed: Speed | None = None
    on_engine: bool = True


def judge_result(
    job: Job, staged: Path, quantized: Quantized, asked: Asked, timed: Timed | None, progress: Progress, *,
    searched: bool, beside: Mapping[str, Path],
) -> Judged:  # fmt: skip
    """Judge a written result, in steps that the job's clock counts.

    timed: what the front measured, the result's speed among it; None where there is no front. searched: whether a
    choice was made on the tuning side, which then does not judge. beside: checkpoints that are timed beside the result,
    by name.
    """
    with job.timed("evaluate"):
        final = load_judged(job, staged)
        compared = _compare(job, _judging(job, searched), final, progress)
        elsewhere = None
        if job.scored.elsewhere is not None:
            known = None if job.reference is None else job.reference.elsewhere
            elsewhere = _compare(job, _Side(job.scored.elsewhere, known), final, progress)
        backend = final.backend
        del final  # what follows needs the memory
    evaluation = evaluation_facts(job, compared, elsewhere)
    if why := metric_found(compared.task.kind, compared.float_outputs, compared.quant_outputs)[1]:
        job.warnings.append(why)
    distributions = None if job.opened.streams else describe_distributions(job, quantized)
    with job.timed("verify"):
        progress.say("checking the result in a clean process, in every target runtime")
        verified = verify_in_runtimes(job, staged, quantized, backend)
    speed = None if timed is None else timed.speed
    if asked.speed and timed is None:
        with job.timed("speed"):
            schedule = Schedule(timed_shapes(job), torch.get_num_threads(), rounds=3, limit=LoadLimit())
            measured = run_bench(
                staged, schedule, source=job.opened.loaded.directory, others=beside, rivals=False, progress=progress
            )
        speed = from_data(Speed, {key: value for key, value in measured.items() if key not in ("size", "blocks")})
    exit_code = _exit_code(evaluation, verified, None if timed is None else timed.front)
    return Judged(exit_code, evaluation, distributions, verified, speed, backend.startswith("engine"))


def load_judged(job: Job, directory: Path) -> Model:
    """A result as it is judged: as it runs here. Perplexity is a matter of small differences, and nothing is timed, so
    that the generic path takes it in float32 around the integers."""
    trusted = job.opened.loaded.trust_remote_code
    found = load(directory, trust_remote_code=trusted)
    if job.opened.streams and found.generic is found:
        return load(directory, trust_remote_code=trusted, compute="float32")
    return found


@dataclass(frozen=True, slots=True)
class _Side:
    """A task, and the float model's outputs for it, if they are known."""

    task: Task
    float_outputs: Outputs | None


def _judging(job: Job, searched: bool) -> _Side:
    """The task that judges: the held-out side, plus the tuning side of built-in texts if nothing was chosen on it."""
    scored, known = job.scored, job.reference
    held_out = _Side(scored.held_out, None if known is None else known.held_out)
    if searched or not scored.by_kind or scored.calibration or scored.polishing:
        return held_out
    outputs = None
    if known is not None and known.held_out is not None and known.tuning is not None:
        outputs = [*known.held_out, *known.tuning]
    return _Side(joined(scored.held_out, scored.tuning), outputs)


def _compare(job: Job, side: _Side, final: Model, progress: Progress) -> Compared:
    task, float_outputs = side.task, side.float_outputs
    if float_outputs is None:
        float_outputs = run_task(task, job.model, progress, "held-out texts, float model")
    outputs = run_task(task, final, progress, "held-out texts, quantized model")
    interval = loss_interval(task, float_outputs, outputs, seed=job.recipe.seed)
    return Compared(task, float_outputs, outputs, interval)


def _exit_code(evaluation: Evaluation, verified: Sequence[Verification], front: Front | None) -> int:
    if any(row.ok is False for row in verified):  # whatever was judged is not what a runtime gives
        return ExitCode.FAILED
    met = evaluation.verdict == "met" or evaluation.accepted_point_estimate
    return ExitCode.DONE if met and (front is None or front.met) else ExitCode.NOT_SHOWN
