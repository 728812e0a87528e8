"""Names of modules as `quantization_config` gives them: whole, or as "re:" and a pattern."""

import re
from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

T = TypeVar("T")


def patterns(names: Iterable[str], prefix: str) -> list[str]:
    """What matches these modules, of the base model with and without its prefix, and no others.

    Names that differ in their numbers alone become one pattern where they can: a large mixture of experts has ten
    thousands of linears, and readers try every pattern on every module.
    """
    if not prefix:
        return sorted(set(names))
    numbers_of: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for name in names:
        words = name.removeprefix(f"{prefix}.").split(".")
        form = tuple("" if word.isdecimal() else re.escape(word) for word in words)
        numbers_of.setdefault(form, set()).add(tuple(word for word in words if word.isdecimal()))
    found = []
    for form, rows in numbers_of.items():
        for choice in _products(rows):
            numbers = iter(choice)
            path = "\\.".join(word or next(numbers) for word in form)
            found.append(f"re:(?:{re.escape(prefix)}\\.)?{path}$")
    return sorted(found)


def matcher(entries: Iterable[tuple[str, T]]) -> Callable[[str], T | None]:
    """A function from a module's name to the value of the entry that is that name, or else of the first pattern that
    matches it."""
    plain: dict[str, T] = {}
    compiled: list[tuple[re.Pattern[str], T]] = []
    for entry, value in entries:
        if entry.startswith("re:"):
            compiled.append((re.compile(entry[3:]), value))
        else:
            plain.setdefault(entry, value)

    def find(module: str) -> T | None:
        if module in plain:
            return plain[module]
        return next((value for pattern, value in compiled if pattern.match(module)), None)

    return find


def _products(rows: Collection[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows of numbers, all of one length, as products of alternatives: (0, 5), (1, 5), (2, 6) are (0|1, 5), (2, 6)."""
    if not all(rows):
        return [()]
    tails: dict[str, set[tuple[str, ...]]] = {}
    for first, *tail in sorted(rows, key=lambda row: list(map(int, row))):
        tails.setdefault(first, set()).add(tuple(tail))
    firsts: dict[frozenset[tuple[str, ...]], list[str]] = {}
    for first, tail_rows in tails.items():
        firsts.setdefault(frozenset(tail_rows), []).append(first)
    return [
        (numbers[0] if len(numbers) == 1 else f"(?:{'|'.join(numbers)})", *tail)
        for tail_rows, numbers in firsts.items()
        for tail in _products(tail_rows)
    ]
