"""Finds the result for `--min-speedup`: writes, times and judges variants with different layers in 16 bit."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from statistics import median

import torch

from bitwright.evaluate import loss_interval
from bitwright.pipeline.job import Job
from bitwright.pipeline.measuring import run_task
from bitwright.pipeline.study import timed_shapes
from bitwright.pipeline.variants import write_variant
from bitwright.progress import Progress
from bitwright.quantizing.layers import Quantized
from bitwright.record import ORIGINALS, Front, FrontRow, HeldOut, Speed, from_data
from bitwright.runtime.bench import Schedule, run_bench
from bitwright.runtime.bench_load import LoadLimit, quiet_rounds
from bitwright.runtime.bench_runtimes import OURS
from bitwright.runtime.bench_summary import Block
from bitwright.runtime.load import load
from bitwright.search.fallback import Step, measured_step
from bitwright.search.ladder import Moves
from bitwright.search.measured import Measure
from bitwright.search.pareto import Point, beginnings, choose, pareto

MOST_VARIANTS = 8  # that lie on the disk at once: `beginnings`, and what the fallback search would keep
_ROUNDS = 5
_PLACE = ".front"  # of the checkpoints; hidden: what a killed run leaves goes when the next one begins


@dataclass(frozen=True, slots=True)
class Timed:
    """The measurements of all variants. steps: every combination that was tried. front, speed: as in the Record."""

    chosen: Step
    steps: list[Step]
    front: Front
    speed: Speed


def measure_front(
    job: Job, quantized: Quantized, moves: Moves, enough: Step, measure: Measure, folder: Path, progress: Progress
) -> Timed:
    """Measure variants along the ranking, and take the best one that is fast enough and inside the budget.

    Args:
        job: its recipe says how many times as fast as the faster of float32 and bf16 the result should be.
        moves: the ranking, most sensitive first. enough: what the fallback search would take; timed too.
        folder: a work directory, for the variants' checkpoints, all at once; they are removed again.

    Returns:
        The choice looks at tuning data only; the losses on held-out data stand beside it for the reader.
    """
    tried = sorted(dict.fromkeys((*beginnings(moves), enough.kept)), key=len)
    steps = [
        measured_step(job.recipe, kept, measure) for kept in progress.track(tried, "measuring the loss of variants")
    ]
    places = {_label(number): folder / _PLACE / str(number) for number in range(len(tried))}
    (folder / _PLACE).mkdir()
    try:
        for step, place in zip(steps, places.values(), strict=True):
            write_variant(job.with_recipe(step.recipe), quantized, place)
        measured = run_bench(
            places[OURS], others={label: place for label, place in places.items() if label != OURS},
            schedule=Schedule(timed_shapes(job), torch.get_num_threads(), _ROUNDS, limit=LoadLimit()),
            source=job.opened.loaded.directory, rivals=False, progress=progress,
        )  # fmt: skip
        held_out = _held_out(job, list(places.values()), progress)
    finally:
        shutil.rmtree(folder / _PLACE, ignore_errors=True)
    speed = from_data(Speed, {key: value for key, value in measured.items() if key not in ("size", "blocks")})
    blocks = [from_data(Block, block) for block in measured["blocks"]]
    quiet = {(row.batch, row.tokens, row.work) for row in speed.rows} == {block.shape for block in blocks}
    points = [
        Point(step, speedup(blocks, label, LoadLimit() if quiet else None))
        for step, label in zip(steps, places, strict=True)
    ]
    min_speedup = job.recipe.budget.min_speedup
    assert min_speedup is not None
    chosen, met = choose(points, job.recipe.budget.max_loss, min_speedup)
    rows = tuple(
        FrontRow(
            n_fallback=len(point.step.kept),
            units=tuple(move.unit for move in point.step.kept),
            speedup=point.speedup,
            loss=point.loss,
            loss_upper=point.bound,
            held_out=interval,
            bytes=point.step.measured.bytes_,
            on_front=on_front,
            chosen=point is chosen,
        )
        for point, interval, on_front in zip(points, held_out, pareto(points), strict=True)
    )
    front = Front(min_speedup, met and quiet, rows, n_units=len({move.unit for move in moves}), busy=not quiet)
    return Timed(chosen.step, steps, front, _as_ours(speed, _label(points.index(chosen))))


def _label(number: int) -> str:
    return OURS if number == 0 else f"{OURS} {number}"


def _held_out(job: Job, places: Sequence[Path], progress: Progress) -> list[HeldOut]:
    """The loss of each written variant on held-out data, with its bounds."""
    reference = None if job.reference is None else job.reference.held_out
    if reference is None:
        reference = run_task(job.scored.held_out, job.model, progress, "held-out texts, float model")
    found = []
    for number, place in enumerate(places, 1):
        model = load(place, trust_remote_code=job.opened.loaded.trust_remote_code)
        outputs = run_task(job.scored.held_out, model, progress, f"held-out texts, variant {number} of {len(places)}")
        interval = loss_interval(job.scored.held_out, reference, outputs, seed=job.recipe.seed)
        found.append(HeldOut(interval.loss, interval.lower, interval.upper))
    return found


def speedup(blocks: Sequence[Block], label: str, limit: LoadLimit | None) -> float:
    """Times as fast as the fastest that runs the original: the geometric mean over shapes of the median over the rounds
    that count."""
    ms = {(block.shape, block.round, block.runtime): block.median_ms for block in blocks}
    names = {block.runtime for block in blocks} & {name for names in ORIGINALS.values() for name in names}
    ratios = [
        min(median(ms[shape, r, name] / ms[shape, r, label] for r in rounds) for name in names)
        for shape, rounds in quiet_rounds(blocks, limit).items()
    ]
    return float(prod(ratios) ** (1 / len(ratios)))


def _as_ours(speed: Speed, label: str) -> Speed:
    """The benchmark of all variants, with the chosen variant under our name."""

    originals = {name for names in ORIGINALS.values() for name in names}

    def renamed(name: str) -> str | None:
        return OURS if name == label else None if name.startswith(OURS) and name not in originals else name

    def of_one(numbers: Mapping[str, float]) -> dict[str, float]:
        return {new: number for name, number in numbers.items() if (new := renamed(name))}

    return replace(
        speed,
        rows=tuple(replace(row, runtime=name) for row in speed.rows if (name := renamed(row.runtime))),
        peak_rss_mib=of_one(speed.peak_rss_mib),
        load_s=of_one(speed.load_s),
        cosine_to_fp32=of_one(speed.cosine_to_fp32),
    )
