"""fleet.yaml: what it means, and what is refused before any work."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from bitwright.errors import InputError
from bitwright.fleet.config import Fleet, parse_bytes, read_fleet


def fleet_of(folder: Path, **said: Any) -> Fleet:
    file = folder / "fleet.yaml"
    file.write_text(yaml.safe_dump({"models": [{"name": "a", "model": "org/a"}]} | said))
    return read_fleet(file)


def test_defaults_lie_under_what_a_model_says(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    (tmp_path / "small").mkdir()
    fleet = fleet_of(
        tmp_path, out="results", memory="8GB", defaults={"max_loss": "2%", "data": "mine.txt#text:0.5", "samples": 50},
        models=[
            {"name": "a", "model": "small"},
            {"name": "b", "model": "org/b", "max_loss": 0.1, "data": ["builtin#news", "org/data"], "speed": True},
        ],
    )  # fmt: skip
    a, b = fleet.entries
    assert (fleet.out, fleet.memory) == (tmp_path / "results", 8 * 10**9)
    assert (a.model, a.out) == (str(tmp_path / "small"), tmp_path / "results" / "a")
    assert (a.recipe.budget.max_loss, b.recipe.budget.max_loss) == (0.02, 0.1)
    assert a.texts.data == (f"{tmp_path / 'mine.txt'}#text:0.5",)
    assert b.texts.data == ("builtin#news", "org/data")
    assert (a.texts.samples, a.speed, b.speed, b.model) == (50, False, True, "org/b")


def test_recipes_are_names_files_or_written_out(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("scheme: w8a16\n")
    recipes: list[Any] = ["llm-int4", "own.yaml", {"scheme": "w4a16_g64"}]
    models = [{"name": f"m{i}", "model": "org/m", "recipe": recipe} for i, recipe in enumerate(recipes)]
    schemes = [entry.recipe.scheme for entry in fleet_of(tmp_path, models=models).entries]
    assert schemes[1:] == ["w8a16", "w4a16_g64"]
    assert schemes[0].startswith("w4a16")


def test_each_comes_behind_those_that_it_is_after(tmp_path: Path) -> None:
    models = [
        {"name": "c", "model": "org/c", "after": ["a", "b"]},
        {"name": "b", "model": "org/b", "after": "a"},
        {"name": "a", "model": "org/a"},
    ]
    assert [entry.name for entry in fleet_of(tmp_path, models=models).entries] == ["a", "b", "c"]


A, B = {"name": "a", "model": "org/a"}, {"name": "b", "model": "org/b"}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"modles": []}, r"unknown key `modles` \(did you mean 'models'\?\)"),
        ({"models": [A | {"max_los": 1}]}, r"unknown key `models\.0\.max_los` \(did you mean 'max_loss'\?\)"),
        ({"defaults": {"name": "a"}}, r"unknown key `defaults\.name`"),
        ({"models": [A, A | {"name": "A"}]}, "two models are called A"),
        ({"models": [A, B | {"out": "fleet/a"}]}, r"a and b both write to .*fleet/a"),
        ({"models": [A | {"after": ["b"]}, B | {"after": ["a"]}]}, "wait for each other: [ab] → [ab] → [ab]"),
        ({"models": [A | {"after": ["a"]}]}, "these models wait for each other: a → a"),
        ({"models": [A, B | {"after": ["aa"]}]}, r"b is after 'aa', which is no model here \(did you mean 'a'\?\)"),
        ({"models": []}, "`models`"),
        ({"models": [A | {"name": "../a"}]}, r"`models\.0\.name`"),
        ({"models": [A | {"max_loss": "x%"}]}, "'x%' is no percentage"),
        ({"models": [A | {"max_loss": 2.0}]}, r"a: max_loss = 2\.0"),
        ({"models": [A | {"recipe": "none.yaml"}]}, r"a: .*none\.yaml: cannot be read"),
        ({"models": [A | {"recipe": {"shceme": "w8a8"}}]}, r"a: unknown key `shceme` \(did you mean 'scheme'\?\)"),
        ({"models": [A | {"targets": ["vlm"]}]}, "a: .*vlm"),
        ({"models": [A | {"data": ["x.txt:-1"]}]}, "a: "),
        ({"memory": "lots"}, "memory: 'lots' is no size; write 8GB"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(said: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as error:
        fleet_of(tmp_path, **said)
    assert str(error.value).startswith(str(tmp_path / "fleet.yaml"))


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"fleet\.yaml: cannot be read"):
        read_fleet(tmp_path)
    (tmp_path / "fleet.yaml").write_text("[1]")
    with pytest.raises(InputError, match="a fleet must be a mapping"):
        read_fleet(tmp_path / "fleet.yaml")


@pytest.mark.parametrize(("text", "size"), [("8GB", 8 * 10**9), ("1.5 GiB", 3 << 29), ("1000", 1000)])
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text, "--memory") == size
