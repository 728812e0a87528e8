"""A recipe is data: the first rule that matches decides, and what cannot be meant is refused by name."""

import itertools
import time
from pathlib import Path

import pytest

from bitwright.calibration.passages import ROLES
from bitwright.errors import RecipeError
from bitwright.models.sites import LinearSite
from bitwright.recipe import Mix, Recipe, check_rules, make_recipe, range_of, read_recipe, recipe_yaml, scheme_of

QUERY = LinearSite("encoder.layer.0.attention.self.query", 0, "qkv", "encoder.layer.0.qkv")
FFN = LinearSite("encoder.layer.0.output.dense", 0, "ffn", "encoder.layer.0.output.dense")
POOLER = LinearSite("pooler.dense", None, "head", "pooler.dense")


def test_first_rule_that_matches_decides() -> None:
    recipe = make_recipe({"rules": [{"match": "*.query", "scheme": "16bit"}, {"role": "qkv", "scheme": "w8a8_static"}]})
    assert scheme_of(recipe, QUERY)[0] == "16bit"
    swapped = make_recipe({"rules": list(reversed(recipe.model_dump()["rules"]))})
    assert scheme_of(swapped, QUERY)[0] == "w8a8_static"
    assert scheme_of(recipe, FFN) == ("w8a8", "rtn", "the default of the recipe")


def test_heads_stay_in_16_bit_unless_a_rule_says_otherwise() -> None:
    assert scheme_of(Recipe(), POOLER)[0] == "16bit"
    assert scheme_of(make_recipe({"rules": [{"role": "head", "scheme": "w8a8"}]}), POOLER)[0] == "w8a8"


def test_match_and_role_must_both_hold() -> None:
    recipe = make_recipe({"rules": [{"match": "encoder.layer.0.*", "role": "ffn", "scheme": "16bit"}]})
    assert scheme_of(recipe, FFN)[0] == "16bit"
    assert scheme_of(recipe, QUERY)[0] == "w8a8"


def test_scheme_and_method_are_decided_apart() -> None:
    recipe = make_recipe({"rules": [{"role": "qkv", "method": "rtn"}, {"match": "*.query", "scheme": "w4a16"}]})
    assert scheme_of(recipe, QUERY)[:2] == ("w4a16", "rtn")
    assert scheme_of(recipe, FFN)[:2] == ("w8a8", "rtn")


def test_fallback_names_its_units_literally() -> None:
    odd = LinearSite("a[0].b*", 0, "ffn", "a[0].b*")
    other = LinearSite("a0.bc", 0, "ffn", "a0.bc")
    recipe = Recipe().with_fallback(("a[0].b*",), "sensitive")
    assert scheme_of(recipe, odd) == ("16bit", "cast", "sensitive")
    assert scheme_of(recipe, other)[0] == "w8a8"


def test_yaml_round_trip(tmp_path: Path) -> None:
    recipe = make_recipe(
        {
            "scheme": "w8a8_static",
            "rules": [{"role": "head", "scheme": "16bit", "reason": "ü: why"}],
            "budget": {"max_loss": 0.02},
        }
    )
    (tmp_path / "r.yaml").write_text(recipe_yaml(recipe), encoding="utf-8")
    assert read_recipe(tmp_path / "r.yaml") == recipe


