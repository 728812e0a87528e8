"""What the page says of a tuner's study."""

import math
from typing import Any

from bitwright.record import Influence, TrialRow, Tuning, as_data, record_of
from bitwright.report import render_report
from bitwright.report.tuned import config_words, influences, ranked_trials, trial_rows

HOSTILE = "</script><img src=x>"
PLAIN = {"range_ffn": "min_max", "bias_correction": False}


def trial(number: int, objective: float, **said: Any) -> TrialRow:
    values: dict[str, Any] = {
        "config": PLAIN, "source": "forest", "distance": objective,
        "sqnr_db": 20.0, "rank_flips": 0.01, "loss": 0.01, "bytes": 1000, "work": 1.0, "feasible": True,
        "chosen": False,
    }  # fmt: skip
    return TrialRow(number=number, objective=objective, **(values | said))


STUDY = Tuning(
    "forest", "EMD", 30, "the 5 trials that were asked for are done", 0, 1010.0, 1.01, 48,
    (
        trial(0, 0.03, source="plain recipe"),
        trial(1, 0.01, feasible=False, bytes=5000, config=PLAIN | {"keep_0": True}),
        trial(2, 0.02, chosen=True, config={"range_ffn": "mse", "bias_correction": True}),
        trial(3, math.inf, why="block 1: NaN"),
        trial(4, 0.04, source=HOSTILE),
    ),
    (Influence("range_ffn", 0.8), Influence("bias_correction", 0.001)),
)  # fmt: skip


def test_words() -> None:
    assert [config_words(row, STUDY) for row in STUDY.trials[:3]] == [
        "–",
        "keep_0 on",
        "range_ffn mse, bias_correction on",
    ]
    assert influences(STUDY) == "range_ffn (80 %)"
    assert influences(None) == ""
    assert trial_rows(None) == []
    assert [row.note for row in trial_rows(STUDY)] == [
        "", "over the limit of size or of work, so it cannot win", "", "block 1: NaN", ""
    ]  # fmt: skip


def test_what_may_not_win_is_not_ranked() -> None:
    assert [row.number for row in ranked_trials(STUDY)] == [2, 0, 4]


def test_page_shows_the_study(record: dict[str, Any]) -> None:
    page = render_report(record_of(record | {"tuning": as_data(STUDY)}))
    assert "How the settings were found" in page
    assert 'id="incumbents"' in page
    assert "range_ffn mse, bias_correction on" in page
    assert HOSTILE not in page
    assert "How the settings were found" not in render_report(record_of(record))


def test_a_study_whose_trials_all_failed_is_shown(record: dict[str, Any]) -> None:
    lost = Tuning("random", "EMD", 4, "4 trials", 0, 1.0, 1.0, 8, (trial(0, math.inf, why="NaN"),))
    page = render_report(record_of(record | {"tuning": as_data(lost)}))
    assert "How the settings were found" in page
    assert 'id="incumbents"' not in page
