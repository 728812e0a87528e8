"""The fallback search sees two callables, so that its laws can be stated on oracles."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from bitwright.recipe import FLOAT, Recipe
from bitwright.record import LayerRow
from bitwright.search.fallback import Step, find_fallback, step_rows, units_by_error
from bitwright.search.ladder import Move, Moves, moved, rung_by_rung, settled
from bitwright.search.measured import Measure, Measured

Units = tuple[str, ...]


def units_of(n: int) -> Units:
    return tuple(f"u{i:03}" for i in range(n))


def search(
    ranking: Callable[[], Units], loss_of: Callable[[Units], tuple[float, float]], max_loss: float
) -> tuple[Units, list[Step]]:
    """The outcome where `loss_of` gives loss and bound, and only what a recipe says is kept in 16 bit counts."""
    chosen, steps = find_fallback(budgeted(max_loss), lambda: to_16_bit(ranking()), by_units(loss_of))
    assert chosen in steps
    return tuple(move.unit for move in chosen.kept), steps


def to_16_bit(units: Units) -> Moves:
    return tuple(Move(unit, FLOAT) for unit in units)


def budgeted(max_loss: float) -> Recipe:
    recipe = Recipe()  # without its check: here a loss counts units
    return recipe.model_copy(update={"budget": recipe.budget.model_copy(update={"max_loss": max_loss})})


def by_units(loss_of: Callable[[Units], tuple[float, float]]) -> Measure:
    def measure(recipe: Recipe) -> Measured:
        kept = tuple(str(rule.match) for rule in recipe.rules)
        return Measured(*loss_of(kept), None, 100 + len(kept))

    return measure


def additive(weights: dict[str, float], margin: float = 0.0) -> Callable[[Units], tuple[float, float]]:
    """The loss is the sum of what is not kept; the bound lies `margin` above it."""

    def loss_of(kept: Units) -> tuple[float, float]:
        loss = sum(weight for unit, weight in weights.items() if unit not in kept)
        return loss, loss + margin

    return loss_of


def test_everything_quantized_is_tried_first_and_ranking_is_not_asked() -> None:
    def never() -> Units:
        raise AssertionError("ranking was asked for")

    kept, steps = search(never, lambda kept: (0.001, 0.002), 0.01)
    assert (kept, len(steps)) == ((), 1)


@pytest.mark.parametrize("n", [1, 2, 5, 33, 240])
def test_shortest_beginning_of_the_ranking_in_logarithmically_many_measurements(n: int) -> None:
    units = units_of(n)
    for needed in {1, 2, n // 2 or 1, n}:
        # Only the number of units kept matters, so that none can be spared in favour of another.
        kept, steps = search(lambda: units, lambda kept: (n - len(kept), n - len(kept)), n - needed)
        assert kept == units[:needed]
        assert len(steps) <= 2 + 4 * math.ceil(math.log2(n + 1))
        assert len({step.kept for step in steps}) == len(steps)


@pytest.mark.parametrize("rank", [0, 1, 6, 19, 63])
def test_planted_bad_unit_is_the_only_one_kept_wherever_it_is_ranked(rank: int) -> None:
    units = units_of(64)
    weights = dict.fromkeys(units, 1e-5) | {units[rank]: 1.0}
    kept, steps = search(lambda: units, additive(weights), 0.01)
    assert kept == (units[rank],)
    assert len(steps) <= 3 * math.ceil(math.log2(64)) + 2


def test_two_planted_units_far_down_the_ranking_are_kept_alone() -> None:
    units = units_of(24)
    weights = dict.fromkeys(units, 1e-5) | {units[4]: 1.0, units[17]: 0.5}
    kept, _ = search(lambda: units, additive(weights), 0.01)
    assert kept == (units[4], units[17])


def test_what_is_returned_was_measured_inside_even_if_keeping_more_can_lose_more() -> None:
    rng, units = np.random.default_rng(0), units_of(17)
    for _ in range(200):
        losses: dict[Units, float] = {}

        def loss_of(kept: Units, losses: dict[Units, float] = losses) -> tuple[float, float]:
            loss = losses.setdefault(kept, float(rng.random()))
            return loss, loss

        kept, steps = search(lambda: units, loss_of, 0.2)
        assert kept == tuple(unit for unit in units if unit in kept)
        if any(step.measured.loss <= 0.2 for step in steps):
            assert losses[kept] <= 0.2
        else:
            assert kept == units


def test_estimates_decide_where_no_bound_comes_inside() -> None:
    units = units_of(6)
    weights = dict.fromkeys(units, 0.01)
    kept, steps = search(lambda: units, additive(weights, margin=math.inf), 0.025)
    assert kept == units[:4]
    assert max(len(step.kept) for step in steps) == 6
    kept, _ = search(lambda: units, additive(weights, margin=math.inf), 0.07)
    assert kept == ()


def test_everything_is_kept_where_nothing_helps() -> None:
    units = units_of(5)
    kept, steps = search(lambda: units, lambda kept: (0.5, 1.0), 0.01)
    assert kept == units
    assert [len(step.kept) for step in steps] == [0, 1, 2, 4, 5]
    assert search(lambda: (), lambda kept: (0.5, 1.0), 0.01)[0] == ()


def test_rows_name_what_was_kept_and_what_was_chosen() -> None:
    weights = {"a": 0.001, "b": 0.5, "c": 0.001}
    chosen, steps = find_fallback(budgeted(0.01), lambda: to_16_bit(("a", "b", "c")), by_units(additive(weights)))
    assert chosen.recipe == budgeted(0.01).with_fallback(("b",), chosen.recipe.rules[0].reason)
    rows = step_rows(steps, chosen)
    assert [row.units for row in rows] == [(), ("a",), ("a", "b"), ("b",)]
    assert [row.n_fallback for row in rows] == [0, 1, 2, 1]
    assert rows[2].schemes == (FLOAT, FLOAT)
    assert [row.unit for row in rows] == [None, "a", "b", "b"]
    assert [row.chosen for row in rows] == [False, False, False, True]


def test_units_are_ranked_by_the_worst_error_of_their_linears() -> None:
    errors = [("0.qkv", 0.1), ("0.qkv", 0.3), ("0.down", None), ("0.gate_up", 0.2), ("1.down", None)]
    account = [LayerRow("linear", 0, "ffn", unit, error=error) for unit, error in errors]
    assert units_by_error(account) == ("0.qkv", "0.gate_up", "0.down", "1.down")


BOTH = ("w8a8", FLOAT)


def by_moves(loss_of: Callable[[dict[str, str]], float]) -> Measure:
    """Loss and bound are one, and depend on the scheme that each unit got."""

    def measure(recipe: Recipe) -> Measured:
        loss = loss_of({str(rule.match): str(rule.scheme) for rule in reversed(recipe.rules)})
        return Measured(loss, loss, None, 0)

    return measure


@pytest.mark.parametrize("seed", range(20))
def test_8_bits_are_tried_before_16_and_only_what_8_do_not_help_gets_16(seed: int) -> None:
    """8 bits leave a tenth of what a unit costs, but for two in every other model, which no 8 bits hold."""
    rng, units = np.random.default_rng(seed), units_of(20)
    weights = dict(zip(units, map(float, rng.lognormal(-6, 1, 20)), strict=True))
    hard = {units[i] for i in rng.choice(20, 2, replace=False)} if seed % 2 else set()
    weights |= dict.fromkeys(hard, 1.0)

    def left(unit: str, scheme: str | None) -> float:
        return 0.0 if scheme == FLOAT else 0.1 if scheme == "w8a8" and unit not in hard else 1.0

    def loss_of(schemes: dict[str, str]) -> float:
        return sum(weight * left(unit, schemes.get(unit)) for unit, weight in weights.items())

    max_loss = 0.5 * sum(weight for unit, weight in weights.items() if unit not in hard)
    ranking = rung_by_rung(sorted(units, key=lambda unit: -weights[unit]), dict.fromkeys(units, BOTH))
    chosen, steps = find_fallback(budgeted(max_loss), lambda: ranking, by_moves(loss_of))
    assert loss_of(dict(chosen.kept)) <= max_loss
    assert {move.unit for move in chosen.kept if move.scheme == FLOAT} == hard
    assert 0 < len(chosen.kept) < 20
    assert len({step.kept for step in steps}) == len(steps) <= 30


def test_the_last_move_of_a_unit_counts_and_every_rule_is_of_one_unit() -> None:
    moves = rung_by_rung(("c", "b", "a"), {"a": BOTH, "b": (FLOAT,), "c": BOTH})
    assert moves == (("c", "w8a8"), ("a", "w8a8"), ("c", FLOAT), ("b", FLOAT), ("a", FLOAT))
    assert settled(moves[:3]) == (("a", "w8a8"), ("c", FLOAT))
    rules = moved(Recipe(scheme="w4a16"), settled(moves[:3]), "to test").rules
    assert [(rule.match, rule.scheme, rule.method) for rule in rules] == [("c", FLOAT, None), ("a", "w8a8", "rtn")]
    assert [rule.reason for rule in rules] == [f"sensitive: kept in {bits} bit to test" for bits in (16, 8)]
