"""What a request may ask, and the defaults that a model's generation_config.json gives."""

from math import inf, nan
from typing import Any

import numpy as np
import pytest
from transformers import GenerationConfig

from bitwright.errors import InputError, ModelError
from bitwright.generate.sampling import DEFAULT_MAX_TOKENS, RANGES, Sampling, eos_ids, not_followed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0), ("max_tokens", -3), ("max_tokens", 2.5), ("max_tokens", True), ("max_tokens", None),
        ("temperature", nan), ("temperature", -0.1), ("temperature", inf), ("temperature", "hot"),
        ("top_k", -1), ("top_p", 0), ("top_p", 1.01), ("top_p", nan), ("min_p", -0.1), ("min_p", 2),
        ("repetition_penalty", 0), ("presence_penalty", 2.1), ("frequency_penalty", nan), ("seed", -1),
        ("seed", 2**64), ("logprobs", -1), ("min_tokens", -1), ("min_tokens", 1000), ("ignore_eos", 1),
        ("stop", ""), ("stop", ["a", ""]), ("stop", [1]), ("stop", 3), ("stop_token_ids", [-1]),
        ("stop_token_ids", [1.5]), ("stop_token_ids", "12"), ("logit_bias", [3]), ("logit_bias", {1: nan}),
        ("logit_bias", {1: inf}), ("logit_bias", {-1: 0.0}), ("logit_bias", {"1": 0.0}),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name) as caught:
        Sampling(**{name: value})
    assert "must" in str(caught.value) or "more than max_tokens" in str(caught.value)


def test_the_message_says_the_range() -> None:
    with pytest.raises(InputError, match=r"top_p is 1\.5; it must be a number above 0 and at most 1"):
        Sampling(top_p=1.5)
    with pytest.raises(
        InputError, match=r"seed is -1; it must be a whole number of at least 0 and at most .*, or None"
    ):
        Sampling(seed=-1)


def test_numbers_of_numpy_and_the_ends_of_ranges_are_taken() -> None:
    made = Sampling(
        max_tokens=np.int64(1), temperature=np.float32(0.5), top_p=1, seed=2**64 - 1, stop="a", stop_token_ids=[3],
        logit_bias={np.int64(3): -inf},
    )  # fmt: skip
    assert (made.stop, made.stop_token_ids, made.logit_bias) == (("a",), (3,), {3: -inf})
    assert RANGES.keys() < set(Sampling.__slots__)


@pytest.mark.parametrize("asked", [{"logit_bias": {7: 1.0}}, {"stop_token_ids": [7]}])
def test_ids_outside_the_vocabulary_are_refused(asked: dict[str, Any]) -> None:
    Sampling(**asked).check(8)
    with pytest.raises(InputError, match=f"{next(iter(asked))} names token 7; this model has tokens 0 to 6"):
        Sampling(**asked).check(7)


def test_greedy_unless_drawing_is_asked_for() -> None:
    file = {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}
    assert Sampling.of(file).greedy
    assert Sampling.of(file, seed=1).repetition_penalty == 1.1
    for asked in ({"temperature": 0.3}, {"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.1}):
        wanted: dict[str, Any] = {"temperature": 0.6, "top_p": 0.9, "top_k": 50} | asked
        made = Sampling.of(file, **asked)
        assert {name: getattr(made, name) for name in wanted} == wanted
    drawing = Sampling.of({"do_sample": True, "top_k": 20})
    assert (drawing.temperature, drawing.top_k, drawing.top_p) == (1.0, 20, 1.0)
    assert Sampling.of({"do_sample": True}, temperature=0).greedy


def test_defaults_are_those_of_transformers() -> None:
    library = GenerationConfig._get_default_generation_params()
    made = Sampling.of({"do_sample": True})
    for name in ("temperature", "top_k", "top_p", "repetition_penalty"):
        assert getattr(made, name) == library[name]
    assert not_followed(library) == []


def test_lengths_of_the_file_give_way_to_what_is_asked() -> None:
    file = {"max_new_tokens": 20, "min_new_tokens": 10, "stop_strings": ["END"]}
    assert Sampling.of(file) == Sampling(max_tokens=20, min_tokens=10, stop=("END",))
    assert Sampling.of(file, max_tokens=5).min_tokens == 5
    assert Sampling.of(file, min_tokens=30).max_tokens == 30
    assert Sampling.of({}, max_tokens=None).max_tokens == DEFAULT_MAX_TOKENS
    with pytest.raises(InputError, match="min_tokens is 9, more than max_tokens, which is 8"):
        Sampling.of(file, max_tokens=8, min_tokens=9)


def test_an_unknown_argument_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'temprature' \(did you mean temperature\?\)"):
        Sampling.of({}, temprature=1)
    with pytest.raises(InputError, match="max_tokens is 'x'"):
        Sampling.of({}, max_tokens="x")


@pytest.mark.parametrize("key", ["temperature", "top_k", "max_new_tokens", "repetition_penalty", "stop_strings"])
def test_a_wrong_value_in_the_file_is_the_files(key: str) -> None:
    with pytest.raises(ModelError, match=r"generation_config\.json: (stop|" + key + ")"):
        Sampling.of({"do_sample": True, key: {}} if key != "stop_strings" else {key: [""]})


def test_what_is_not_followed_is_named() -> None:
    file = {"num_beams": 4, "typical_p": 1.0, "no_repeat_ngram_size": 3, "suppress_tokens": [1], "max_length": 99}
    said = ["num_beams = 4", "no_repeat_ngram_size = 3", "suppress_tokens = [1]", "max_length = 99"]
    assert not_followed(file) == said
    assert not_followed(file, max_tokens=3) == said[:-1]
    assert not_followed(file | {"max_new_tokens": 3}) == said[:-1]


def test_eos_is_one_id_or_several() -> None:
    assert eos_ids({"eos_token_id": 2}) == (2,)
    assert eos_ids({"eos_token_id": [2, 5]}) == (2, 5)
    assert eos_ids({"eos_token_id": None}) == eos_ids({}) == ()
    with pytest.raises(ModelError, match="eos_token_id is 'x'"):
        eos_ids({"eos_token_id": "x"})
