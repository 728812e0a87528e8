"""One request from its prompt to its last token: what ends it, what its text is, what its tokens depend on."""

import string
from math import nan
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bitwright.errors import InputError
from bitwright.generate.sampling import Sampling
from bitwright.generate.sequence import Sequence, Step
from bitwright.generate.texts import Detokenizer

LETTERS = string.ascii_lowercase + " "
EOS = len(LETTERS)
VOCABULARY = EOS + 3


def letters() -> Tokenizer:
    """A token for each letter, one that ends an answer, and two ids that the head has beside."""
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(LETTERS)}, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer


TOKENIZER = letters()


def request(prompt: str = "ab", context: int = 64, **asked: Any) -> Sequence:
    return Sequence(
        [LETTERS.index(letter) for letter in prompt], Sampling(**asked), eos_ids=(EOS,),
        detokenizer=Detokenizer(TOKENIZER), context=context, vocabulary=VOCABULARY,
    )  # fmt: skip


def logits_for(token: int) -> np.ndarray:
    made = np.zeros(VOCABULARY, np.float32)
    made[token] = 5
    return made


def saying(sequence: Sequence, text: str) -> list[Step]:
    """The steps of a model that says this, then ends its answer, until the sequence has had enough."""
    steps = []
    for token in [*map(LETTERS.index, text), EOS]:
        steps.append(sequence.take(logits_for(token)))
        if steps[-1].finish_reason:
            break
    return steps


@pytest.mark.parametrize(
    ("asked", "text", "count", "reason"),
    [
        ({}, "hello world", 12, "stop"),
        ({"max_tokens": 5}, "hello", 5, "length"),
        ({"max_tokens": 11}, "hello world", 11, "length"),
        ({"stop": "o w"}, "hell", 7, "stop"),
        ({"stop": ["xyz", "lo"]}, "hel", 5, "stop"),
        ({"stop": "ld!"}, "hello world", 12, "stop"),
        ({"stop": "lo", "min_tokens": 5}, "hello world", 12, "stop"),
        ({"stop": "o", "min_tokens": 5}, "hello w", 8, "stop"),
        ({"stop_token_ids": [LETTERS.index(" ")]}, "hello ", 6, "stop"),
        ({"context": 9}, "hello w", 7, "length"),
    ],
)
def test_what_ends_an_answer(asked: dict[str, Any], text: str, count: int, reason: str) -> None:
    sequence = request(**asked)
    steps = saying(sequence, "hello world")
    made = sequence.generation()
    assert (made.text, len(made.ids), made.finish_reason, made.prompt_tokens) == (text, count, reason, 2)
    assert "".join(step.text for step in steps) == text
    assert [step.finish_reason for step in steps] == [None] * (count - 1) + [reason]
    assert made.ids == tuple(step.id for step in steps)
    assert made.logprobs is None


def test_nothing_of_a_possible_stop_string_comes_early() -> None:
    steps = saying(request(stop="low"), "hello world")
    assert [step.text for step in steps] == ["h", "e", "", "l", "", "lo ", "w", "o", "r", "", "ld", ""]


def test_eos_ends_nothing_where_it_is_ignored_or_comes_too_early() -> None:
    sequence = request(ignore_eos=True, max_tokens=3)
    assert [sequence.take(logits_for(EOS)).finish_reason for _ in range(3)] == [None, None, "length"]
    assert sequence.text == ""
    sequence = request(min_tokens=2)
    reasons = [sequence.take(logits_for(EOS)).finish_reason for _ in range(3)]
    assert reasons == [None, None, "stop"]
    assert EOS not in sequence.tokens[:2]


def test_logits_that_give_no_token_end_this_request_alone() -> None:
    sequence = request(stop="lab")
    for letter in "la":
        sequence.take(logits_for(LETTERS.index(letter)))
    step = sequence.take(np.full(VOCABULARY, nan, np.float32))
    assert step == Step(None, "la", finish_reason="error")
    made = sequence.generation()
    assert (made.text, made.finish_reason, len(made.ids)) == ("la", "error", 2)
    assert f"of {VOCABULARY} logits {VOCABULARY} are NaN" in str(made.error)


def test_log_probabilities_come_with_the_tokens() -> None:
    sequence = request(logprobs=2, max_tokens=2)
    step = sequence.take(logits_for(3))
    want = 5 - np.log(np.exp(5) + VOCABULARY - 1)
    assert step.logprob == pytest.approx(want, abs=1e-6)
    assert [one for one, _ in step.top] == [3, 0]
    sequence.take(logits_for(4))
    made = sequence.generation()
    assert made.logprobs is not None
    assert [choice.id for choice in made.logprobs] == [3, 4]


def drawn(seed: int | None, count: int = 20, **asked: Any) -> list[int]:
    sequence = request(temperature=2.0, seed=seed, max_tokens=count, ignore_eos=True, **asked)
    rng = np.random.default_rng(0)
    while sequence.finish_reason is None:
        sequence.take(rng.standard_normal(VOCABULARY).astype(np.float32))
    return sequence.tokens


def test_tokens_depend_on_the_seed_and_nothing_else() -> None:
    assert drawn(1) == drawn(1) == drawn(1, logprobs=3)
    assert drawn(1) != drawn(2)
    assert drawn(1, count=10) == drawn(1)[:10]
    assert drawn(None) != drawn(None)  # 27 ** 20 to one


@pytest.mark.parametrize(
    ("prompt", "how", "says"),
    [
        ("", {}, "the prompt has no tokens"),
        ("abcd", {"context": 4}, "the prompt has 4 tokens and the model takes 4 .* to 3 tokens"),
        ("ab", {"logit_bias": {VOCABULARY: 1.0}}, f"logit_bias names token {VOCABULARY}"),
    ],
)
def test_a_request_that_cannot_run_is_refused(prompt: str, how: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        request(prompt, **how)


@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_a_token_that_the_model_does_not_have_is_refused(token: int) -> None:
    with pytest.raises(InputError, match=f"the prompt holds token {token}; this model has tokens 0 to"):
        Sequence([1, token], Sampling(), eos_ids=(), detokenizer=None, context=9, vocabulary=VOCABULARY)


def test_a_model_without_a_tokenizer_gives_tokens() -> None:
    ids: dict[str, Any] = {"eos_ids": (EOS,), "detokenizer": None, "context": 9, "vocabulary": VOCABULARY}
    sequence = Sequence([1], Sampling(), **ids)
    assert sequence.take(logits_for(4)) == Step(4, "")
    assert sequence.take(logits_for(EOS)) == Step(EOS, "", finish_reason="stop")
    with pytest.raises(InputError, match="no tokenizer"):
        Sequence([1], Sampling(stop="x"), **ids)
