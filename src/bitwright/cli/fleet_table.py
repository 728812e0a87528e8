"""The table of a fleet: as it stands, or on a terminal for as long as a run lasts."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.text import Text

from bitwright.cli.terminal import Column, err, table

if TYPE_CHECKING:
    from bitwright.fleet.rows import Row

_PER_SECOND = 2


def rows_table(rows: "Sequence[Row]", *, steps: bool = False) -> Group:
    """A line for each model; with `steps` what its worker does now in place of what it lost."""
    from bitwright.fleet.page import line

    shown = [line(row) for row in rows]
    columns: list[Column] = [
        ("model", "name"), "state", ("loss", "prose"), ("size", "right"), ("took", "right"),
        ("now" if steps else "since last time", "prose"),
    ]  # fmt: skip
    cells = [
        [one.name, f"{one.state[1]} {row.state}", one.loss, one.bytes, one.took, row.step if steps else one.since]
        for row, one in zip(rows, shown, strict=True)
    ]
    return table("", columns, cells)


@contextmanager
def live_table(rows: "Callable[[], Sequence[Row]]") -> Iterator[None]:
    """Show the table on the terminal while the body runs, and take it away after that."""
    begun = time.monotonic()

    def picture() -> Group:
        now = rows()
        done = sum(row.outcome is not None for row in now)
        clock = f"{done} of {len(now)} done, {time.monotonic() - begun:.0f} s"
        return Group(rows_table(now, steps=True), Text(clock, style="dim"))

    live = Live(get_renderable=picture, console=err, refresh_per_second=_PER_SECOND, transient=True)
    with live:
        yield
