"""The search for the smallest model sees two callables, so that its laws can be stated on oracles."""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from bitwright.errors import RecipeError
from bitwright.recipe import FLOAT, Recipe, make_recipe
from bitwright.record import PlanRow
from bitwright.search.fallback import Step
from bitwright.search.ladder import ladders
from bitwright.search.measured import Measured
from bitwright.search.smallest import Probed, beginning, check_goal, find_smallest

BITS = {None: 4, "w8a8": 8, FLOAT: 16}
SHARE = 0.3  # of what 4 bits everywhere lose, allowed
ROOM = 1 + 0.05 * (1 + math.sqrt(2))  # what a loss needs if its bound lies 5 % above it
Schemes = Mapping[str, str | None]


class Oracle:
    """A model whose units cost outputs and weigh bytes; refuses to be asked twice."""

    def __init__(self, costs: Mapping[str, float], sizes: Mapping[str, int], interplay: float = 0.0) -> None:
        self.costs, self.sizes, self.interplay = costs, sizes, interplay
        self.probes: list[Recipe] = []
        self.measures: list[Recipe] = []

    def schemes(self, recipe: Recipe) -> dict[str, str | None]:
        return dict.fromkeys(self.costs) | {str(rule.match): rule.scheme for rule in reversed(recipe.rules)}

    def distance(self, schemes: Schemes) -> float:
        """8 bits leave a hundredth of what 4 cost; neighbours of 4 bits each cost more together."""
        left = {None: 1.0, "w8a8": 0.01, FLOAT: 0.0}
        each = [cost * left[schemes[unit]] for unit, cost in self.costs.items()]
        return sum(each) + self.interplay * sum(a * b for a, b in pairwise(each))

    def loss(self, schemes: Schemes) -> float:
        return self.distance(schemes)

    def bytes_(self, schemes: Schemes) -> int:
        return sum(size * BITS[schemes[unit]] // 4 for unit, size in self.sizes.items())

    def probe(self, recipe: Recipe) -> Probed:
        assert recipe not in self.probes
        self.probes.append(recipe)
        return Probed(self.distance(self.schemes(recipe)), self.bytes_(self.schemes(recipe)))

    def measure(self, recipe: Recipe) -> Measured:
        assert recipe not in self.measures
        self.measures.append(recipe)
        loss = self.loss(self.schemes(recipe))
        return Measured(loss, 1.05 * loss, None, self.bytes_(self.schemes(recipe)))

    def allowed(self) -> float:
        return SHARE * sum(self.costs.values())

    def search(self, max_loss: float) -> tuple[Step, list[Step]]:
        recipe = Recipe()
        recipe = recipe.model_copy(update={"budget": recipe.budget.model_copy(update={"max_loss": max_loss})})
        return find_smallest(recipe, dict.fromkeys(self.costs, ("w8a8", FLOAT)), self.probe, self.measure)


def random_oracle(seed: int, interplay: float = 0.0, kind: type[Oracle] = Oracle) -> Oracle:
    rng = np.random.default_rng(seed)
    units = [f"u{i:02}" for i in range(24)]
    costs = dict(zip(units, map(float, rng.lognormal(-6, 1.2, 24)), strict=True))
    return kind(costs, dict(zip(units, map(int, rng.choice([100, 300, 400], 24)), strict=True)), interplay)


def fewest_bytes(oracle: Oracle, max_loss: float) -> int:
    """By a search that measures everything after every move, and spares what it can at the end."""
    schemes: dict[str, str | None] = dict.fromkeys(oracle.costs)

    def gain(unit: str) -> float:
        return (oracle.distance(schemes) - oracle.distance(schemes | {unit: "w8a8"})) / oracle.sizes[unit]

    while oracle.distance(schemes) > max_loss:
        schemes[max((unit for unit in schemes if schemes[unit] is None), key=gain)] = "w8a8"
    for unit in sorted(schemes, key=lambda unit: -oracle.sizes[unit]):
        if schemes[unit] and oracle.distance(schemes | {unit: None}) <= max_loss:
            schemes[unit] = None
    return oracle.bytes_(schemes)


def test_where_4_bits_fit_nothing_moves_and_nothing_is_probed() -> None:
    oracle = random_oracle(0)
    chosen, steps = oracle.search(0.9)
    assert (chosen.kept, len(steps), oracle.probes) == ((), 1, [])


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("interplay", [0.0, 30.0])
def test_the_outcome_is_inside_with_room_for_other_texts_and_nearly_the_smallest(seed: int, interplay: float) -> None:
    oracle = random_oracle(seed, interplay)
    chosen, steps = oracle.search(oracle.allowed())
    assert chosen in steps
    assert chosen.measured.loss * ROOM <= oracle.allowed()
    assert chosen.measured.bytes_ == oracle.bytes_(oracle.schemes(chosen.recipe))
    assert chosen.measured.bytes_ <= 1.1 * fewest_bytes(oracle, oracle.allowed() / ROOM)
    assert len(oracle.measures) <= 24
    assert len(oracle.probes) <= 4 * 24  # far from one for each pair of units


def test_a_bound_for_new_text_needs_no_more_room() -> None:
    class ForNewText(Oracle):
        def measure(self, recipe: Recipe) -> Measured:
            return replace(super().measure(recipe), for_new_text=True)

    oracle, usual = random_oracle(3, kind=ForNewText), random_oracle(3)
    chosen, _ = oracle.search(oracle.allowed())
    assert chosen.measured.bound <= oracle.allowed() < chosen.measured.loss * ROOM
    assert chosen.measured.bytes_ <= usual.search(usual.allowed())[0].measured.bytes_


def test_what_a_move_brings_is_measured_where_the_search_stands() -> None:
    """Two units that ruin the outputs in the same way: after one of them has moved, what the other seemed to bring at
    first is brought already."""

    class Twins(Oracle):
        def distance(self, schemes: Schemes) -> float:
            ruined = schemes["u00"] is None and schemes["u01"] is None
            return float(ruined) + sum(c for u, c in self.costs.items() if u > "u01" and schemes[u] is None)

    costs = {"u00": 1.0, "u01": 1.0} | {f"u{i:02}": 0.01 * i for i in range(2, 8)}
    chosen, _ = Twins(costs, dict.fromkeys(costs, 100)).search(0.2)
    assert len({"u00", "u01"} & {move.unit for move in chosen.kept}) == 1
    assert {move.scheme for move in chosen.kept} == {"w8a8"}


@pytest.mark.parametrize("seed", range(20))
def test_a_noisy_loss_ends_the_search_with_what_was_measured_inside(seed: int) -> None:
    class Noisy(Oracle):
        def loss(self, schemes: Schemes) -> float:
            digits = [BITS[scheme] for scheme in schemes.values()]
            return self.distance(schemes) * float(np.random.default_rng([seed, *digits]).uniform(0.5, 2))

    oracle = random_oracle(seed, kind=Noisy)
    chosen, steps = oracle.search(oracle.allowed())
    assert chosen in steps
    assert chosen.measured.loss * ROOM <= oracle.allowed()


def test_a_sample_too_small_for_a_bound_is_decided_by_the_loss_and_nothing_helps_a_hopeless_one() -> None:
    class Unbounded(Oracle):
        def measure(self, recipe: Recipe) -> Measured:
            return Measured(super().measure(recipe).loss, math.inf, None, 0)

    class Hopeless(Oracle):
        def loss(self, schemes: Schemes) -> float:
            return 0.9

    oracle = random_oracle(1, kind=Unbounded)
    assert oracle.search(oracle.allowed())[0].measured.loss <= oracle.allowed()
    oracle = random_oracle(1, kind=Hopeless)
    chosen, steps = oracle.search(0.01)
    assert {move.scheme for move in chosen.kept} == {FLOAT}
    assert (len(steps), oracle.probes) == (2, [])


def test_outputs_that_are_no_numbers_are_left_first() -> None:
    class Broken(Oracle):
        def distance(self, schemes: Schemes) -> float:
            return math.inf if schemes["u05"] is None else super().distance(schemes)

    oracle = random_oracle(2, kind=Broken)
    chosen, _ = oracle.search(oracle.allowed())
    assert "u05" in {move.unit for move in chosen.kept}
    assert chosen.measured.loss <= oracle.allowed()


GOAL = {"budget": {"goal": "smallest"}}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"scheme": "w8a8"}, "names w8a8"),
        ({"rules": [{"role": "ffn", "scheme": "w4a16"}]}, "names w4a16"),
        ({"budget": {"goal": "smallest", "min_speedup": 2}}, "min_speedup = 2"),
    ],
)
def test_a_goal_beside_what_it_chooses_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError, match=f"{said}.* leave one of the two out"):
        check_goal(make_recipe(GOAL | fields))
    check_goal(make_recipe({key: value for key, value in fields.items() if key != "budget"}))


