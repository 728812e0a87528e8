"""Searches for the smallest model: which units (linears that share an input) get more bits, and which schemes they may
get.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

from bitwright.errors import TargetError
from bitwright.pipeline.job import Job
from bitwright.pipeline.measuring import distances
from bitwright.pipeline.variants import write_variant
from bitwright.plan import Plan
from bitwright.progress import Progress
from bitwright.quantizing.layers import Quantized
from bitwright.recipe import FLOAT, Recipe
from bitwright.record import ALL_INT8, Smallest
from bitwright.search.fallback import Step
from bitwright.search.journal import Journal
from bitwright.search.ladder import Ladders, Move, ladders, moved
from bitwright.search.measured import Measure
from bitwright.search.smallest import find_smallest

_PLACE = ".int8"  # of the all-INT8 checkpoint; hidden: what a killed run leaves goes when the next one begins


def job_ladders(job: Job) -> Ladders:
    """The schemes with more bits for each unit that the plan quantizes, in order. If a target of the recipe cannot read
    8 bits beside the plan's schemes, 16 bit is the next step, and `job.warnings` says so.

    Raises:
        TargetError: there is such a target, and a goal that needs all steps.
    """
    climbs = ladders(job.plan, float_inputs=job.opened.streams)
    eight = next((Move(unit, schemes[0]) for unit, schemes in climbs.items() if schemes[0] != FLOAT), None)
    if eight is None:
        return climbs
    try:
        job.with_recipe(moved(job.recipe, (eight,), ""))
    except TargetError as error:
        if job.recipe.budget.goal is not None:
            raise TargetError(f"goal: {job.recipe.budget.goal} mixes 4, 8 and 16 bits, but {error}") from None
        job.warnings.append(f"layers that lose too much go back to 16 bit directly, not to 8 bit first: {error}")
        return dict.fromkeys(climbs, (FLOAT,))
    return climbs


def search_smallest(
    job: Job, quantized: Quantized, climbs: Ladders, measure: Measure, journal: Journal, work: Path, progress: Progress
) -> tuple[Step, list[Step]]:
    """The outcome and the steps of `find_smallest`. The outcome's recipe names its schemes and has no goal any more."""
    probe = distances(job, quantized, journal, work, progress)
    chosen, steps = find_smallest(job.recipe, climbs, probe, measure)
    budget = chosen.recipe.budget.model_copy(update={"goal": None})
    return replace(chosen, recipe=chosen.recipe.model_copy(update={"budget": budget})), steps


def smallest_facts(job: Job, final: Plan, climbs: Ladders) -> Smallest:
    """The Record's `smallest`. final: the plan of the outcome."""
    return Smallest(_linear_bytes(final), _linear_bytes(job.with_recipe(_all_int8(job.recipe, climbs)).plan))


@contextmanager
def all_int8(job: Job, quantized: Quantized, climbs: Ladders, work: Path, *, timed: bool) -> Iterator[dict[str, Path]]:
    """The checkpoint with 8 bits for every unit, by the name of its rows in a benchmark; removed at the end. Nothing if
    the job has no goal or nothing will be timed.
    """
    if job.recipe.budget.goal is None or job.opened.streams or not timed:
        yield {}
        return
    try:
        write_variant(job.with_recipe(_all_int8(job.recipe, climbs)), quantized, work / _PLACE)
        yield {ALL_INT8: work / _PLACE}
    finally:
        rmtree(work / _PLACE, ignore_errors=True)


def _all_int8(recipe: Recipe, climbs: Ladders) -> Recipe:
    return moved(recipe, tuple(Move(unit, schemes[0]) for unit, schemes in climbs.items()), "")


def _linear_bytes(plan: Plan) -> int:
    """The bytes of a plan's linears in the file, with scales, zero points and biases."""
    return sum(row.bytes_after for row in plan if row.is_linear)
