"""How many built-in texts of each kind methods look at."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from bitwright.calibration.passages import ROLES, Passage
from bitwright.errors import InputError
from bitwright.pipeline.builtin import BuiltIn, calibration_texts
from bitwright.pipeline.job import open_job
from bitwright.pipeline.request import Texts
from bitwright.recipe import Mix, make_recipe

KINDS = list(Mix.model_fields)
BUILT = BuiltIn({kind: tuple(Passage(f"{kind} {i}", kind, "en") for i in range(30)) for kind in ROLES}, (), ())


def kinds(n: int, mix: Mix | None) -> list[str]:
    return [str(text).split()[0] for text in calibration_texts(BUILT, n, mix)]


def test_every_beginning_has_the_kinds_in_their_shares() -> None:
    assert kinds(16, None) == kinds(16, Mix()) == KINDS * 4
    assert kinds(18, Mix(code=3)) == [*KINDS[:3], "code", "code", "code"] * 3
    assert Counter(kinds(24, Mix(documentation=0, reviews=2))) == {"encyclopaedia": 6, "reviews": 12, "code": 6}


def test_what_there_is_too_little_of_is_filled_up_by_the_others() -> None:
    assert Counter(kinds(100, Mix(code=100)))["code"] == 30
    assert len(set(calibration_texts(BUILT, 100, Mix(code=100)))) == 100


def test_a_mix_is_refused_where_methods_look_at_other_texts(tiny_model: Callable[..., Path]) -> None:
    recipe = make_recipe({"scheme": "w8a8_static", "calibration": {"mix": {"code": 2}}})
    with pytest.raises(InputError, match=r"those of --data; leave it out, or give weights as FILE:WEIGHT"):
        open_job(tiny_model("bert"), recipe, Texts(("builtin#news",), samples=40))
    with pytest.raises(InputError, match="documentation alone, as it is a language model"):
        open_job(tiny_model("llama"), recipe.model_copy(update={"scheme": "w4a16"}), Texts(samples=40))
