"""bitwright tune: what it prints, and what it refuses."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bitwright.cli.terminal import share
from bitwright.cli.tune import print_study
from tests.conftest import Run
from tests.report.test_tuned import STUDY


def test_the_best_trials_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_study(STUDY)
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()[1:4]]
    assert [row[:2] for row in rows] == [["3", "chosen"], ["1", "plain"], ["5", "</script><img"]]
    assert "5 trials: the 5 trials that were asked for are done." in printed
    assert "What mattered most: range_ffn (80 %)." in printed
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--trials", "3"), "--trials: 3 is not in the range x>=4"),
        (("--sampler", "tpee"), "'tpee' is unknown (did you mean 'tpe'?)"),
        (("--max-bytes", "much"), "'much' is no percentage; write 105% or 1.05"),
        (("--max-work", "2000%"), "must lie between 10 and 1000 %"),
        (("--method", "reproduce"), "nothing is left to tune"),
    ],
)
def test_wrong_options(
    options: tuple[str, ...], message: str, run: Run, here: Path, tiny_model: Callable[..., Path]
) -> None:
    outcome = run("tune", tiny_model("bert"), "--out", "out", *options)
    assert outcome.code == 2
    assert message in " ".join(outcome.err.split())
    assert list(here.iterdir()) == []


def test_a_dry_run_is_not_tuned(run: Run, here: Path, tiny_model: Callable[..., Path]) -> None:
    outcome = run("quantize", tiny_model("bert"), "--dry-run", "--tune", 9)
    assert outcome.code == 2
    assert "leave one out" in outcome.err


def test_shares() -> None:
    assert (share("105%"), share("1.05"), share("0.5")) == (1.05, 1.05, 0.5)
