"""What the commands share: the console, progress bars, tables that fit 80 columns, percentages."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from bitwright.record import plain_data

T = TypeVar("T")

# Results go to stdout; progress and remarks to stderr, so that --json can be piped. NO_COLOR is honoured by rich.
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class TerminalProgress:
    """Progress bars with the time left; plain lines where stderr is no terminal."""

    def track(self, items: Sequence[T], what: str) -> Iterator[T]:
        """Yield the items, showing how far along they are."""
        if not err.is_terminal:
            self.say(f"{what} …")
            yield from items
            return
        columns = (
            TextColumn("{task.description:<34.34}"), BarColumn(bar_width=16), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=err, transient=True) as progress:
            yield from progress.track(items, total=len(items), description=what)

    def say(self, text: str) -> None:
        """One remark."""
        err.print(text, style="dim", markup=False, soft_wrap=False)


class Percent(click.ParamType):
    """A fraction, given as 1% or 0.01."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value).strip()
        try:
            number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f"{value!r} is no percentage; write 1% or 0.01", param, ctx)
        if not 0 < number < 1:
            self.fail(f"{value!r} must lie between 0 and 100 % (0.01 and 1% mean the same; 1 means 100 %)", param, ctx)
        return number


def table(title: str, columns: Sequence[str | tuple[str, str]], rows: Sequence[Sequence[str]]) -> Table:
    """A table; a column given as (name, "right") is right-aligned. Long names are cut in the middle by the caller."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 1))
    for column in columns:
        name, justify = (column, "left") if isinstance(column, str) else column
        made.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        made.add_row(*row)
    return made


def shorten(name: str, width: int) -> str:
    """A dotted name cut in the middle to `width` characters: its head says which block, its tail which linear."""
    if len(name) <= width:
        return name
    tail = (width - 1) * 2 // 3
    return f"{name[: width - 1 - tail]}…{name[-tail:]}"


def megabytes(bytes_: float) -> str:
    """Bytes as megabytes of 10^6."""
    return f"{bytes_ / 1e6:.1f} MB"


def percent(fraction: float, digits: int = 2) -> str:
    """A fraction as a percentage."""
    return f"{fraction * 100:.{digits}f} %"


def print_json(value: Any) -> None:
    """Plain data on stdout; infinity and NaN as strings, as in a record."""
    click.echo(json.dumps(plain_data(value), indent=1, ensure_ascii=False, allow_nan=False))
