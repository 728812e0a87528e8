"""Searches for the smallest model inside a loss: chooses 4, 8 or 16 bits for each unit.

Everything begins with the fewest bits. A move gives one unit the next scheme of its ladder. Moves are ranked by how
much nearer they bring the outputs to the float model's, per byte that they add. That distance is smooth: a few texts
tell two moves apart, which the budget's loss on as many does not. What a move brings depends on those made before, so
the best are measured again after every batch. The loss only says when it is enough, and which moves can be spared.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from bitwright.errors import RecipeError
from bitwright.recipe import FLOAT, SHIPPED, Recipe, read_recipe
from bitwright.search.fallback import WHY, Step, taken
from bitwright.search.ladder import Ladders, Move, Moves, moved, rung_by_rung, settled
from bitwright.search.measured import Measure, Measured

# Where the search begins: the recipes of 4 bits that lose least.
_ENCODER, _LANGUAGE_MODEL = SHIPPED / "encoder-int4.yaml", SHIPPED / "llm-int4.yaml"
_BATCH = 0.25  # of the units, at most, that move between two rankings


@dataclass(frozen=True, slots=True)
class Probed:
    """The values that rank moves. distance: of the outputs from the float model's, ≥ 0, infinite if they are not
    finite. bytes_: of the weights.
    """

    distance: float
    bytes_: int


Probe = Callable[[Recipe], Probed]


def check_goal(recipe: Recipe) -> None:
    """Refuse a goal together with settings that it chooses itself.

    Raises:
        RecipeError: the recipe names a scheme other than 16bit in a rule, or a speed.
    """
    if recipe.budget.goal is None:
        return
    named = [recipe.scheme] if "scheme" in recipe.model_fields_set else []
    named += [rule.scheme for rule in recipe.rules if rule.scheme not in (None, FLOAT)]
    if named:
        raise RecipeError(
            f"goal: {recipe.budget.goal} chooses the scheme of every linear, but the recipe also names {named[0]}; "
            "leave one of the two out. Rules may still keep linears in 16bit"
        )
    if recipe.budget.min_speedup is not None:
        raise RecipeError(
            f"goal: {recipe.budget.goal} and min_speedup = {recipe.budget.min_speedup:g} choose by different "
            "measures; leave one of the two out"
        )


def beginning(recipe: Recipe, *, language_model: bool) -> Recipe:
    """Where the search for a goal begins: 4 bits for everything, with all that the recipe says. Without a goal, the
    recipe itself.

    Raises:
        RecipeError: as `check_goal`.
    """
    check_goal(recipe)
    if recipe.budget.goal is None:
        return recipe
    said = {name: getattr(recipe, name) for name in recipe.model_fields_set}
    return read_recipe(_LANGUAGE_MODEL if language_model else _ENCODER).model_copy(update=said)


def find_smallest(recipe: Recipe, ladders: Ladders, probe: Probe, measure: Measure) -> tuple[Step, list[Step]]:
    """Find few and cheap moves after which the loss is inside the recipe's budget, also on other texts of the same
    kinds.

    Args:
        recipe: with the fewest bits for everything. ladders: of its units.
        probe: the distance and the bytes of the recipe with some moves made. measure: its loss and bound. Neither is
            asked twice for the same moves.

    Returns:
        (the outcome, every step measured, in order). Of the criteria in `_CRITERIA` the first decides that the model
        with the most bits fulfils; if it fulfils none, that is the outcome. The caller judges on other data.
    """
    steps: dict[Moves, Step] = {}
    place = {unit: number for number, unit in enumerate(ladders)}
    probed: dict[Moves, Probed] = {}

    def kept(moves: Moves) -> Moves:
        return tuple(sorted(settled(moves), key=lambda move: place[move.unit]))

    def step(moves: Moves) -> Step:
        return taken(recipe, kept(moves), measure, steps)

    def at(moves: Moves) -> Probed:
        key = kept(moves)
        if key not in probed:
            probed[key] = probe(moved(recipe, key, WHY))
        return probed[key]

    everything = rung_by_rung(tuple(ladders), ladders)
    max_loss = recipe.budget.max_loss
    if _sure(step(()).measured) <= max_loss:
        return step(()), list(steps.values())
    most_bits = step(everything).measured
    fulfilled = [criterion for criterion in _CRITERIA if criterion(most_bits) <= max_loss]
    if not fulfilled:
        return step(everything), list(steps.values())

    criterion = fulfilled[0]

    def near(wanted: float, moves: Moves) -> bool:
        return at(moves).distance <= wanted

    def cost(moves: Moves) -> float:
        return criterion(step(moves).measured)

    def inside(moves: Moves) -> bool:
        return cost(moves) <= max_loss

    made: Moves = ()
    known: dict[Move, float] = {}
    while not inside(made) and (open_ := _open(made, ladders)):
        here = at(made)

        def gain(move: Move, made: Moves = made, here: Probed = here) -> float:
            there = at((*made, move))
            return _less(here.distance, there.distance) / max(1, there.bytes_ - here.bytes_)

        ranked = _best(open_, math.ceil(_BATCH * len(ladders)), known, gain)
        wanted = here.distance * max_loss / cost(made)
        # As far as loss and distance fall together; then the shortest part of it that is enough.
        batch = _part(ranked, made, partial(near, wanted))
        made = (*made, *_part(batch, made, inside))
    for move in reversed(made):  # what was taken last brought least
        fewer = tuple(other for other in made if other != move)
        # Most losses that would be over need not be measured: they fall and rise with the distance.
        allowed = at(made).distance * max_loss / cost(made) if cost(made) > 0 else math.inf
        if near(allowed, fewer) and inside(fewer):
            made = fewer
    return step(made), list(steps.values())


def _sure(measured: Measured) -> float:
    """A loss that other texts, as many and of the same kinds, will hardly find exceeded: not by it, but by *their*
    bound. The bound lies z·σ above the loss; the loss there differs from the loss here by √2·σ, and has a bound of its
    own: loss + (1 + √2)·z·σ. A bound for new text says it already.
    """
    if measured.for_new_text:
        return measured.bound
    return measured.loss + (1 + math.sqrt(2)) * (measured.bound - measured.loss)


_CRITERIA: tuple[Callable[[Measured], float], ...] = (
    _sure, lambda measured: measured.bound, lambda measured: measured.loss,
)  # fmt: skip


def _open(made: Moves, ladders: Ladders) -> list[Move]:
    """The next move of each unit that has one."""
    reached = {move.unit: ladders[move.unit].index(move.scheme) + 1 for move in settled(made)}
    rungs = {unit: reached.get(unit, 0) for unit in ladders}
    return [Move(unit, ladders[unit][rung]) for unit, rung in rungs.items() if rung < len(ladders[unit])]


def _best(moves: Collection[Move], n: int, known: dict[Move, float], value: Callable[[Move], float]) -> list[Move]:
    """The n moves of the largest value. Of those that had a value before, only what comes up among the best is valued
    again: the others' has most likely sunk too. Mutates `known`."""
    fresh: set[Move] = set()
    while True:
        best = sorted(moves, key=lambda move: -known.get(move, math.inf))[:n]
        stale = [move for move in best if move not in fresh]
        if not stale:
            return best
        known |= {move: value(move) for move in stale}
        fresh |= set(stale)


def _part(moves: Sequence[Move], made: Moves, enough: Callable[[Moves], bool]) -> Moves:
    """The shortest beginning of `moves`, of at least one, that is enough after those made, if a longer one is too; all
    of them if they are not."""
    outside, length = 0, len(moves)
    if enough((*made, *moves)):
        while length - outside > 1:
            middle = (outside + length) // 2
            outside, length = (outside, middle) if enough((*made, *moves[:middle])) else (middle, length)
    return tuple(moves[:length])


def _less(before: float, after: float) -> float:
    """How far a distance fell; 0 if it stays infinite."""
    return 0.0 if before == after else before - after
