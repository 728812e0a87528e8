"""Progress reports: how far the work is."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

Track = Callable[[Iterable[Any]], Iterable[Any]]  # wraps a loop, as `iter` and tqdm do


class Progress(Protocol):
    """Reports how far the work is."""

    def track(self, items: Sequence[T], what: str) -> Iterator[T]:
        """Yield the items while showing how many are done."""

    def say(self, text: str) -> None:
        """Show one remark."""


class Quiet:
    """Reports nothing."""

    def track(self, items: Sequence[T], what: str) -> Iterator[T]:
        """Yield the items."""
        return iter(items)

    def say(self, text: str) -> None:
        """Show nothing."""


def tracking(progress: Progress, what: str) -> Track:
    """A function that shows the progress of one loop."""
    return lambda items: progress.track(list(items), what)
