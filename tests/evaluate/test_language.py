"""Perplexity: of which windows, against its definition, and with bounds that hold."""

import math

import numpy as np
import pytest

from bitwright.errors import DataError
from bitwright.evaluate import LanguageModel, Task, language_task, paired_bootstrap, shared_texts, split


class Words:
    """A tokenizer that gives every word its number."""

    bos_token_id = 7

    def __call__(self, text, **options):
        assert not options.pop("add_special_tokens")
        return {"input_ids": [int(word) for word in text.split()]}


@pytest.fixture
def numbers(tmp_path):
    """`numbers(n)`: a file of the numbers from 0 to n − 1, twenty a line."""

    def write(n, name="wiki.test.raw"):
        lines = [" ".join(map(str, range(start, min(start + 20, n)))) for start in range(0, n, 20)]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return tmp_path / name

    return write


def outputs_of(nll, ids=None):
    """Windows of these negative log-likelihoods, (windows, tokens)."""
    ids = np.zeros_like(nll) if ids is None else ids
    return list(np.stack([nll, ids], axis=1).astype(np.float32))


def windows_task(n):
    return Task("text", tuple((i, i + 1, i + 2) for i in range(n)), LanguageModel("text, all windows"))


def test_windows_are_the_text_from_its_beginning_line_by_line(numbers):
    task = language_task(numbers(105), Words(), window=10, windows=4)
    assert task.texts == tuple(tuple(range(start, start + 10)) for start in (0, 10, 20, 30))
    assert task.kind.protocol == "wiki.test.raw, first 4 non-overlapping windows of 10 tokens, no BOS"
    assert task.n_units == 4


@pytest.mark.parametrize("windows", [None, 40])
def test_where_there_are_fewer_windows_all_count_and_the_protocol_says_so(numbers, windows):
    task = language_task(numbers(105), Words(), window=10, windows=windows)
    assert len(task.texts) == 10  # the last five tokens fill none
    assert "all 10 non-overlapping windows" in task.kind.protocol


def test_bos_is_one_of_the_windows_tokens(numbers):
    task = language_task(numbers(30), Words(), window=10, bos=True)
    assert task.texts == tuple((7, *range(start, start + 9)) for start in (0, 9, 18))
    assert task.kind.protocol.endswith("each begun with BOS")


def test_a_text_that_fills_one_window_exactly_is_enough(numbers):
    assert language_task(numbers(10), Words(), window=10).texts == (tuple(range(10)),)
    with pytest.raises(DataError, match=r"wiki\.test\.raw: the text has 9 tokens, but a window needs 10"):
        language_task(numbers(9), Words(), window=10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, "40 windows of 1 tokens: ask for at least 1 window of at least 2 tokens"),
        ({"window": 2, "bos": True}, "of at least 3 tokens"),
        ({"windows": 0}, "0 windows of 1024 tokens"),
    ],
)
def test_windows_that_predict_nothing_are_refused(numbers, options, message):
    with pytest.raises(DataError, match=message):
        language_task(numbers(100), Words(), **options)


def test_a_tokenizer_without_bos_begins_no_window_with_it(numbers):
    tokenizer = Words()
    tokenizer.bos_token_id = None
    assert language_task(numbers(10), tokenizer, window=10).texts
    with pytest.raises(DataError, match="the tokenizer has none"):
        language_task(numbers(10), tokenizer, window=10, bos=True)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.txt"):
        language_task(tmp_path / "nowhere.txt", Words())


def test_perplexity_is_the_exponential_of_the_mean_over_tokens_not_windows():
    outputs = [np.array([[1.0, 2, 3], [0, 0, 0]]), np.array([[10.0], [0]])]
    task = windows_task(2)
    assert task.score(outputs) == pytest.approx(math.exp((1 + 2 + 3 + 10) / 4))
    assert not task.kind.label_free


def test_the_loss_is_the_relative_rise_of_perplexity():
    nll = np.random.default_rng(0).uniform(1, 5, (6, 20))
    worse = nll + math.log(1.03)
    task = windows_task(6)
    assert task.loss(outputs_of(nll), outputs_of(worse)) == pytest.approx(0.03, abs=1e-6)
    assert task.loss(outputs_of(worse), outputs_of(nll)) == pytest.approx(1 / 1.03 - 1, abs=1e-6)


def test_companions_are_agreement_and_the_difference_per_token():
    rng = np.random.default_rng(0)
    nll, ids = rng.uniform(1, 5, (4, 10)), rng.integers(0, 50_000, (4, 10))
    other = ids.copy()
    other[0, :3] += 1
    found = windows_task(4).companions(outputs_of(nll, ids), outputs_of(nll + 0.25, other))
    assert found == pytest.approx({"next_token_agreement": 37 / 40, "mean_nll_difference": 0.25})


@pytest.mark.parametrize("broken", [math.nan, math.inf, 1e30, 3e38])
def test_a_broken_model_has_a_huge_perplexity_and_every_bound_stays_a_number(broken):
    nll = np.random.default_rng(0).uniform(1, 5, (8, 10))
    bad = nll.copy()
    bad[3, 4] = broken
    task = windows_task(8)
    assert task.scores(outputs_of(nll), outputs_of(bad))[1] > 1e40
    interval = paired_bootstrap(task, outputs_of(nll), outputs_of(bad), n=50)
    assert interval.loss > 1e40
    assert not math.isnan(interval.lower) and not math.isnan(interval.upper)  # noqa: PT018


def test_outputs_of_another_shape_are_refused():
    with pytest.raises(DataError, match=r"shape \(3, 4\), but a language model gives \(2, tokens − 1\)"):
        windows_task(1).score([np.ones((3, 4))])


def test_equal_windows_stay_on_one_side_of_a_split():
    task = Task("text", tuple((i // 2, 5) for i in range(40)), LanguageModel("p"))
    tuning, held_out = split(task, seed=0)
    assert not shared_texts(tuning, held_out)
    assert len(tuning.texts) + len(held_out.texts) == 40
    assert tuning.kind == task.kind


def test_bounds_of_the_rise_hold_as_often_as_they_say():
    def draw(rng, n=40):
        nll = rng.gamma(2, 1.5, (n, 30)) * rng.uniform(0.7, 1.3, (n, 1))  # windows differ more than chance
        return windows_task(n), outputs_of(nll), outputs_of(nll + rng.normal(0.03, 0.05, (n, 1)))

    true_loss = draw(np.random.default_rng(9), 40_000)
    true_loss = true_loss[0].loss(*true_loss[1:])
    intervals = [paired_bootstrap(*draw(np.random.default_rng(seed)), n=200, seed=seed) for seed in range(150)]
    assert all(interval.lower < interval.loss < interval.upper for interval in intervals)
    assert 0.88 < np.mean([interval.lower <= true_loss for interval in intervals]) < 1
    assert 0.88 < np.mean([interval.upper >= true_loss for interval in intervals]) < 1
    assert intervals[0].unit == "windows"


def test_a_model_against_itself_lost_exactly_nothing():
    outputs = outputs_of(np.random.default_rng(0).uniform(1, 5, (6, 20)))
    interval = paired_bootstrap(windows_task(6), outputs, outputs, n=50)
    assert (interval.loss, interval.lower, interval.upper) == (0, 0, 0)