def test_a_goal_begins_with_4_bits_and_with_what_the_recipe_says() -> None:
    asked = make_recipe(GOAL | {"method": "gptq", "seed": 7, "rules": [{"role": "head", "scheme": "16bit"}]})
    for language_model, scheme in ((False, "w4a16_g32"), (True, "w4a16")):
        recipe = beginning(asked, language_model=language_model)
        assert (recipe.scheme, recipe.method, recipe.seed, recipe.rules) == (scheme, "gptq", 7, asked.rules)
        assert recipe.budget.goal == "smallest"
        assert beginning(make_recipe(GOAL), language_model=language_model).method == "awq_gptq"
        assert beginning(Recipe(), language_model=language_model) == Recipe()


def test_ladders_lead_from_each_scheme_to_16_bit() -> None:
    def row(unit: str, scheme: str, role: str = "ffn") -> PlanRow:
        return PlanRow(unit, 0, role, unit, (8, 32), scheme, "rtn", 0, 0, "")

    plan = (row("a", "w4a16"), row("b", "w4a8"), row("c", "w8a8"), row("d", "16bit"), row("e", "int8", "embedding"))
    encoder, decoder = (ladders(plan, float_inputs=float_inputs) for float_inputs in (False, True))
    assert encoder == {"a": ("w8a8", FLOAT), "b": ("w8a8", FLOAT), "c": (FLOAT,)}
    assert decoder == encoder | {"a": ("w8a16", FLOAT)}
