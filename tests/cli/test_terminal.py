"""Tables that fit, names that stay recognisable, and no colour where none is wanted."""

import io
import re
from typing import Any

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from bitwright.cli import terminal
from bitwright.cli.terminal import FAILURE, console, fraction, remark, shorten, table

LONG = "bert.encoder.layer.11.attention.output.dense"

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


@pytest.mark.parametrize("terminal_there", [True, False])
def test_a_failure_is_red_on_a_terminal_alone(terminal_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(terminal, "err", Console(file=file, width=80, force_terminal=terminal_there, highlight=False))
    monkeypatch.delenv("NO_COLOR", raising=False)
    remark("[out]\nexists", FAILURE)
    assert ("\x1b[1;31mbitwright:" in file.getvalue()) == terminal_there
    assert file.getvalue().endswith(" [out] exists\n")
