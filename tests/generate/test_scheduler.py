"""The scheduler: an answer depends on its own request alone, whatever company, cuts, cache and guesses there are."""

import math
from typing import Any

import numpy as np
import pytest

from bitwright.engine.executor import Step as Batch
from bitwright.generate.scheduler import Scheduler
from bitwright.generate.sequence import Sequence
from tests.generate.conftest import VOCABULARY, Schedulers, finished, request


def requests(seed: int, count: int = 7) -> list[tuple[list[int], dict[str, Any]]]:
    """Prompts, some of which begin alike, and how each is answered."""
    random = np.random.default_rng(seed)
    common = random.integers(4, VOCABULARY, 150).tolist()
    found = []
    for number in range(count):
        prompt = random.integers(4, VOCABULARY, random.integers(1, 90)).tolist()
        if number % 2:
            prompt = common[: random.integers(60, 150)] + prompt
        asked: dict[str, Any] = {"max_tokens": int(random.integers(1, 40))}
        if number % 3 == 1:
            asked |= {"temperature": 0.9, "top_k": 20, "seed": number}
        if number % 3 == 2:
            asked |= {"repetition_penalty": 1.2, "frequency_penalty": 0.1}
        found.append((prompt, asked))
    return found


@pytest.fixture(scope="module")
def alone(schedulers: Schedulers) -> dict[int, list[list[int]]]:
    """The answers of each request by itself, in one piece, without guesses."""
    return {seed: answered_alone(schedulers, seed) for seed in (0, 1)}


def answered_alone(schedulers: Schedulers, seed: int, **how: Any) -> list[list[int]]:
    answers = []
    for prompt, asked in requests(seed):
        scheduler, one = schedulers(speculate=False, **how), request(prompt, **asked)
        scheduler.submit(one)
        finished(scheduler)
        answers.append(one.tokens)
    return answers


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "how",
    [
        {"speculate": False},
        {"speculate": True},
        {"chunk": 7},
        {"chunk": 64, "tokens": 512},
        {"tokens": 448, "speculate": False},
        {"tokens": 320, "chunk": 33},
    ],
    ids=str,
)
def test_company_cuts_preemption_shared_blocks_and_guesses_change_no_token(
    schedulers: Schedulers, alone: dict[int, list[list[int]]], seed: int, how: dict[str, Any]
) -> None:
    assert answered_together(schedulers, seed, **how) == alone[seed]


@pytest.mark.parametrize("kind", ["int4", "bf16"])
def test_nor_do_they_with_another_cache(
    schedulers: Schedulers, alone: dict[int, list[list[int]]], kind: str
) -> None:  # fmt: skip
    want = answered_alone(schedulers, 0, kind=kind)
    assert (want == alone[0]) == (kind == "int4"), "short texts lie in 8 bits in a cache of int4, as in one of int8"
    assert answered_together(schedulers, 0, kind=kind, tokens=320, chunk=33) == want


def test_nor_do_they_where_what_is_near_is_held_in_more_bits(schedulers: Schedulers) -> None:
    """A token sees blocks in 4 bits from the sixth on: texts reach into the eighth, and half of them begin alike."""
    random = np.random.default_rng(6)
    common = random.integers(4, VOCABULARY, 400).tolist()
    asked = [
        (common[: 400 * (n % 2)] + random.integers(4, VOCABULARY, 30 + 60 * (n % 3)).tolist(), 9 * (n % 2) / 10)
        for n in range(6)
    ]
    answers = []
    for number, how in enumerate(({"speculate": False}, {"tokens": 700, "chunk": 90}, {"tokens": 2000, "chunk": 17})):
        scheduler = schedulers(kind="int4", **how)
        all_of_them = [
            request(prompt, max_tokens=40, temperature=heat, seed=n) for n, (prompt, heat) in enumerate(asked)
        ]
        for one in all_of_them:
            scheduler.submit(one)
            if number == 0:  # alone
                finished(scheduler)
        finished(scheduler)
        answers.append([one.tokens for one in all_of_them])
        assert scheduler.cache.free == scheduler.cache.size
        assert scheduler.preempted > 0 or number != 1
    assert answers[0] == answers[1] == answers[2]


