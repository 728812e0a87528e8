"""Each step from logits to a token equals transformers' class for it."""

import time
from math import inf, nan
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from bitwright.errors import NotFiniteError
from bitwright.generate.processors import chosen, likeliest, log_sum_exp, processed, uniform
from bitwright.generate.sampling import Sampling

VOCABULARY = 3000
PROMPT, NEW, ENDS = [5, 9, 5, 2999], [7, 8, 7, 7], (2, 11)


def random_logits(seed: int, spread: float = 3.0, size: int = VOCABULARY) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


def by_transformers(logits_V: np.ndarray, asked: dict[str, Any]) -> np.ndarray:
    """The processors of `transformers.generate` for these arguments, in its order (`_get_logits_processor`)."""
    made = {
        "logit_bias": lambda bias: SequenceBiasLogitsProcessor([[[key], value] for key, value in bias.items()]),
        "repetition_penalty": RepetitionPenaltyLogitsProcessor,
        "min_tokens": lambda count: MinNewTokensLengthLogitsProcessor(len(PROMPT), count, list(ENDS)),
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }
    steps = LogitsProcessorList([make(asked[name]) for name, make in made.items() if name in asked])
    found: np.ndarray = steps(torch.tensor([[*PROMPT, *NEW]]), torch.from_numpy(logits_V.copy())[None])[0].numpy()
    return found


@pytest.mark.parametrize(
    "asked",
    [
        {"logit_bias": {3: 2.5, 7: -4.0}},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.8},
        {"min_tokens": 5},
        {"min_tokens": 4},
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_k": 40},
        {"temperature": 1.0, "top_k": 5000},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 1.0, "top_p": 0.01},
        {"temperature": 3.0, "top_p": 0.999},
        {"temperature": 1.0, "min_p": 0.05},
        {"temperature": 1.0, "min_p": 1.0},
        {"logit_bias": {9: 3.0}, "repetition_penalty": 1.2, "min_tokens": 8, "temperature": 1.4, "top_k": 200,
         "top_p": 0.8, "min_p": 0.02},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("spread", [3.0, 0.1])
def test_logits_equal_those_of_transformers(asked: dict[str, Any], spread: float) -> None:
    for seed in range(4):
        logits_V = random_logits(seed, spread)
        before = logits_V.copy()
        got = processed(logits_V, PROMPT, NEW, Sampling(**asked), ENDS)
        want = by_transformers(logits_V, asked)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(logits_V, before)


def test_equal_logits_at_the_edge() -> None:
    """Of equals top-k keeps all, as transformers does; top-p keeps the lowest ids that it needs."""
    logits_V = np.array([1, 2, 2, 2, 0, 2], np.float32)
    kept = processed(logits_V, [], [], Sampling(temperature=1.0, top_k=2))
    np.testing.assert_array_equal(kept, by_transformers(logits_V, {"temperature": 1.0, "top_k": 2}))
    kept = processed(np.zeros(2000, np.float32), [], [], Sampling(temperature=1.0, top_p=0.25))
    assert np.flatnonzero(np.isfinite(kept)).tolist() == list(range(500))


def test_presence_and_frequency_count_the_answer_alone() -> None:
    """OpenAI: logit - count × frequency - (count > 0) × presence."""
    logits_V = random_logits(0)
    got = processed(logits_V, PROMPT, NEW, Sampling(presence_penalty=0.5, frequency_penalty=0.25))
    want = logits_V.copy()
    want[7] -= 0.5 + 3 * 0.25
    want[8] -= 0.5 + 0.25
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_ids_that_the_head_does_not_have_are_passed_over() -> None:
    logits_V = random_logits(0, size=8)
    asked = Sampling(repetition_penalty=2.0, presence_penalty=1.0, min_tokens=9)
    assert np.isfinite(processed(logits_V, [3, 8, 100], [2, 9], asked, (8,))).all()


def test_greedy_takes_the_lowest_of_equal_ids() -> None:
    logits_V = np.array([0, 5, 1, 5, 5], np.float32)
    assert chosen(processed(logits_V, [], [], Sampling()), Sampling(), 0).id == 1


@pytest.mark.parametrize("temperature", [1e-300, 1e-5, 1e5])
def test_extreme_temperatures(temperature: float) -> None:
    asked = Sampling(temperature=temperature, seed=0, top_p=0.9)
    scores_V = processed(random_logits(0) * 100, [], [], asked)
    assert (chosen(scores_V, asked, 0).id == random_logits(0).argmax()) == (temperature < 1)


