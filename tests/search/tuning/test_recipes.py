"""A configuration as a recipe, and the parameters that a recipe has."""

import pytest

from bitwright.numerics.schemes import SCHEMES
from bitwright.recipe import Recipe, make_recipe, range_of, read_recipe, shipped_recipes
from bitwright.search.tuning.recipes import Facts, as_recipe, manual_config, recipe_space, sensitivity_groups
from bitwright.search.tuning.space import completed, default_config, draw
from tests.test_recipe import FFN, QUERY

ROLES = frozenset({"qkv", "attention_output", "ffn"})


def facts(recipe: Recipe, **more: object) -> Facts:
    return Facts((SCHEMES[recipe.scheme],), ROLES, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if name != "auto"])
def test_the_default_configuration_is_the_recipe(name: str) -> None:
    recipe = read_recipe(shipped_recipes()[name])
    space = recipe_space(recipe, facts(recipe))
    assert as_recipe(recipe, space, default_config(space), facts(recipe)) is recipe
    assert manual_config(space) == completed(space, manual_config(space))


def test_parameters_follow_the_scheme() -> None:
    def names(**said: object) -> set[str]:
        recipe = make_recipe(said)
        return {parameter.name for parameter in recipe_space(recipe, facts(recipe))}

    static, dynamic, four = names(scheme="w8a8_static"), names(), names(scheme="w4a16_channel")
    assert {"range_attention", "range_ffn", "percent", "alpha"} <= static
    assert not {"range_attention", "percent"} & (dynamic | four)
    assert {"clip", "damping"} <= four
    transforms = {
        scheme: recipe_space(make_recipe({"scheme": scheme}), facts(make_recipe({"scheme": scheme})))[0].choices
        for scheme in ("w8a8", "w4a16_channel", "w4a8_channel")
    }
    assert transforms == {
        "w8a8": ("none", "smoothquant"), "w4a16_channel": ("none", "awq"),
        "w4a8_channel": ("none", "smoothquant", "awq"),
    }  # fmt: skip


def test_a_configuration_becomes_a_recipe() -> None:
    recipe = make_recipe({"scheme": "w8a8_static", "rules": [{"match": "*.query", "range": "absmax"}]})
    told = facts(recipe, groups=(("u0",), ("u1", "u2")))
    space = recipe_space(recipe, told)
    config = completed(
        space,
        {"transform": "smoothquant", "alpha": 0.5, "rounding": "gptq", "damping": 0.1, "range_attention": "mse",
         "range_ffn": "percentile", "percent": 99.9, "samples": 64, "mix": "code", "keep_1": True},
    )  # fmt: skip
    made = as_recipe(recipe, space, config, told)
    assert made.method == "smoothquant_gptq"
    assert (made.options.alpha, made.options.damping, made.options.percent) == (0.5, 0.1, 99.9)
    assert made.calibration.samples == 64
    assert made.calibration.mix is not None
    assert made.calibration.mix.code == 3
    assert range_of(made, FFN) == "percentile"
    assert range_of(made, QUERY) == "absmax"  # the user's rule comes first
    assert [rule.match for rule in made.rules if rule.scheme == "16bit"] == ["u1", "u2"]
    assert make_recipe(made.model_dump(mode="json")) == made


def test_every_configuration_is_a_recipe_that_can_be_read() -> None:
    import random

    rng = random.Random(0)
    for scheme in ("w8a8", "w8a8_static_symmetric", "w4a16_channel", "w4a8"):
        recipe = make_recipe({"scheme": scheme})
        space = recipe_space(recipe, facts(recipe))
        for config in (draw(space, rng) for _ in range(40)):
            made = as_recipe(recipe, space, config, facts(recipe))
            assert make_recipe(made.model_dump(mode="json")) == made
            hash(made)


def test_groups_are_the_most_sensitive_units() -> None:
    assert sensitivity_groups("abcdefghij") == (("a",), ("b", "c"), ("d", "e", "f", "g"))
    assert sensitivity_groups("ab") == (("a",), ("b",))