def answered_together(schedulers: Schedulers, seed: int, **how: Any) -> list[list[int]]:
    scheduler, random = schedulers(**how), np.random.default_rng(seed + 10)
    waiting = [request(prompt, **asked) for prompt, asked in requests(seed)]
    pending = list(waiting)
    for _ in range(2000):
        while pending and random.random() < 0.5:
            scheduler.submit(pending.pop(0), priority=int(random.integers(0, 2)))
        if scheduler.idle and not pending:
            break
        scheduler.step()
    assert scheduler.cache.free == scheduler.cache.size, "every block was given back"
    return [one.tokens for one in waiting]


@pytest.mark.parametrize("how", [{"chunk": 7}, {"tokens": 320, "chunk": 33}], ids=str)
def test_a_state_of_convolutions_changes_no_token(
    hybrid_schedulers: Schedulers, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    class Guesses:
        """Any tokens, as many as there may be: nearly all are wrong."""

        def __init__(self, ids: list[int]) -> None:
            self.random = np.random.default_rng(ids)

        def draft(self, most: int) -> list[int]:
            return self.random.integers(4, VOCABULARY, most).tolist()

        def learn(self, *of: object) -> None:
            pass

    monkeypatch.setattr("bitwright.generate.scheduler.Drafter", Guesses)
    random = np.random.default_rng(3)
    common = random.integers(4, VOCABULARY, 70).tolist()
    prompts = [common * (n % 2) + random.integers(4, VOCABULARY, n * 9).tolist() for n in range(1, 7)]
    answers = []
    for number, settings in enumerate(({"speculate": False}, how)):
        scheduler = hybrid_schedulers(**settings)
        waiting = [
            request(prompt, max_tokens=70, temperature=0.9 * (n % 3), seed=n) for n, prompt in enumerate(prompts)
        ]
        for one in waiting:
            scheduler.submit(one)
            if number == 0:  # alone
                finished(scheduler)
        finished(scheduler)
        answers.append([one.tokens for one in waiting])
        assert scheduler.cache.free == scheduler.cache.size
    assert answers[0] == answers[1]
    assert scheduler.drafted > 100 > scheduler.accepted
    assert scheduler.preempted > 0 or "tokens" not in how


def test_the_younger_request_gives_its_blocks_back_and_is_computed_again(schedulers: Schedulers) -> None:
    random = np.random.default_rng(4)
    asked = [
        (random.integers(4, VOCABULARY, 60).tolist(), {"max_tokens": 60, "seed": n, "temperature": 1.0}) for n in (1, 2)
    ]
    answers = []
    for tokens in (1024, 192):
        scheduler = schedulers(tokens=tokens, speculate=False)
        both = [request(prompt, context=192, **how) for prompt, how in asked]
        for one in both:
            scheduler.submit(one)
        finished(scheduler)
        answers.append([one.tokens for one in both])
    assert scheduler.preempted > 0
    assert answers[0] == answers[1]


def test_a_cancelled_request_leaves_at_once_and_others_go_on(schedulers: Schedulers, alone: Any) -> None:
    scheduler = schedulers()
    waiting = [request(prompt, **asked) for prompt, asked in requests(0)]
    jobs = [scheduler.submit(one) for one in waiting]
    scheduler.step()
    scheduler.cancel(jobs[2])
    scheduler.cancel(jobs[2])  # again: nothing happens
    finished(scheduler)
    kept = [number for number in range(len(waiting)) if number != 2]
    assert [waiting[number].tokens for number in kept] == [alone[0][number] for number in kept]
    assert waiting[2].finish_reason is None
    assert scheduler.cache.free == scheduler.cache.size


def test_texts_that_begin_alike_are_computed_once(schedulers: Schedulers) -> None:
    scheduler, prompt = schedulers(), list(range(4, 190))
    computed: list[int] = []
    run = scheduler._run

    def counted(step: Batch) -> np.ndarray:
        computed.append(len(step.ids))
        return run(step)

    scheduler._run = counted
    for ending in ([7, 8], [9, 10]):
        scheduler.submit(request(prompt + ending, max_tokens=1))
        finished(scheduler)
    assert computed == [188, 188 - 128], "two full blocks of 64 tokens were found"


def test_guesses_of_what_repeats_save_steps(schedulers: Schedulers) -> None:
    """A scripted model: it repeats a phrase of 20 tokens for ever."""
    phrase = list(range(10, 30))

    def answered(speculate: bool) -> tuple[list[int], int]:
        scheduler = schedulers(speculate=speculate)
        scheduler._run = lambda step: _repeating(step, phrase)
        one = request(phrase + phrase[:5], max_tokens=100)
        scheduler.submit(one)
        finished(scheduler)
        return one.tokens, scheduler.steps

    (tokens, steps), (plain, plain_steps) = answered(True), answered(False)
    assert tokens == plain
    assert plain_steps == 100
    assert steps < 25


def test_guesses_that_are_wrong_cost_little(schedulers: Schedulers) -> None:
    """A scripted model whose text keeps three tokens and goes on otherwise each time."""
    random = np.random.default_rng(0)
    text = [token for _ in range(200) for token in (5, 6, 7, *random.integers(10, VOCABULARY, 2).tolist())]
    scheduler = schedulers()
    scheduler._run = lambda step: _scripted(step, text)
    scheduler.submit(request(text[:50], max_tokens=900))
    finished(scheduler)
    assert scheduler.drafted <= 0.06 * 900


def test_logits_that_are_not_finite_end_their_request_alone(schedulers: Schedulers, alone: Any) -> None:
    scheduler = schedulers()
    run, bad = scheduler._run, request([5, 6, 7], max_tokens=5)
    others = [request(prompt, **asked) for prompt, asked in requests(0)]
    scheduler.submit(bad)
    for one in others:
        scheduler.submit(one)

    def broken(step: Batch) -> np.ndarray:
        out = run(step)
        if bad.finish_reason is None:  # the first row is of the oldest request
            out[0] = math.nan
        return out

    scheduler._run = broken
    finished(scheduler)
    assert bad.finish_reason == "error"
    assert "NaN" in str(bad.error)
    assert [one.tokens for one in others] == alone[0]


def test_a_text_as_long_as_the_cache_is_answered_and_ends_with_length(schedulers: Schedulers) -> None:
    scheduler = schedulers(tokens=128)
    one = request(list(range(4, 100)), context=128, max_tokens=500)
    scheduler.submit(one)
    other = scheduler.submit(request([5, 6, 7], context=128, max_tokens=20))
    finished(scheduler)
    assert one.finish_reason == "length"
    assert len(one.tokens) == 128 - 96
    assert len(other.sequence.tokens) == 20


def test_a_failed_step_loses_nothing(schedulers: Schedulers, alone: Any) -> None:
    scheduler = schedulers()
    run, steps = scheduler._run, []

    def failing(step: Batch) -> np.ndarray:
        steps.append(step)
        if len(steps) % 3 == 0:
            raise MemoryError
        return run(step)

    scheduler._run = failing
    waiting = [request(prompt, **asked) for prompt, asked in requests(1)]
    for one in waiting:
        scheduler.submit(one)
    for _ in range(500):
        if scheduler.idle:
            break
        try:
            scheduler.step()
        except MemoryError:
            continue
    assert [one.tokens for one in waiting] == alone[1]


def _scripted(step: Batch, text: list[int]) -> np.ndarray:
    """Logits of a model that knows one text by heart: at position p the likeliest is text[p + 1]."""
    starts = np.cumsum(step.lengths) - step.lengths
    places = np.concatenate(
        [past + np.arange(length) for past, length in zip(step.past, step.lengths, strict=True)]
    )  # fmt: skip
    assert len(starts) == len(step.past)
    out = np.zeros((len(step.outputs), VOCABULARY), np.float32)
    for row, place in enumerate(places[step.outputs]):
        out[row, text[(place + 1) % len(text)]] = 1.0
    return out


def _repeating(step: Batch, phrase: list[int]) -> np.ndarray:
    return _scripted(step, phrase * 40)


def test_scheduler_is_idle_at_first(schedulers: Schedulers) -> None:
    scheduler: Scheduler = schedulers()
    assert scheduler.idle
    scheduler.step()
    assert scheduler.steps == 0
    assert isinstance(request([5], max_tokens=1), Sequence)
