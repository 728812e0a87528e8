"""What decides on int8 attention sees one callable, so that its laws can be stated on oracles."""

import math
from collections.abc import Callable

import pytest

from bitwright.recipe import Recipe, attention_of, make_recipe
from bitwright.search.attention import MAX_ADDED, Settled, float_attention, settle_attention
from bitwright.search.measured import Measure, Measured

NAMES = [f"layer.{i}.attention" for i in range(6)]
POINT = 0.01


def oracle(added: dict[str, float], plain: float = 0.002, margin: float = 0.001) -> tuple[Measure, list[Recipe]]:
    """The loss is what linears cost, and what each block with int8 attention adds."""
    asked: list[Recipe] = []

    def measure(recipe: Recipe) -> Measured:
        assert recipe not in asked
        asked.append(recipe)
        loss = plain + sum(more for name, more in added.items() if attention_of(recipe, name)[0] != "float")
        return Measured(loss, loss + margin, None, 100)

    return measure, asked


def in_float(settled: Settled) -> list[str]:
    return [name for name in NAMES if attention_of(settled.applied(Recipe()), name)[0] == "float"]


def test_all_blocks_where_it_costs_next_to_nothing() -> None:
    measure, asked = oracle(dict.fromkeys(NAMES, 0.004 * POINT))
    settled = settle_attention(Recipe(), NAMES, measure)
    assert in_float(settled) == []
    assert settled.applied(Recipe()) == Recipe()
    assert [recipe.attention for recipe in asked] == ["float", "auto"]  # the first is what linears were chosen with
    assert asked[0] == float_attention(Recipe())
    assert settled.cost is not None
    assert settled.cost.loss - settled.cost.loss_float == pytest.approx(0.024 * POINT)


@pytest.mark.parametrize(
    ("costly", "kept"),
    [({2: 0.2}, {2}), ({2: 0.2, 5: 0.3}, {2, 5}), ({2: 0.02, 5: 0.02}, {2}),
     (dict.fromkeys(range(6), 1.0), {*range(6)})],
)  # fmt: skip
def test_the_blocks_that_cost_most_are_computed_in_float(costly: dict[int, float], kept: set[int]) -> None:
    added = {name: POINT * costly.get(i, 0.0) for i, name in enumerate(NAMES)}
    measure, asked = oracle(added)
    settled = settle_attention(Recipe(), NAMES, measure)
    assert in_float(settled) == [NAMES[i] for i in sorted(kept)]
    assert settled.cost is not None
    assert settled.cost.loss - settled.cost.loss_float <= MAX_ADDED
    assert [row.name for row in settled.cost.rows] == NAMES
    assert len(asked) <= 2 + len(NAMES) + len(NAMES).bit_length()
    worst = max(costly, key=lambda i: costly[i])
    reason = attention_of(settled.applied(Recipe()), NAMES[worst])[1]
    assert f"would add {sum(costly.values()):.2f} points of loss, and 0.03 are allowed" in reason
    assert f"this block alone {costly[worst]:.2f}" in reason


def test_it_does_not_break_a_budget_that_float_attention_keeps() -> None:
    recipe = make_recipe({"budget": {"max_loss": 0.0031}})  # the bound with float attention: 0.003
    added = dict.fromkeys(NAMES, 0.0) | {NAMES[1]: 0.02 * POINT}
    settled = settle_attention(recipe, NAMES, oracle(added)[0])
    assert in_float(settled) == [NAMES[1]]
    assert "breaks the budget" in settled.rules[0].reason
    over = make_recipe({"budget": {"max_loss": 0.001}})  # which neither keeps
    assert in_float(settle_attention(over, NAMES, oracle(added)[0])) == []


def test_outputs_that_are_not_finite_are_refused() -> None:
    settled = settle_attention(Recipe(), NAMES, oracle({NAMES[3]: math.inf})[0])
    assert in_float(settled) == [NAMES[3]]


def test_a_loss_that_cannot_tell_it_from_nothing_allows_it() -> None:
    added = {NAMES[0]: 0.1 * POINT}
    assert in_float(settle_attention(Recipe(), NAMES, oracle(added)[0])) == [NAMES[0]]
    assert in_float(settle_attention(Recipe(), NAMES, oracle(added)[0], resolution=1 / 500)) == []


def test_what_the_recipe_asks_for_is_kept_and_measured() -> None:
    recipe = make_recipe({"attention": "int8"})
    measure, asked = oracle(dict.fromkeys(NAMES, POINT))
    settled = settle_attention(recipe, NAMES, measure)
    assert settled.applied(recipe) == recipe
    assert len(asked) == 2
    assert settled.cost is not None
    assert settled.cost.loss - settled.cost.loss_float == pytest.approx(6 * POINT)


def test_only_auto_leaves_the_choice_to_us() -> None:
    changes: Callable[[str], str] = lambda asked: float_attention(make_recipe({"attention": asked})).attention  # noqa: E731
    assert [changes(asked) for asked in ("auto", "int8", "float")] == ["float", "int8", "float"]
