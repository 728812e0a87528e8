"""Which units to keep in 16 bit so that the loss fits the budget.

The units come ranked, most sensitive first. The search finds a length of the ranking whose first units suffice, by
doubling and halving, and then lets go of those among them that are not needed, because rankings err. Of n units that
takes O(log n) measurements, and every combination that is returned was measured.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bitwright.recipe import Recipe
from bitwright.record import LayerRow, StepRow
from bitwright.search.measured import Measure, Measured

Units = tuple[str, ...]

_REASON = "sensitive: kept in 16 bit to stay inside the budget"


@dataclass(frozen=True, slots=True)
class Step:
    """One combination that was measured: the units in 16 bit, the recipe that keeps them so, and what it is like."""

    kept: Units
    recipe: Recipe
    measured: Measured


def measured_step(recipe: Recipe, kept: Units, measure: Measure) -> Step:
    """The recipe with these units in 16 bit, measured."""
    tried = recipe.with_fallback(kept, _REASON)
    return Step(kept, tried, measure(tried))


def find_fallback(recipe: Recipe, ranking: Callable[[], Sequence[str]], measure: Measure) -> tuple[Step, list[Step]]:
    """Few units that, kept in 16 bit, bring the upper bound of the loss inside the recipe's budget.

    Where keeping more never loses more, they are the shortest sufficient beginning of the ranking without those of
    its units that can be spared; where it may, still a combination that was measured to be inside.

    Args:
        recipe: with everything that it names quantized.
        ranking: units, most sensitive first; called only if everything quantized is over the budget.
        measure: of the recipe with some of these units, in the order of the ranking, in 16 bit. No combination is asked
            for twice.

    Returns:
        (the outcome, every step measured, in order). If no bound comes inside the budget, the estimates decide; if none
        of them does either, everything is kept. The caller judges the outcome on other data.
    """
    steps: dict[Units, Step] = {}
    max_loss = recipe.budget.max_loss

    def step(kept: Units) -> Step:
        if kept not in steps:
            steps[kept] = measured_step(recipe, kept, measure)
        return steps[kept]

    def bound_inside(kept: Units) -> bool:
        return step(kept).measured.bound <= max_loss

    def estimate_inside(kept: Units) -> bool:
        return step(kept).measured.loss <= max_loss

    def outcome() -> Units:
        if bound_inside(()):
            return ()
        units = tuple(ranking())
        for inside in (bound_inside, estimate_inside):
            enough = _enough(units, inside)
            if enough is not None:
                return _needed(enough, inside, limit=2 * len(units).bit_length())
        return units

    return step(outcome()), list(steps.values())


def units_by_error(account: Sequence[LayerRow]) -> Units:
    """Names of the units, largest relative output error of one of their linears first, of rounding its weight and its
    input together: what is known of every layer that was calibrated, without running the model once more. Rows without
    an error come last, in their order.
    """
    worst: dict[str, float] = {}
    for row in account:
        error = -1.0 if row.error is None else math.hypot(row.error, row.error_input or 0.0)
        worst[row.unit] = max(worst.get(row.unit, -1.0), error)
    return tuple(sorted(worst, key=lambda unit: -worst[unit]))


def step_rows(steps: Sequence[Step], chosen: Step | None = None) -> tuple[StepRow, ...]:
    """The Record's `steps`. chosen: the outcome of the search, which is marked."""
    return tuple(
        StepRow(
            n_fallback=len(step.kept),
            unit=step.kept[-1] if step.kept else None,
            units=step.kept,
            chosen=chosen is not None and step.kept == chosen.kept,
            loss=step.measured.loss,
            loss_upper=step.measured.bound,
            bytes=step.measured.bytes_,
        )
        for step in steps
    )


def _enough(units: Units, inside: Callable[[Units], bool]) -> Units | None:
    """A beginning of `units` that is inside while the one shorter by one is not: the shortest, if longer ones are never
    worse. None if not even all of them are, nor any beginning that doubling meets.
    """
    outside, length = -1, 0
    while not inside(units[:length]):
        if length == len(units):
            return None
        outside, length = length, min(max(1, 2 * length), len(units))
    while length - outside > 1:
        middle = (outside + length) // 2
        outside, length = (outside, middle) if inside(units[:middle]) else (middle, length)
    return units[:length]


def _needed(units: Units, inside: Callable[[Units], bool], limit: int) -> Units:
    """`units` without those that can be spared, the least sensitive tried first; the last one is known to be needed.

    All but the last are tried at once, and what cannot be spared whole is tried in halves, so that few needed among
    many cost few tries. After `limit` tries the rest is kept.
    """
    kept = units
    groups = [units[:-1]] if len(units) > 1 else []
    for _ in range(limit):
        if not groups:
            break
        group = groups.pop()
        fewer = tuple(unit for unit in kept if unit not in group)
        if inside(fewer):
            kept = fewer
        elif len(group) > 1:
            half = len(group) // 2
            groups += [group[:half], group[half:]]
    return kept
