"""`--min-speedup`: variants with more and fewer units in 16 bit, each written, timed and judged; which to take."""

import shutil
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from bitwright.evaluate import paired_bootstrap
from bitwright.numerics.qtensor import QTensor
from bitwright.pipeline.job import Job
from bitwright.pipeline.study import BENCH_SHAPES
from bitwright.pipeline.variants import run_task, write_variant
from bitwright.progress import Progress
from bitwright.quantizing.layers import Quantized
from bitwright.record import Record
from bitwright.runtime.bench import run_bench
from bitwright.runtime.bench_runtimes import OURS
from bitwright.runtime.load import load
from bitwright.search.fallback import Step, Units
from bitwright.search.front import Point, beginnings, choose, pareto

MOST_VARIANTS = 8  # that lie on the disk at once: `beginnings`, and what the fallback search would keep
_ROUNDS = 5
_PLACE = ".front"  # of the checkpoints; hidden: what a killed run leaves goes when the next one begins


def measure_front(
    job: Job, quantized: Quantized, tables: dict[str, QTensor], units: Units, enough: Units,
    measure: Callable[[Units], Step], min_speedup: float, folder: Path, progress: Progress,
) -> tuple[Units, Record]:  # fmt: skip
    """Measure beginnings of the ranking, and take one.

    Args:
        units: the ranking, most sensitive first. enough: those that the fallback search would keep; measured too.
        measure: the loss on tuning data with these units in 16 bit.
        min_speedup: how many times as fast as the faster of float32 and bf16 the result should be.
        folder: a work directory, for the variants' checkpoints, all at once; they are removed again.

    Returns:
        (units to keep, the Record's `front` and `speed`). The choice looks at tuning data only; the losses on held-out
        data stand beside it for the reader.
    """
    tried = sorted({*beginnings(units), enough}, key=len)
    steps = [measure(kept) for kept in progress.track(tried, "losses for the front")]
    places = {_label(number): folder / _PLACE / str(number) for number in range(len(tried))}
    (folder / _PLACE).mkdir()
    try:
        for kept, place in zip(tried, places.values(), strict=True):
            plan = job.plan_for(job.recipe.with_fallback(kept, "tried"))
            write_variant(job, plan, quantized, tables, place)
        speed = run_bench(
            places[OURS], others={label: place for label, place in places.items() if label != OURS},
            source=job.loaded.path, shapes=BENCH_SHAPES, threads=torch.get_num_threads(), rounds=_ROUNDS, rivals=False,
            progress=progress.say, track=progress.track,
        )  # fmt: skip
        held_out = _held_out(job, list(places.values()), progress)
    finally:
        shutil.rmtree(folder / _PLACE, ignore_errors=True)
    speedups = [_speedup(speed["rows"], label) for label in places]
    points = [Point(step.kept, step.loss, step.loss_upper, x) for step, x in zip(steps, speedups, strict=True)]
    chosen, met = choose(points, job.recipe.budget.max_loss, min_speedup)
    rows = [
        {
            "n_fallback": len(point.kept),
            "units": list(point.kept),
            "speedup": point.speedup,
            "loss": point.loss,
            "loss_upper": point.loss_upper,
            "held_out": interval,
            "bytes": step.bytes_,
            "on_front": on_front,
            "chosen": point is chosen,
        }
        for point, step, interval, on_front in zip(points, steps, held_out, pareto(points), strict=True)
    ]
    front = {"min_speedup": min_speedup, "met": met, "rows": rows, "n_units": len(units)}
    return chosen.kept, {"front": front, "speed": _as_ours(speed, _label(points.index(chosen)))}


def _label(number: int) -> str:
    return OURS if number == 0 else f"{OURS} {number}"


def _held_out(job: Job, places: Sequence[Path], progress: Progress) -> list[dict[str, float]]:
    """The loss of each written variant on held-out data, with its bounds."""
    reference = run_task(job.held_out, job.model, progress, "held-out texts, float")
    found = []
    for number, place in enumerate(places, 1):
        model = load(place, trust_remote_code=job.trust_remote_code)
        outputs = run_task(job.held_out, model, progress, f"held-out texts, variant {number} of {len(places)}")
        interval = paired_bootstrap(job.held_out, reference, outputs, seed=job.recipe.seed)
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
