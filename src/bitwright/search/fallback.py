"""Finds the units that need more bits so that the loss fits the budget. A unit is the set of linears that share an
input.

The moves (a unit, and the scheme of more bits that it gets) come ranked, most sensitive first. The search finds a
length of the ranking whose first moves suffice, by doubling and halving, and then lets go of those among them that are
not needed, because rankings err. Of n moves that takes O(log n) measurements, and every combination that is returned
was measured.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bitwright.recipe import Recipe
from bitwright.record import LayerRow, StepRow
from bitwright.search.ladder import Move, Moves, moved, settled
from bitwright.search.measured import Measure, Measured

WHY = "to stay inside the budget"


@dataclass(frozen=True, slots=True)
class Step:
    """A measured combination: its moves (at most one per unit), its recipe and its measurements."""

    kept: Moves
    recipe: Recipe
    measured: Measured


def measured_step(recipe: Recipe, kept: Moves, measure: Measure) -> Step:
    """The recipe with these moves made, measured."""
    tried = moved(recipe, kept, WHY)
    return Step(kept, tried, measure(tried))


def taken(recipe: Recipe, kept: Moves, measure: Measure, steps: dict[Moves, Step]) -> Step:
    """The step of these moves: the one that is there, else measured and added to `steps`."""
    if kept not in steps:
        steps[kept] = measured_step(recipe, kept, measure)
    return steps[kept]


def find_fallback(recipe: Recipe, ranking: Callable[[], Sequence[Move]], measure: Measure) -> tuple[Step, list[Step]]:
    """Find few moves that bring the upper bound of the loss inside the recipe's budget.

    Where more bits never lose more, they are the shortest sufficient beginning of the ranking without those of its
    moves that can be spared; where they may, still a combination that was measured to be inside.

    Args:
        recipe: with everything that it names quantized.
        ranking: moves, most sensitive first, those of one unit with ever more bits, of which the last counts; called
            only if everything quantized is over the budget.
        measure: of the recipe with some of these moves made. No combination is asked for twice.

    Returns:
        (the outcome, every step measured, in order). If no bound comes inside the budget, the estimates decide; if none
        of them does either, all moves are made. The caller judges the outcome on other data.
    """
    steps: dict[Moves, Step] = {}
    max_loss = recipe.budget.max_loss

    def step(moves: Moves) -> Step:
        return taken(recipe, settled(moves), measure, steps)

    def bound_inside(moves: Moves) -> bool:
        return step(moves).measured.bound <= max_loss

    def estimate_inside(moves: Moves) -> bool:
        return step(moves).measured.loss <= max_loss

    def outcome() -> Moves:
        if bound_inside(()):
            return ()
        moves = tuple(ranking())
        for inside in (bound_inside, estimate_inside):
            enough = _shortest(moves, inside)
            if enough is not None:
                return _needed(enough, inside, limit=2 * len(moves).bit_length())
        return moves

    return step(outcome()), list(steps.values())


def units_by_error(account: Sequence[LayerRow]) -> tuple[str, ...]:
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
            unit=step.kept[-1].unit if step.kept else None,
            units=tuple(move.unit for move in step.kept),
            schemes=tuple(move.scheme for move in step.kept),
            chosen=chosen is not None and step.kept == chosen.kept,
            loss=step.measured.loss,
            loss_upper=step.measured.bound,
            bytes=step.measured.bytes_,
        )
        for step in steps
    )


def _shortest(moves: Moves, inside: Callable[[Moves], bool]) -> Moves | None:
    """A beginning of `moves` that is inside while the one shorter by one is not: the shortest, if longer ones are never
    worse. None if not even all of them are, nor any beginning that doubling meets.
    """
    outside, length = -1, 0
    while not inside(moves[:length]):
        if length == len(moves):
            return None
        outside, length = length, min(max(1, 2 * length), len(moves))
    while length - outside > 1:
        middle = (outside + length) // 2
        outside, length = (outside, middle) if inside(moves[:middle]) else (middle, length)
    return moves[:length]


def _needed(moves: Moves, inside: Callable[[Moves], bool], limit: int) -> Moves:
    """`moves` without those that can be spared, the least sensitive tried first; the last one is known to be needed.

    All but the last are tried at once, and what cannot be spared whole is tried in halves, so that few needed among
    many cost few tries. After `limit` tries the rest is kept.
    """
    kept = moves
    groups = [moves[:-1]] if len(moves) > 1 else []
    for _ in range(limit):
        if not groups:
            break
        group = groups.pop()
        fewer = tuple(move for move in kept if move not in group)
        if inside(fewer):
            kept = fewer
        elif len(group) > 1:
            half = len(group) // 2
            groups += [group[:half], group[half:]]
    return kept