@pytest.mark.parametrize(
    ("value", "says"), [(nan, "of 9 logits 1 are NaN and 0 infinite"), (inf, "0 are NaN and 1 infinite")]
)
@pytest.mark.parametrize("asked", [{}, {"temperature": 1.0, "top_p": 0.5}, {"temperature": 1.0, "top_k": 2}])
def test_logits_that_are_no_numbers_are_refused(value: float, says: str, asked: dict[str, float]) -> None:
    logits_V = random_logits(0, size=9)
    logits_V[4] = value
    with pytest.raises(NotFiniteError, match=says):
        processed(logits_V, [], [], Sampling(**asked))


def test_no_token_left_is_told() -> None:
    with pytest.raises(NotFiniteError, match="all are -inf"):
        processed(np.full(4, -inf, np.float32), [], [], Sampling())
    asked = Sampling(logit_bias=dict.fromkeys(range(4), -inf), temperature=1.0)
    with pytest.raises(NotFiniteError, match="every token has probability 0"):
        chosen(processed(np.zeros(4, np.float32), [], [], asked), asked, 0)


def test_draws_follow_the_distribution() -> None:
    logits_V = np.log(np.array([0.5, 0.1, 0, 0.4], np.float32) + np.float32(1e-30)).astype(np.float32)
    asked = Sampling(temperature=1.0, seed=3)
    drawn = [chosen(processed(logits_V, [], [], asked), asked, position).id for position in range(4000)]
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4000, [0.5, 0.1, 0, 0.4], atol=0.02)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 3000])
def test_a_draw_is_the_inverse_distribution(size: int) -> None:
    logits_V, asked = random_logits(1, 1.0, size), Sampling(temperature=1.0, seed=5)
    sums = np.cumsum(np.exp(logits_V.astype(np.float64)))
    for position in range(200):
        want = int(np.searchsorted(sums, uniform(5, position) * sums[-1], side="right"))
        assert chosen(logits_V, asked, position).id == want


def test_random_numbers_are_of_seed_and_position_alone() -> None:
    assert [uniform(1, 2), uniform(0, 0), uniform(2**64 - 1, 10**6)] == pytest.approx(
        [0.4082618259872465, 0.011546754286331562, 0.4614255439484173], abs=1e-15
    )
    assert len({uniform(seed, position) for seed in range(30) for position in range(30)}) == 900


def test_log_probabilities_are_of_the_models_own_logits() -> None:
    logits_V = random_logits(2)
    want = torch.log_softmax(torch.from_numpy(logits_V).double(), 0)
    asked = Sampling(temperature=0.5, top_k=3, logit_bias={4: 100.0}, logprobs=5)
    found = chosen(processed(logits_V, [], [], asked), asked, 0, logits_V)
    assert found.id == 4
    assert found.logprob == pytest.approx(float(want[4]), abs=1e-5)
    values, ids = want.topk(5)
    assert [one for one, _ in found.top] == ids.tolist()
    assert [value for _, value in found.top] == pytest.approx(values.tolist(), abs=1e-5)
    none = chosen(logits_V, Sampling(), 0)
    assert (none.logprob, none.top) == (None, ())
    alone = chosen(logits_V, Sampling(logprobs=0), 0)
    assert alone.logprob == pytest.approx(float(want.max()), abs=1e-5)
    assert alone.top == ()


def test_likeliest_of_equals_comes_in_the_order_of_ids() -> None:
    assert likeliest(np.array([1, 3, 3, 2, 3], np.float32), 2) == [1, 2]
    assert likeliest(np.array([1, 2], np.float32), 9) == [1, 0]
    assert log_sum_exp(np.full(4, 1000, np.float32)) == pytest.approx(1000 + np.log(4))


@pytest.mark.alone
@pytest.mark.parametrize(
    ("asked", "microseconds"),
    [({}, 60), ({"temperature": 0.7, "top_k": 50, "top_p": 0.95}, 1000), ({"temperature": 0.7, "top_p": 0.95}, 1000)],
)
def test_a_choice_is_quick(asked: dict[str, Any], microseconds: float) -> None:
    logits_V, sampling, best = random_logits(0, size=49152), Sampling(**asked), inf
    for position in range(50):
        start = time.perf_counter()
        chosen(processed(logits_V, PROMPT, NEW, sampling, ENDS), sampling, position, logits_V)
        best = min(best, time.perf_counter() - start)
    assert best * 1e6 < microseconds
