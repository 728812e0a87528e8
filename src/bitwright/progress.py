"""How a person is told how far the work is."""

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


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
