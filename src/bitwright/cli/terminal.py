"""What the commands share: the consoles, remarks, tables that fit the terminal, percentages, JSON."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TextIO

import click
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from bitwright.errors import printable
from bitwright.record import plain_data

# What a column holds. Only names and prose give way where the terminal is narrow: prose wraps between words, a name
# loses its head.
ColumnKind = Literal["left", "right", "name", "prose"]
Column = str | tuple[str, ColumnKind]  # a heading, with the kind "left" unless given
_LEAST_NAME = 12
_LONGEST_WORD = 22  # in prose; longer ones are broken
_GAP = 2  # characters between columns

# Styles of what should be seen first.
FAILURE, WARNING, SUCCESS = "bold red", "bold yellow", "bold green"


class _Console(Console):
    """Shows what a terminal would obey, as an escape, wherever a text comes from."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def console(*, stderr: bool = False, file: TextIO | None = None) -> Console:
    """A console without highlighting. With NO_COLOR set it writes no styles at all: not even bold."""
    return _Console(
        stderr=stderr, file=file, highlight=False, color_system=None if os.environ.get("NO_COLOR") else "auto"
    )


# Results go to stdout; progress, remarks and errors to stderr, so that --json can be piped.
out = console()
err = console(stderr=True)


def fraction(text: str) -> float:
    """The fraction that "1%" or "0.01" writes.

    Raises:
        click.BadParameter: no number, or not between 0 and 1, both excluded.
    """
    number = _part(text, "1% or 0.01")
    if not 0 < number < 1:
        raise click.BadParameter(f"{text!r} must lie between 0 and 100 % (0.01 and 1% mean the same; 1 means 100 %)")
    return number


def share(text: str) -> float:
    """The number that "105%" or "1.05" writes, which may be above 1.

    Raises:
        click.BadParameter: no number, or not from 0.1 to 10.
    """
    number = _part(text, "105% or 1.05")
    if not 0.1 <= number <= 10:
        raise click.BadParameter(f"{text!r} must lie between 10 and 1000 % (1.05 and 105% mean the same)")
    return number


def _part(text: str, example: str) -> float:
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no percentage; write {example}") from None


def table(
    title: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    *,
    header: bool = True,
    width: int | None = None,
) -> Group:
    """A table no wider than `width` characters, by default the terminal.

    Prose gives way first, by wrapping, then names, by losing their heads (`shorten`); numbers are never cut. Cells are
    text: markup in them is shown, not obeyed.
    """
    headings = [column if isinstance(column, str) else column[0] for column in columns]
    kinds: list[ColumnKind] = ["left" if isinstance(column, str) else column[1] for column in columns]
    title, rows = printable(title), [[printable(cell) for cell in row] for row in rows]
    shown = [headings, *rows] if header else list(rows)
    widths = _fitted([[row[i] for row in shown] for i in range(len(kinds))], kinds, width or out.width)
    made = Table(show_header=header, box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    for heading, kind, room in zip(headings, kinds, widths, strict=True):
        shown_heading = Text(shorten(heading, room) if kind == "name" else heading)
        justify: Literal["left", "right"] = "right" if kind == "right" else "left"
        made.add_column(shown_heading, justify=justify, width=room, no_wrap=kind != "prose", overflow="fold")
    for row in rows:
        made.add_row(*(Text(shorten(c, w) if k == "name" else c) for c, k, w in zip(row, kinds, widths, strict=True)))
    return Group(Text(title, style="bold"), made) if title else Group(made)


def _fitted(columns: list[list[str]], kinds: list[ColumnKind], width: int) -> list[int]:
    """Widths of columns with these cells: within `width` together, if what may give way can make it so."""
    widths = [max(map(cell_len, cells), default=0) for cells in columns]
    words = [max((cell_len(word) for cell in cells for word in cell.split()), default=0) for cells in columns]
    for soft_kind in ("prose", "name"):
        soft = [i for i, kind in enumerate(kinds) if kind == soft_kind]
        least = [min(words[i], _LONGEST_WORD) if soft_kind == "prose" else _LEAST_NAME for i in soft]
        excess = sum(widths) + _GAP * (len(widths) - 1) - width
        while excess > 0 and (wide := [i for i, room in zip(soft, least, strict=True) if widths[i] > room]):
            widths[max(wide, key=widths.__getitem__)] -= 1
            excess -= 1
    return widths


def shorten(name: str, width: int) -> str:
    """A dotted name in at most `width` characters. Its head goes first, but the number of the block stays if it can:

    "bert.encoder.layer.11.attention.output.dense" -> "…11.attention.output.dense" -> "…11…output.dense"
    """
    if cell_len(name) <= width:
        return name
    tail = _tail(name, width - 1)
    numbers = [part for part in name.split(".") if part.isdigit()]
    if not numbers or numbers[-1] in tail.split(".") or width < len(numbers[-1]) + _LEAST_NAME:
        return f"…{tail}"
    return f"…{numbers[-1]}…{_tail(name, width - len(numbers[-1]) - 2)}"


def _tail(name: str, width: int) -> str:
    """The last `width` characters of a dotted name, without the part that they begin amid."""
    tail = name[-width:]
    begins_a_part = name[-width - 1] == "."
    return tail if begins_a_part or "." not in tail[:-1] else tail[tail.index(".") + 1 :]


def remark(text: str, style: str = "") -> None:
    """One line on stderr that begins with our name, in `style` where stderr is a terminal."""
    line = Text.assemble(("bitwright:", style), " ", printable(" ".join(text.split())))
    err.print(line, soft_wrap=True)


def print_warnings(warnings: Iterable[str]) -> None:
    """What a person should know beside the result, a line each."""
    for text in warnings:
        remark(f"warning: {text}", WARNING)


def print_json(value: Any) -> None:
    """Plain data on stdout; infinity and NaN as strings, as in a record."""
    click.echo(json.dumps(plain_data(value), indent=1, ensure_ascii=False, allow_nan=False))
