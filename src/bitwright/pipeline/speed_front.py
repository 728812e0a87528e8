"""`--min-speedup`: variants with more and fewer units in 16 bit, each written, timed and judged; which to take."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from bitwright.evaluate import paired_bootstrap
from bitwright.pipeline.job import Job
from bitwright.pipeline.measuring import run_task
from bitwright.pipeline.study import BENCH_SHAPES
from bitwright.pipeline.variants import write_variant
from bitwright.progress import Progress
from bitwright.quantizing.layers import Quantized
from bitwright.record import Record
from bitwright.runtime.bench import Schedule, run_bench
from bitwright.runtime.bench_runtimes import OURS
from bitwright.runtime.load import load
from bitwright.search.fallback import Step, Units, measured_step
from bitwright.search.measured import Measure
from bitwright.search.pareto import Point, beginnings, choose, pareto

MOST_VARIANTS = 8  # that lie on the disk at once: `beginnings`, and what the fallback search would keep
_ROUNDS = 5
_PLACE = ".front"  # of the checkpoints; hidden: what a killed run leaves goes when the next one begins


@dataclass(frozen=True, slots=True)
class Front:
    """What was measured. steps: every combination that was tried. facts: the Record's `front` and `speed`."""

    chosen: Step
    steps: list[Step]
    facts: Record


def measure_front(
    job: Job, quantized: Quantized, units: Units, enough: Step, measure: Measure, folder: Path, progress: Progress
) -> Front:
    """Measure beginnings of the ranking, and take one: of those that are as fast as the recipe asks, and inside its
    budget, the best.

    Args:
        job: its recipe says how many times as fast as the faster of float32 and bf16 the result should be.
        units: the ranking, most sensitive first. enough: what the fallback search would take; timed too.
        folder: a work directory, for the variants' checkpoints, all at once; they are removed again.

    Returns:
        The choice looks at tuning data only; the losses on held-out data stand beside it for the reader.
    """
    tried = sorted({*beginnings(units), enough.kept}, key=len)
    steps = [measured_step(job.recipe, kept, measure) for kept in progress.track(tried, "losses for the front")]
    places = {_label(number): folder / _PLACE / str(number) for number in range(len(tried))}
    (folder / _PLACE).mkdir()
    try:
        for step, place in zip(steps, places.values(), strict=True):
            write_variant(job.with_recipe(step.recipe), quantized, place)
        speed = run_bench(
            places[OURS], others={label: place for label, place in places.items() if label != OURS},
            schedule=Schedule(BENCH_SHAPES, torch.get_num_threads(), _ROUNDS), source=job.opened.loaded.path,
            rivals=False, progress=progress,
        )  # fmt: skip
        held_out = _held_out(job, list(places.values()), progress)
    finally:
        shutil.rmtree(folder / _PLACE, ignore_errors=True)
    points = [Point(step, _speedup(speed["rows"], label)) for step, label in zip(steps, places, strict=True)]
    min_speedup = job.recipe.budget.min_speedup
    assert min_speedup is not None
    chosen, met = choose(points, job.recipe.budget.max_loss, min_speedup)
    rows = [
        {
            "n_fallback": len(point.step.kept),
            "units": list(point.step.kept),
            "speedup": point.speedup,
            "loss": point.loss,
            "loss_upper": point.bound,
            "held_out": interval,
            "bytes": point.step.measured.bytes_,
            "on_front": on_front,
            "chosen": point is chosen,
        }
        for point, interval, on_front in zip(points, held_out, pareto(points), strict=True)
    ]
    front = {"min_speedup": min_speedup, "met": met, "rows": rows, "n_units": len(units)}
    return Front(chosen.step, steps, {"front": front, "speed": _as_ours(speed, _label(points.index(chosen)))})


def _label(number: int) -> str:
    return OURS if number == 0 else f"{OURS} {number}"


def _held_out(job: Job, places: Sequence[Path], progress: Progress) -> list[dict[str, float]]:
    """The loss of each written variant on held-out data, with its bounds."""
    reference = run_task(job.scored.held_out, job.model, progress, "held-out texts, float")
    found = []
    for number, place in enumerate(places, 1):
        model = load(place, trust_remote_code=job.opened.loaded.trust_remote_code)
        outputs = run_task(job.scored.held_out, model, progress, f"held-out texts, variant {number} of {len(places)}")
        interval = paired_bootstrap(job.scored.held_out, reference, outputs, seed=job.recipe.seed)
        found.append({"loss": interval.loss, "lower": interval.lower, "upper": interval.upper})
    return found


def _speedup(rows: Sequence[dict[str, Any]], label: str) -> float:
    """Times as fast as the faster of float32 and bf16: the geometric mean over shapes."""
    ratios = [min(row["ratio_to_fp32"], row["ratio_to_bf16"]) for row in rows if row["runtime"] == label]
    return float(prod(ratios) ** (1 / len(ratios)))


def _as_ours(speed: dict[str, Any], label: str) -> dict[str, Any]:
    """A benchmark of all variants as that of one, which then bears our name."""

    def renamed(name: str) -> str | None:
        return OURS if name == label else None if name.startswith(OURS) else name

    rows = [{**row, "runtime": renamed(row["runtime"])} for row in speed["rows"] if renamed(row["runtime"])]
    per_runtime = {
        key: {renamed(name): value for name, value in speed[key].items() if renamed(name)}
        for key in ("peak_rss_mib", "load_s", "cosine_to_fp32")
    }
    return speed | per_runtime | {"rows": rows}
