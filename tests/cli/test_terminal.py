"""Tables that fit, names that stay recognisable, progress that says how long, and no colour where none is wanted."""

import io
import itertools
import re
from typing import Any

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from bitwright.cli import terminal
from bitwright.cli.terminal import TerminalProgress, console, counted, fraction, shorten, table

LONG = "bert.encoder.layer.11.attention.output.dense"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")

words = st.text("abcdefgh", min_size=1, max_size=22)
names = st.lists(words, min_size=1, max_size=6).map(".".join)


def drawn(width: int, *arguments: Any, **options: Any) -> list[str]:
    """The lines of a table."""
    file = io.StringIO()
    Console(file=file, width=width).print(table(*arguments, width=width, **options))
    return file.getvalue().splitlines()


@settings(max_examples=40)
@given(st.lists(st.tuples(names, st.lists(words, max_size=12).map(" ".join), words), min_size=1, max_size=5))
def test_table_never_exceeds_its_width(rows: list[tuple[str, str, str]]) -> None:
    lines = drawn(80, "A title", [("layer", "name"), ("reason", "prose"), ("size", "right")], rows)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for _, prose, size in rows:
        assert size in text  # never cut
        assert all(word in text for word in prose.split())


def test_table_cuts_nothing_that_fits() -> None:
    lines = drawn(80, "", [("layer", "name"), ("reason", "prose")], [[LONG, "default scheme"]])
    assert lines[1].rstrip() == f"{LONG}  default scheme"


def test_table_shows_markup_as_text() -> None:
    assert drawn(40, "[red]t[/red]", ["[bold]a[/bold]"], [["[16bit]"]]) == [
        "[red]t[/red]",
        "[bold]a[/bold]",
        "[16bit]       ",
    ]


@given(names, st.integers(2, 60))
def test_shortened_name_ends_as_the_name_does(name: str, width: int) -> None:
    short = shorten(name, width)
    assert len(short) <= width
    assert name.endswith(short.removeprefix("…"))
    assert (short == name) == (len(name) <= width)


@pytest.mark.parametrize(
    ("width", "short"),
    [
        (44, LONG),
        (43, "…encoder.layer.11.attention.output.dense"),
        (26, "…11.attention.output.dense"),
        (25, "…11…output.dense"),
        (15, "…11…dense"),
        (12, "…dense"),
    ],
)
def test_shortened_name_keeps_the_number_of_its_block(width: int, short: str) -> None:
    assert shorten(LONG, width) == short


def test_shortened_name_without_dots() -> None:
    assert shorten("intermediate", 6) == "…diate"


@pytest.mark.parametrize(("text", "value"), [("1%", 0.01), ("0.01", 0.01), ("0.5 %", 0.005), ("99.9%", 0.999)])
def test_fraction(text: str, value: float) -> None:
    assert fraction(text) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize("text", ["", "%", "0", "-1%", "100%", "1", "inf", "1%%", "one"])
def test_fraction_refuses(text: str) -> None:
    with pytest.raises(click.BadParameter, match=re.escape(repr(text))):
        fraction(text)


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
    with TerminalProgress() as progress:
        assert list(progress.track(range(12345), "tuning texts, 12 units in 16 bit")) == list(range(12345))
    lines = visible(screen)
    assert "12345/12345" in lines[-1]
    assert re.search(r"left \d:\d\d:\d\d$", lines[-1])
    assert lines[-1].startswith("tuning texts, 12 units in 16 bit ")
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_moves_is_off_the_screen_after_an_error(screen: io.StringIO, error: type[BaseException]) -> None:
    def work() -> None:
        with TerminalProgress() as progress:
            for _ in progress.track(range(3), "work"):
                raise error

    with pytest.raises(error):
        work()
    hidden, shown = (screen.getvalue().rfind(code) for code in ("\x1b[?25l", "\x1b[?25h"))
    assert -1 < hidden < shown  # the cursor is back


def test_remark_stays_and_a_count_gives_way(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    with TerminalProgress() as progress:
        progress.say("loading [model]")
        progress.say("round 1 of 3: 0.5 ms")
        progress.say("round 2 of 3: 0.4 ms")
    left = screen.getvalue().splitlines()
    kept = [line for line in (ESCAPES.sub("", line).strip() for line in left) if line and "0:00:0" not in line]
    assert kept == ["loading [model]"]


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    long = "reloading " + "the result in every target runtime " * 4
    with TerminalProgress() as progress:
        progress.say(long)
        assert list(progress.track("abc", "rounding weights")) == list("abc")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [long, "rounding weights …"]


@pytest.mark.parametrize(("no_color", "styled"), [("1", False), ("", True)])
def test_no_color(no_color: str, styled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    file = io.StringIO()
    console(file=file).print(table("Title", ["column"], [["cell"]]))
    assert ("\x1b" in file.getvalue()) == styled


def test_what_a_terminal_would_obey_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    file = io.StringIO()
    out = console(file=file)
    out.print(table("a\x1b]0;pwned\x07", ["name"], [["x\x1b[31m"]]))
    out.print("said \x9b31m", markup=False)
    assert "\\x1b]0;pwned\\x07" in file.getvalue()
    assert "\\x1b[31m" in file.getvalue()
    assert not re.search("[\x07\x1b\x9b]", file.getvalue())


def test_progress_in_a_file_tells_the_time_left_now_and_then() -> None:
    """Items take 4 s each: nothing is said in the first ten seconds, and then every ten."""
    seconds, said = itertools.count(0.0, 4.0), []
    assert list(counted([*range(8)], "rounding", said.append, lambda: next(seconds))) == [*range(8)]
    # The clock is read once before the first item, so item n comes 4 (n + 1) s after the start.
    assert said == ["rounding: 2 of 8, about 36 s left", "rounding: 5 of 8, about 14 s left"]


def test_progress_in_a_file_says_nothing_of_short_work() -> None:
    said: list[str] = []
    assert list(counted([1, 2, 3], "rounding", said.append)) == [1, 2, 3]
    assert said == []


@pytest.mark.parametrize(("item_s", "left"), [(11.0, "88 s"), (30.0, "4 min"), (3600.0, "8 h")])
def test_time_left_is_as_precise_as_a_guess(item_s: float, left: str) -> None:
    seconds, said = iter([0.0, 0.0, *(item_s * n for n in range(1, 9))]), []
    list(counted([*range(9)], "x", said.append, lambda: next(seconds)))
    assert said[0] == f"x: 1 of 9, about {left} left"
