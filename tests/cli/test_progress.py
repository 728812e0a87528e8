"""Progress says how far and how long: bars on a terminal, lines elsewhere, nothing with --quiet."""

import io
import math
import re
import time

import pytest
from rich.console import Console

from bitwright.cli import terminal
from bitwright.cli.progress import Bars, Lines, how_far, shown_progress

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
CLOCK = re.compile(r"\d:\d\d:\d\d")


class Clock:
    """Time that passes when the test says so, however busy the machine is."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("bitwright.cli.progress.time", clock)
    return clock


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """stderr as a terminal of 80 columns; what is written to it."""
    file = io.StringIO()
    monkeypatch.setattr(terminal, "err", Console(file=file, width=80, force_terminal=True, highlight=False))
    return file


def visible(file: io.StringIO) -> list[str]:
    """Every line that was on the screen at some time."""
    return [line.rstrip() for line in re.split(r"[\r\n]+", ESCAPES.sub("", file.getvalue())) if line.strip()]


def test_bar_says_how_far_and_how_long(screen: io.StringIO) -> None:
    with Bars() as progress:
        assert list(progress.track(range(12345), "tuning texts, 12 units in 16 bit")) == list(range(12345))
    lines = visible(screen)
    assert "12345/12345" in lines[-1]
    assert re.search(r"left \d:\d\d:\d\d$", lines[-1])
    assert lines[-1].startswith("tuning texts, 12 units in 16 bit ")
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_moves_is_off_the_screen_after_an_error(screen: io.StringIO, error: type[BaseException]) -> None:
    def work() -> None:
        with Bars() as progress:
            for _ in progress.track(range(3), "work"):
                raise error

    with pytest.raises(error):
        work()
    hidden, shown = (screen.getvalue().rfind(code) for code in ("\x1b[?25l", "\x1b[?25h"))
    assert -1 < hidden < shown  # the cursor is back


def test_remark_stays_and_a_count_gives_way(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitwright.cli.progress._WORTH_TELLING_S", math.inf)  # however long this takes here
    with Bars() as progress:
        progress.say("loading [model]")
        progress.say("round 1 of 3: 0.5 ms")
        progress.say("round 2 of 3: 0.4 ms")
    left = screen.getvalue().splitlines()
    kept = [line for line in (ESCAPES.sub("", line).strip() for line in left) if line and not CLOCK.search(line)]
    assert kept == ["loading [model]"]


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    long = "reloading " + "the result in every target runtime " * 4
    with shown_progress(quiet=False) as progress:
        progress.say(long)
        progress.say(long)  # the command and the work that it starts may say the same
        assert list(progress.track("abc", "rounding weights")) == list("abc")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [long, "rounding weights …"]


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress(quiet=True) as progress:
        progress.say("loading")
        assert list(progress.track("abc", "rounding weights")) == list("abc")
    assert capsys.readouterr() == ("", "")


def test_a_long_step_in_a_file_tells_now_and_then_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    file = io.StringIO()
    monkeypatch.setattr(terminal, "err", Console(file=file, width=80))

    def told_after_a_while(line: str) -> None:
        clock.now += 1.0
        while not file.getvalue().endswith(f"{line}\n"):  # pytest's time limit ends what never comes
            time.sleep(0.001)

    with Lines(every_s=0.02) as progress:
        progress.say("loading")
        told_after_a_while("loading: 1 s so far")
        for number in progress.track(range(2), "rounding"):
            told_after_a_while(("rounding: 1 s so far", "rounding: 1 of 2, about 2 s left")[number])
        told_after_a_while("still working: 1 s so far")
    assert file.getvalue().splitlines() == [
        "loading", "loading: 1 s so far", "rounding …", "rounding: 1 s so far", "rounding: 1 of 2, about 2 s left",
        "still working: 1 s so far",
    ]  # fmt: skip


def test_a_step_that_is_over_soon_says_so_once(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with Lines(every_s=60) as progress:
        assert list(progress.track(range(1000), "rounding")) == [*range(1000)]
    assert capsys.readouterr().err == "rounding …\n"


@pytest.mark.parametrize(
    ("done", "seconds", "said"),
    [
        (0, 12.0, "x: 12 s so far"),
        (0, 0.2, "x: 1 s so far"),
        (1, 11.0, "x: 1 of 9, about 88 s left"),
        (1, 30.0, "x: 1 of 9, about 4 min left"),
        (1, 3600.0, "x: 1 of 9, about 8 h left"),
        (8, 8.0, "x: 8 of 9, about 1 s left"),
    ],
)
def test_time_left_is_as_precise_as_a_guess(done: int, seconds: float, said: str) -> None:
    assert how_far("x", done, 9, seconds) == said
