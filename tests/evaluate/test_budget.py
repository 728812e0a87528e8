"""The budget: bounds that hold as often as they say, and a verdict that follows from them."""

import math
import time

import numpy as np
import pytest

from bitwright.errors import DataError
from bitwright.evaluate import Interval, Task, judge, label_free_task, paired_bootstrap
from bitwright.evaluate.kinds import Classification, Custom, Pairs


def texts_of(n):
    return tuple(f"text {i}" for i in range(n))


def own(values):
    return Task("own", (), Custom(lambda encode: values, "metric.py:own"))


def pairs_problem(rng, n, noise=0.1):
    """n pairs, disjoint; outputs of two models that differ by `noise`."""
    outputs = rng.normal(size=(2 * n, 6))
    rows = outputs / np.linalg.norm(outputs, axis=1, keepdims=True)
    gold = (rows[:n] * rows[n:]).sum(axis=1) + 0.5 * rng.normal(size=n)
    return (
        Task("pairs", texts_of(2 * n), Pairs(np.arange(n), np.arange(n) + n, gold)),
        outputs,
        outputs + noise * rng.normal(size=outputs.shape),
    )


def coverage(draw, true_loss, repeats):
    """Shares of the experiments whose lower, and whose upper, bound holds."""
    below = above = 0
    for seed in range(repeats):
        interval = paired_bootstrap(*draw(np.random.default_rng(seed)), n=200, seed=seed)
        below += interval.lower <= true_loss
        above += interval.upper >= true_loss
        assert interval.lower <= interval.loss <= interval.upper
    return below / repeats, above / repeats


def test_bounds_of_a_graded_score_hold_as_often_as_they_say():
    def draw(rng):
        score = rng.uniform(0.2, 1, 120)
        return own(score), score, score - rng.normal(0.006, 0.04, 120)

    below, above = coverage(draw, 0.01, 150)
    assert 0.88 < below < 1
    assert 0.91 < above <= 1  # the lost unit makes it cautious


def test_upper_bound_of_rare_changes_holds():
    """Seven answers in a thousand change: plain resampling would call the loss too small far too often."""

    def draw(rng):
        score = (rng.random(300) < 0.9).astype(float)
        return own(score), score, np.where(rng.random(300) < 0.007, 0.0, score)

    below, above = coverage(draw, 0.007, 100)
    assert below > 0.88
    assert above > 0.93


def test_bounds_of_a_rank_correlation_hold():
    large = pairs_problem(np.random.default_rng(99), 40_000)
    true_loss = large[0].loss(*large[1:])
    below, above = coverage(lambda rng: pairs_problem(rng, 120), true_loss, 80)
    assert 0.87 < below < 1
    assert 0.87 < above < 1


def test_bounds_of_a_label_free_loss_hold():
    def draw(rng, n=60):
        outputs = rng.normal(size=(n, 6)) * np.arange(1, 7)
        return label_free_task(texts_of(n)), outputs, outputs + 0.3 * rng.normal(size=outputs.shape)

    large = draw(np.random.default_rng(99), 3000)
    below, above = coverage(draw, large[0].loss(*large[1:]), 60)
    assert 0.86 < below <= 1
    assert 0.86 < above <= 1


def test_without_a_change_the_upper_bound_is_the_rule_of_three():
    gold = np.arange(600) % 2
    logits = np.eye(2)[gold]
    for task in (Task("c", texts_of(600), Classification(gold)), label_free_task(texts_of(600), logits=True)):
        interval = paired_bootstrap(task, logits, logits)
        assert interval.loss == interval.lower == 0
        assert interval.upper == pytest.approx(3 / 600, rel=0.01)
    assert (
        paired_bootstrap(Task("c", texts_of(600), Classification(gold, macro_f1=True)), logits, logits).upper > 1 / 600
    )


