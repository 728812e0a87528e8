"""How a person is told how far the work is."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

Track = Callable[[Iterable[Any]], Iterable[Any]]  # wraps a loop, as `iter` and tqdm do


class Progress(Protocol):
    """Tells a person how far the work is."""

    def track(self, items: Sequence[T], what: str) -> Iterator[T]:
        """Yield the items while showing how many are done."""

    def say(self, text: str) -> None:
        """One remark."""


class Quiet:
    """Tells nobody."""

    def track(self, items: Sequence[T], what: str) -> Iterator[T]:
        """Yield the items."""
        return iter(items)

    def say(self, text: str) -> None:
        """Nothing."""


def tracking(progress: Progress, what: str) -> Track:
    """What shows how far one loop is."""
    return lambda items: progress.track(list(items), what)