# Each list holds the one before nine times: 300 bytes stand for 10^9 values.
LAUGHS = "- &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"- &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shceme: w8a8", r"unknown key `shceme` \(did you mean 'scheme'\?\)"),
        ("rules: [{rol: ffn, scheme: 16bit}]", r"unknown key `rules.0.rol` \(did you mean 'role'\?\)"),
        ("rules: [{role: ffn, shceme: 16bit}]", r"unknown key `rules.0.shceme` \(did you mean 'scheme'\?\)"),
        ("seed: -1", r"`seed`"),
        ("range: absmux", r"'absmux' is unknown \(did you mean 'absmax'\?\)"),
        ("budget: {max_los: 1}", r"did you mean 'max_loss'"),
        ("scheme: w8a9", r"'w8a9' is unknown \(did you mean 'w8a8'\?\)"),
        ("rules: [{role: fnn, scheme: 16bit}]", r"`rules.0.role`"),
        ("rules: [{scheme: 16bit}]", r"needs `match`"),
        ("attention: int4", r"`attention`"),
        ("rules: [{match: x, attention: auto}]", r"`rules.0.attention`"),
        ("rules: [{role: qkv, attention: float}]", r"a rule with `attention` needs `match`"),
        ("rules: [{match: x}]", r"needs `scheme`, `method`, `range` or several of them, or `attention`"),
        ("budget: {max_loss: 3}", r"`budget.max_loss`"),
        ("- a\n- b", r"a recipe must be a mapping"),
        ("a: [", r"is not YAML"),
        ("rules: " + "[" * 3000, r"is not YAML"),
        ("a: 1\nseed: " + "9" * 5000, r"line 2: this is not YAML"),
        ("seed: 2024-13-45", r"line 1: this is not YAML"),
        ("seed: !!int abc", r"line 1: this is not YAML"),
        ("seed: !!bool x", r"line 1: this is not YAML"),
        ("seed: !!python/object/apply:os.system [ls]", r"is not YAML"),
        (LAUGHS, r"a recipe must be a mapping"),
        ("a:\n" + LAUGHS, r"the aliases stand for \d+ values, more than 100000"),
        ("# " + "x" * (1 << 20), r"reads at most 1048576"),
    ],
)
def test_malformed_recipes_say_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    begun = time.process_time()
    with pytest.raises(RecipeError, match=message) as caught:
        read_recipe(path)
    assert time.process_time() - begun < 5  # no alias is written out
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        read_recipe(tmp_path / "none.yaml")


def test_a_rule_that_matches_nothing_names_the_nearest() -> None:
    recipe = make_recipe({"rules": [{"match": "encoder.layer.0.output.dens", "scheme": "16bit"}]})
    with pytest.raises(RecipeError, match=r"did you mean 'encoder\.layer\.0\.output\.dense'"):
        check_rules(recipe, [QUERY, FFN])
    with pytest.raises(RecipeError, match="role head matches nothing; this model has ffn, qkv"):
        check_rules(make_recipe({"rules": [{"role": "head", "scheme": "16bit"}]}), [QUERY, FFN])


def test_a_range_is_decided_apart_from_scheme_and_method() -> None:
    recipe = make_recipe(
        {
            "scheme": "w8a8_static",
            "range": "mse",
            "rules": [{"role": "qkv", "range": "entropy"}, {"role": "qkv"} | BITS],
        }
    )
    assert (range_of(recipe, QUERY), range_of(recipe, FFN)) == ("entropy", "mse")
    assert scheme_of(recipe, QUERY)[0] == "16bit"
    with pytest.raises(RecipeError, match=r"range 'entrpy' is unknown \(did you mean 'entropy'\?\)"):
        make_recipe({"rules": [{"role": "ffn", "range": "entrpy"}]})
    with pytest.raises(RecipeError, match="role router matches nothing"):
        check_rules(make_recipe({"rules": [{"role": "router", "range": "mse"}]}), [QUERY, FFN])


BITS = {"scheme": "16bit"}


def test_a_mix_names_the_kinds_that_methods_look_at() -> None:
    assert list(Mix.model_fields) == [kind for kind, part in ROLES.items() if part == "calibration"]
    made = make_recipe({"calibration": {"mix": {"code": 3}}})
    assert made.calibration.mix == Mix(code=3)
    hash(made)  # recipes are keys
    with pytest.raises(RecipeError, match=r"unknown key `calibration.mix.codes` \(did you mean 'code'\?\)"):
        make_recipe({"calibration": {"mix": {"codes": 3}}})
    with pytest.raises(RecipeError, match="every kind counts 0"):
        make_recipe({"calibration": {"mix": dict.fromkeys(Mix.model_fields, 0)}})


@pytest.mark.parametrize("options", [{"percent": 101}, {"percent": 50}, {"clip": 0}, {"clip": 1.5}])
def test_options_of_ranges_have_bounds(options: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=f"options.{next(iter(options))}"):
        make_recipe({"options": options})
