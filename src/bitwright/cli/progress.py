"""How far the work is, on stderr: bars and clocks on a terminal, elsewhere a line now and then."""

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column as RichColumn

from bitwright.cli import terminal
from bitwright.progress import Progress as Told
from bitwright.progress import Quiet

T = TypeVar("T")

# "round 2 of 5": such a remark is out of date as soon as the next one comes.
_COUNTS = re.compile(r"\b\d+ of \d+\b")
_WORTH_TELLING_S = 2.0
_TOLD_EVERY_S = 10.0


def shown_progress(*, quiet: bool) -> AbstractContextManager[Told]:
    """What tells a person how far the work is: nothing with `quiet`, else what suits stderr."""
    if quiet:
        return nullcontext(Quiet())
    return Bars() if terminal.err.is_terminal else Lines()


class Lines:
    """Plain lines, for a file: one when a step begins, and one every `every_s` seconds while it lasts."""

    def __init__(self, every_s: float = _TOLD_EVERY_S) -> None:
        self._every_s, self._last, self._doing = every_s, time.monotonic(), ""
        self._now: Callable[[], str] | None = None  # what there is to say of the step under way
        self._over = threading.Event()
        self._clock = threading.Thread(target=self._remind, daemon=True)

    def __enter__(self) -> "Lines":
        self._clock.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._clock.join()

    def track(self, items: Sequence[T], what: str) -> Iterator[T]:
        """Yield the items, and say now and then how many are done and about how long the rest will take."""
        self._print(f"{what} …")
        begun, done = time.monotonic(), 0
        self._now = lambda: how_far(what, done, len(items), time.monotonic() - begun)
        for item in items:
            yield item
            done += 1
        self.say("")

    def say(self, text: str) -> None:
        """What is being done now; nothing of it where that was said already."""
        begun = time.monotonic()
        self._now = lambda: how_far(text or "still working", 0, 0, time.monotonic() - begun)
        if text and text != self._doing:
            self._print(text)
        self._doing = text

    def _remind(self) -> None:
        while not self._over.wait(max(0.01, self._last + self._every_s - time.monotonic())):
            if self._now is not None and time.monotonic() >= self._last + self._every_s:
                self._print(self._now())

    def _print(self, text: str) -> None:
        self._last = time.monotonic()
        terminal.err.print(text, markup=False, soft_wrap=True)


class Bars:
    """Bars with the time left on a terminal, and a clock for work that cannot be counted.

    A context manager: leaving it takes what still moves off the screen, whatever happened.
    """

    def __init__(self) -> None:
        self._live: Progress | None = None
        self._doing: str | None = None  # what the clock runs for

    def __enter__(self) -> "Bars":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._settle()

    def track(self, items: Sequence[T], what: str) -> Iterator[T]:
        """Yield the items, showing how far along they are and how long the rest will take."""
        self._settle()
        self._live = Progress(
            TextColumn("{task.description:<32.32}", markup=False), BarColumn(bar_width=12), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=terminal.err, transient=True,
        )  # fmt: skip
        with self._live as bar:
            yield from bar.track(items, total=len(items), description=what)

    def say(self, text: str) -> None:
        """What is being done now: a clock runs beside it, and a line stays when it is over."""
        if text == self._doing:
            return
        if self._live and self._doing and _COUNTS.search(self._doing) and _COUNTS.search(text):
            self._live.update(self._live.task_ids[0], description=text)  # the clock goes on
            return
        self._settle()
        self._doing = text
        column = RichColumn(no_wrap=True, overflow="ellipsis")
        self._live = Progress(
            SpinnerColumn(), TextColumn("{task.description}", style="dim", markup=False, table_column=column),
            TimeElapsedColumn(), console=terminal.err, transient=True,
        )  # fmt: skip
        self._live.add_task(text, total=None)
        self._live.start()

    def _settle(self) -> None:
        """End what moves. A remark stays on the screen with the time it took, unless it was one of a count."""
        live, doing = self._live, self._doing
        self._live = self._doing = None
        if live is None:
            return
        live.stop()
        if doing is not None and not _COUNTS.search(doing):
            seconds = live.tasks[0].elapsed or 0.0
            took = f" ({seconds:.0f} s)" if seconds >= _WORTH_TELLING_S else ""
            terminal.err.print(doing + took, style="dim", markup=False)


def how_far(what: str, done: int, total: int, seconds: float) -> str:
    """What a line in a file says of a step: how many items are done and about how long the rest takes, or how long it
    has taken.
    """
    if not done:
        return f"{what}: {_duration(seconds)} so far"
    return f"{what}: {done} of {total}, about {_duration(seconds / done * (total - done))} left"


def _duration(seconds: float) -> str:
    """As precise as a guess is: "30 s", "4 min", "2 h"."""
    size, unit = next(((size, unit) for size, unit in ((3600, "h"), (60, "min")) if seconds >= 2 * size), (1, "s"))
    return f"{max(1, round(seconds / size))} {unit}"
