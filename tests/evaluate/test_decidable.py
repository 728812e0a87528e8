"""What a sample cannot decide is known before the work."""

import re

import numpy as np
import pytest

from bitwright.evaluate import Given, Task, judge, label_free_task, paired_bootstrap, undecidable
from bitwright.evaluate.kinds import Classification, Custom, Pairs


def texts_of(n):
    return tuple(f"text {i}" for i in range(n))


def classifier(n, accuracy=1.0, macro_f1=False):
    """A task of n examples, and logits that are right on a share of them."""
    gold = np.arange(n) % 2
    said = np.where(np.arange(n) < accuracy * n, gold, 1 - gold)
    return Task("reviews", texts_of(n), Classification(gold, macro_f1=macro_f1)), 3.0 * np.eye(2)[said]


@pytest.mark.parametrize("macro_f1", [False, True])
def test_accuracy_on_few_examples_cannot_decide_and_says_how_many_rows_could(macro_f1):
    task, logits = classifier(250, 0.8, macro_f1)
    said = undecidable(task, logits, 0.01, Given(500, "rows of reviews.tsv"))
    assert said.startswith(
        "reviews: only 250 examples are used to judge. Even if none of them changed, the loss could be up to 1."
    )
    needed = int(re.search(r"About (\d+) rows of reviews.tsv would decide", said)[1])
    assert needed == pytest.approx(2 * 3 / (0.01 * 0.8), rel=0.05 if not macro_f1 else 0.6)
    assert undecidable(*classifier(round(1.02 * needed / 2), 0.8, macro_f1), 0.01, Given(needed, "rows")) is None


def test_what_could_be_met_is_decidable():
    task, logits = classifier(400)
    assert undecidable(task, logits, 0.01, Given(800, "rows")) is None
    assert judge(paired_bootstrap(task, logits, logits), 0.01).verdict == "met"


def test_answers_estimated_from_margins_need_fewer_texts():
    logits = np.random.default_rng(0).normal(size=(200, 3))
    gold = logits.argmax(1)
    given = Given(400, "texts")
    assert undecidable(label_free_task(texts_of(200), logits=True), logits, 0.01, given) is None
    assert undecidable(Task("labels", texts_of(200), Classification(gold)), logits, 0.01, given) is not None


def test_rank_correlations_decide():
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(80, 6))
    task = Task("pairs", texts_of(80), Pairs(np.arange(40), np.arange(40) + 40, rng.normal(size=40)))
    assert undecidable(task, outputs, 0.01, Given(80, "rows")) is None


def test_a_single_number_decides_nothing():
    task = Task("own", (), Custom(lambda encode: 0.8, "metric.py:own"))
    assert "return a value per example" in undecidable(task, np.array([0.8]), 0.01, Given(1, "examples"))


def test_the_rows_that_a_verdict_asks_for_are_those_of_the_file():
    task, logits = classifier(250)
    verdict = judge(paired_bootstrap(task, logits, logits), 0.01, Given(500, "rows of reviews.tsv"))
    assert verdict.verdict == "undecided"
    assert verdict.needed_samples == pytest.approx(600, rel=0.02)  # nothing changed: bounds close in by 1 / n
    assert f"about {verdict.needed_samples} rows of reviews.tsv would decide" in verdict.sentence
