"""`bitwright recipes`, and recipes by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from bitwright.recipe import Recipe, read_recipe, recipe_yaml, shipped_recipes

Run = Callable[..., Any]


def test_every_recipe_is_listed_with_when_to_use_it(run: Run) -> None:
    outcome = run("recipes")
    assert outcome.code == 0
    assert max(map(len, outcome.out.splitlines())) <= 80
    listed = json.loads(run("recipes", "--json").out)
    assert [row["name"] for row in listed] == sorted(shipped_recipes())
    assert all(row["use"][0].isupper() and row["use"].endswith(".") for row in listed)
    assert all(f"\n{row['name']} " in outcome.out for row in listed)


def test_a_recipe_is_printed_as_it_is(run: Run, tmp_path: Path) -> None:
    for name, file in shipped_recipes().items():
        outcome = run("recipes", name)
        assert outcome.out == file.read_text(encoding="utf-8")
        (tmp_path / "mine.yaml").write_text(outcome.out, encoding="utf-8")
        assert read_recipe(tmp_path / "mine.yaml") == read_recipe(Path(name))


def test_recipes_say_only_what_is_not_the_default() -> None:
    default = yaml.safe_load(recipe_yaml(Recipe()))
    for name, file in shipped_recipes().items():
        said = yaml.safe_load(file.read_text(encoding="utf-8"))
        same = {key for key, value in said.items() if value == default[key]} - {"scheme", "method"}
        assert not same, f"{name}: {same}"


def test_a_file_wins_over_a_recipe_of_the_same_name(here: Path) -> None:
    (here / "auto").write_text("scheme: w8a16\n", encoding="utf-8")
    assert read_recipe(Path("auto")).scheme == "w8a16"


def test_a_name_that_nobody_knows(run: Run, tmp_path: Path) -> None:
    outcome = run("recipes", "llm")
    assert outcome.code == 2
    assert "no recipe is called 'llm'" in outcome.remarks[0]
    outcome = run("plan", tmp_path, "--recipe", "llm-int5")
    assert outcome.code == 2
    assert "did you mean 'llm-int" in outcome.remarks[0]
