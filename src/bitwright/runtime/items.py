"""What `encode` takes: texts, or sequences of token ids."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bitwright.errors import InputError

Track = Callable[[Iterable[Any]], Iterable[Any]]
Items = Sequence[str] | Sequence[Sequence[int]]


def check_texts(items: Items) -> bool:
    """Whether these are texts; False for anything else, and for no items at all.

    Raises:
        InputError: a single string, or texts with something else among them.
    """
    if isinstance(items, str):
        raise InputError("encode takes a list of texts, this is one string; pass [text]")
    if len(items) == 0 or not isinstance(items[0], str):
        return False
    wrong = next((i for i, text in enumerate(items) if not isinstance(text, str)), None)
    if wrong is not None:
        raise InputError(f"text {wrong} is {type(items[wrong]).__name__}, not str")
    return True


def check_ids(items: Items, max_tokens: int) -> list[list[int]]:
    """Sequences of token ids, as lists.

    Raises:
        InputError: one is something else, empty, or longer than `max_tokens`.
    """
    for index, item in enumerate(items):
        if isinstance(item, str) or not isinstance(item, Sequence) or not all(isinstance(i, int) for i in item):
            raise InputError(f"item {index} is {type(item).__name__}: texts, or sequences of token ids, are taken")
        if not 1 <= len(item) <= max_tokens:
            raise InputError(f"item {index} has {len(item)} tokens; this model takes 1 to {max_tokens}")
    return [list(map(int, item)) for item in items]
