"""Sections to data and back: nothing lost, and what is wrong is named."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from bitwright.errors import CheckpointError
from bitwright.record import as_data, from_data, plain_data
from bitwright.record.convert import NULL, REST


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    block: int | None
    error: float | None = None


@dataclass(frozen=True, slots=True)
class Whole:
    parts: tuple[Part, ...]
    shape: tuple[int, int] = (0, 0)
    ok: bool | None = field(default=None, metadata=NULL)
    said: Part | str | None = None
    companions: Mapping[str, float] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict, metadata=REST)


FULL = Whole(
    (Part("a", 0, math.inf), Part("inf", None)),
    (2, 3),
    True,
    Part("b", None),
    {"kl": -math.inf},
    {"new": [1, {"x": 2}]},
)


@pytest.mark.parametrize("whole", [FULL, Whole(()), Whole((), said="as text", ok=False)])
def test_through_json_comes_the_same(whole: Whole) -> None:
    text = json.dumps(plain_data(whole), allow_nan=False)
    assert from_data(Whole, json.loads(text)) == whole
    assert from_data(Whole, as_data(whole)) == whole


def test_what_is_none_is_left_out_or_null_as_its_field_says() -> None:
    assert as_data(Whole((Part("a", None),))) == {
        "parts": [{"name": "a", "block": None}], "shape": [0, 0], "ok": None, "companions": {},
    }  # fmt: skip


def test_null_and_absent_mean_the_default() -> None:
    data = dict.fromkeys(("shape", "ok", "said", "companions"))
    assert from_data(Whole, data | {"parts": []}) == from_data(Whole, {"parts": []}) == Whole(())


def test_nan_survives_and_texts_that_look_like_numbers_stay_texts() -> None:
    (part,) = from_data(Whole, {"parts": [{"name": "nan", "block": None, "error": "nan"}]}).parts
    assert part.name == "nan"
    assert part.error is not None
    assert math.isnan(part.error)


def test_endless_nesting_is_refused() -> None:
    deep: Any = []
    for _ in range(2000):
        deep = [deep]
    with pytest.raises(CheckpointError, match=r"^r\.json: the data is nested too deeply"):
        from_data(Whole, {"parts": [], "later": deep}, "r.json")


def test_a_key_that_no_field_names_is_kept_where_there_is_a_place_and_else_ignored() -> None:
    whole = from_data(Whole, {"parts": [{"name": "a", "block": 1, "later": 2}], "later": {"worst": "inf"}})
    assert whole == Whole((Part("a", 1),), more={"later": {"worst": math.inf}})
    assert as_data(whole)["later"] == {"worst": math.inf}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "r.json: is [], not an object"),
        ({}, "r.json: parts is missing"),
        ({"parts": None}, "r.json: parts is None, not a list"),
        ({"parts": {}}, "r.json: parts is {}, not a list"),
        ({"parts": [{"name": "a"}]}, "r.json: parts[0].block is missing"),
        ({"parts": [{"name": 1, "block": 0}]}, "r.json: parts[0].name is 1, not a text"),
        ({"parts": [{"name": "a", "block": 0.5}]}, "r.json: parts[0].block is 0.5, not a whole number"),
        ({"parts": [{"name": "a", "block": True}]}, "r.json: parts[0].block is True, not a whole number"),
        ({"parts": [{"name": "a", "block": 0, "error": "x"}]}, "r.json: parts[0].error is 'x', not a number"),
        ({"parts": [], "shape": [1]}, "r.json: shape is [1], not a list of 2"),
        ({"parts": [], "ok": 1}, "r.json: ok is 1, not true or false"),
        ({"parts": [], "said": 5}, "r.json: said is 5, not a text"),
        ({"parts": [], "companions": {"kl": []}}, "r.json: companions.kl is [], not a number"),
        ({"parts": [], "companions": "x" * 99}, f"r.json: companions is '{'x' * 38}…, not an object"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(data: Any, said: str) -> None:
    with pytest.raises(CheckpointError) as error:
        from_data(Whole, data, "r.json")
    assert str(error.value) == said
