"""What is known of a result only once it is written: its loss on held-out data, its outputs in runtimes, its speed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bitwright.evaluate import paired_bootstrap
from bitwright.pipeline.facts import evaluation_facts, verify_in_runtimes
from bitwright.pipeline.job import Job
from bitwright.pipeline.measuring import run_task
from bitwright.pipeline.request import Asked
from bitwright.pipeline.speed_front import Timed
from bitwright.pipeline.study import BENCH_SHAPES
from bitwright.pipeline.value_histograms import describe_distributions
from bitwright.progress import Progress
from bitwright.quantizing.layers import Quantized
from bitwright.record import Distribution, Evaluation, Front, Speed, Verification, from_data
from bitwright.runtime.bench import Schedule, run_bench
from bitwright.runtime.load import load

_EXIT_UNVERIFIED, _EXIT_OVER_BUDGET = 1, 3


@dataclass(frozen=True, slots=True)
class Judged:
    """What the Record says of a result that was written: its loss on held-out data, its outputs in each runtime, its
    speed; all None where it was not judged.
    """

    exit_code: int = 0
    evaluation: Evaluation | None = None
    distributions: tuple[Distribution, ...] | None = None
    verified: tuple[Verification, ...] | None = None
    speed: Speed | None = None


def judge_result(
    job: Job, staged: Path, quantized: Quantized, asked: Asked, timed: Timed | None, progress: Progress
) -> Judged:
    """Judge a result that was written, in the steps that the job's clock counts.

    timed: what the front measured, the result's speed among it; None where there is no front.
    """
    with job.timed("evaluate"):
        # Perplexity is a matter of small differences, and nothing here is timed: float32 around the integers.
        trusted = job.opened.loaded.trust_remote_code
        final = load(staged, trust_remote_code=trusted, compute="float32" if job.opened.streams else "auto")
        float_outputs = None if job.reference is None else job.reference.held_out
        if float_outputs is None:
            float_outputs = run_task(job.scored.held_out, job.model, progress, "held-out texts, float")
        quant_outputs = run_task(job.scored.held_out, final, progress, "held-out texts, quantized")
        del final  # what follows needs the memory
        interval = paired_bootstrap(job.scored.held_out, float_outputs, quant_outputs, seed=job.recipe.seed)
    evaluation = evaluation_facts(job, interval, float_outputs, quant_outputs)
    distributions = None if job.opened.streams else describe_distributions(job, quantized)
    with job.timed("verify"):
        progress.say("reloading the result in a clean process, in every target runtime")
        verified = verify_in_runtimes(job, staged, quantized)
    speed = None if timed is None else timed.speed
    if asked.speed and timed is None and not job.opened.streams:
        with job.timed("speed"):
            schedule = Schedule(BENCH_SHAPES, torch.get_num_threads(), rounds=3)
            measured = run_bench(staged, schedule, source=job.opened.loaded.directory, rivals=False, progress=progress)
        speed = from_data(Speed, {key: value for key, value in measured.items() if key not in ("size", "blocks")})
    exit_code = _exit_code(evaluation, verified, None if timed is None else timed.front)
    return Judged(exit_code, evaluation, distributions, verified, speed)


def _exit_code(evaluation: Evaluation, verified: Sequence[Verification], front: Front | None) -> int:
    if evaluation.verdict != "met" and not evaluation.accepted_point_estimate:
        return _EXIT_OVER_BUDGET
    if any(row.ok is False for row in verified):
        return _EXIT_UNVERIFIED
    return 0 if front is None or front.met else _EXIT_OVER_BUDGET