def test_equal_embeddings_have_no_loss_at_all():
    outputs = np.random.default_rng(0).normal(size=(30, 4))
    interval = paired_bootstrap(label_free_task(texts_of(30)), outputs, outputs, n=50)
    assert (interval.loss, interval.lower, interval.upper) == pytest.approx((0, 0, 0), abs=1e-12)


def test_the_same_seed_gives_the_same_interval():
    problem = pairs_problem(np.random.default_rng(0), 50)
    assert paired_bootstrap(*problem, n=100, seed=1) == paired_bootstrap(*problem, n=100, seed=1)
    assert paired_bootstrap(*problem, n=100, seed=1) != paired_bootstrap(*problem, n=100, seed=2)


def test_more_confidence_is_a_wider_interval():
    problem = pairs_problem(np.random.default_rng(0), 200)
    narrow, wide = (paired_bootstrap(*problem, confidence=level) for level in (0.8, 0.99))
    assert wide.lower < narrow.lower < narrow.upper < wide.upper


def test_lower_is_better_is_bounded_from_the_right_side():
    perplexity = np.random.default_rng(0).uniform(5, 15, 400)
    task = Task("own", (), Custom(lambda encode: perplexity, "metric.py:own", higher_is_better=False))
    interval = paired_bootstrap(task, perplexity, 1.02 * perplexity)
    assert interval.loss == pytest.approx(0.02)
    assert interval.upper > interval.loss


def test_a_single_number_has_no_interval():
    interval = paired_bootstrap(own(np.array([1.0])), np.array([0.8]), np.array([0.799]))
    assert (interval.lower, interval.upper) == (-math.inf, math.inf)
    verdict = judge(interval, 0.01)
    assert (verdict.verdict, verdict.needed_samples) == ("undecided", None)
    assert "a value per example" in verdict.sentence


@pytest.mark.parametrize(
    ("loss", "lower", "upper", "expected", "needed"),
    [
        (0.004, 0.001, 0.01, "met", None),
        (-0.01, -0.03, -0.002, "met", None),
        (0.03, 0.011, 0.05, "not met", None),
        (0.005, -0.005, 0.015, "undecided", 400),  # twice as far as allowed: four times the sample
        (0.02, 0.005, 0.03, "undecided", None),  # the loss itself is over
    ],
)
def test_verdict(loss, lower, upper, expected, needed):
    verdict = judge(Interval(loss, lower, upper, n_units=100, unit="pairs"), 0.01)
    assert (verdict.verdict, verdict.needed_samples) == (expected, needed)
    assert "100 pairs" in verdict.sentence
    assert "1 %" in verdict.sentence


def test_the_sample_that_a_verdict_asks_for_decides():
    rng = np.random.default_rng(5)
    score = rng.uniform(0.4, 1, 150)
    quantized = score - rng.normal(0.002, 0.05, 150)

    def problem(times):
        return own(np.tile(score, times)), np.tile(score, times), np.tile(quantized, times)

    undecided = judge(paired_bootstrap(*problem(1)), 0.01)
    assert undecided.verdict == "undecided"
    assert undecided.needed_samples is not None
    assert judge(paired_bootstrap(*problem(math.ceil(1.1 * undecided.needed_samples / 150))), 0.01).verdict == "met"


@pytest.mark.parametrize("limit", [0, -0.01, math.nan, math.inf])
def test_a_limit_is_positive(limit):
    with pytest.raises(DataError, match="max_loss"):
        judge(Interval(0, 0, 0, 10), limit)


@pytest.mark.alone
def test_a_thousand_resamples_are_quick():
    rng = np.random.default_rng(0)
    started = time.process_time()
    paired_bootstrap(*pairs_problem(rng, 1400))
    assert time.process_time() - started < 3  # 0.5 s measured
    outputs = rng.normal(size=(500, 64))
    started = time.process_time()
    paired_bootstrap(label_free_task(texts_of(500)), outputs, outputs + 0.1 * rng.normal(size=(500, 64)))
    assert time.process_time() - started < 8  # 2.5 s measured
