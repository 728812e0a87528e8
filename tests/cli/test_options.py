"""Options and recipes together, and names that are written twice."""

import re
from pathlib import Path
from typing import Any

import pytest

from bitwright.cli.options import KIND_NAMES, METHOD_NAMES, RANGE_NAMES, SCHEME_STEMS, TARGET_NAMES, build_recipe
from bitwright.errors import InputError, RecipeError
from bitwright.evaluate.loaders import KINDS
from bitwright.methods import METHODS
from bitwright.numerics.ranges import RANGES, WEIGHT_RANGES
from bitwright.numerics.schemes import SCHEMES
from bitwright.recipe import AUTO
from bitwright.targets import TARGETS

OPTIONS: dict[str, Any] = {
    "recipe": None,
    "scheme": None,
    "method": None,
    "symmetric": False,
    "static": False,
    "range_": None,
    "embeddings": None,
    "seed": None,
}


@pytest.mark.parametrize(
    ("text", "options", "scheme"),
    [
        ("{}", {}, "w8a8"),
        ("{}", {"static": True, "range_": "mse"}, "w8a8_static"),
        ("scheme: w8a8_static", {"symmetric": True}, "w8a8_static_symmetric"),
        ("scheme: w8a8_symmetric", {"static": True}, "w8a8_static_symmetric"),
        ("scheme: 16bit", {"symmetric": True}, "w8a8_symmetric"),
        ("scheme: w8a8_static", {"range_": "entropy"}, "w8a8_static"),
        ("scheme: w4a16", {}, "w4a16"),
        ("scheme: w4a16", {"scheme": "nf4"}, "nf4"),
        ("{}", {"scheme": "w8a8_static", "range_": "mse"}, "w8a8_static"),
    ],
)
def test_options_lie_over_the_recipe(text: str, options: dict[str, Any], scheme: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        text + "\nseed: 7\nbudget: {max_loss: 0.2}\n" if text != "{}" else "seed: 7\n"
    )
    given = OPTIONS | options | {"recipe": tmp_path / "recipe.yaml"}
    recipe = build_recipe(**given, max_loss=0.03)
    assert recipe.scheme == scheme
    assert recipe.range == options.get("range_", "min_max")
    assert (recipe.seed, recipe.budget.max_loss) == (7, 0.03)


def test_attention_is_an_option(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("attention: float")
    given = OPTIONS | {"recipe": tmp_path / "recipe.yaml"}
    assert [build_recipe(**given, attention=asked).attention for asked in (None, "int8")] == ["float", "int8"]


def test_targets_are_those_that_are_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("targets: [vllm]")
    assert build_recipe(**OPTIONS | {"scheme": "ternary"}).targets is None
    assert build_recipe(**OPTIONS | {"recipe": tmp_path / "recipe.yaml"}).targets == ("vllm",)
    given = {"recipe": tmp_path / "recipe.yaml", "targets": ("bitwright", "transformers")}
    assert build_recipe(**OPTIONS | given).targets == ("bitwright", "transformers")


@pytest.mark.parametrize(
    "options",
    [
        {"scheme": "w4a16", "static": True},
        {"scheme": "w8a8", "symmetric": True},
        {"recipe": Path("llm-int4"), "static": True},
        {"scheme": "w4a16", "range_": "mse"},
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--s"):
        build_recipe(**OPTIONS | options)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    for option, name, near in (("scheme", "w4a61", "w4a16"), ("method", "gtpq", "gptq")):
        with pytest.raises(RecipeError, match=near):
            build_recipe(**OPTIONS | {option: name})


def test_recipes_by_name_or_file() -> None:
    recipe = build_recipe(**OPTIONS | {"recipe": Path("llm-int4"), "seed": 3})
    assert (recipe.scheme, recipe.seed) == ("w4a16", 3)


def test_ranges_are_for_static_scales() -> None:
    with pytest.raises(InputError, match="--static"):
        build_recipe(**OPTIONS | {"range_": "mse", "symmetric": True})


def test_copied_names_are_those_of_their_owners() -> None:
    assert [name for name in RANGES if name not in WEIGHT_RANGES] == list(RANGE_NAMES)
    assert set(KIND_NAMES) == set(KINDS) - {"label-free", "custom"}
    assert list(METHOD_NAMES) == [*METHODS, AUTO]
    assert list(TARGET_NAMES) == list(TARGETS)
    sizes = r"_(g\d+|channel|tensor|asym|static|symmetric).*"
    assert {re.sub(sizes, "", name) for name in SCHEMES} - {"16bit"} == set(SCHEME_STEMS)
