"""Names of modules as `quantization_config` gives them: whole, or as "re:" and a pattern."""

import re
import time
from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

from bitwright.errors import CheckpointError, brief

# A pattern of a stranger's must not run without end. Where no group is repeated, the time for one name is a power of
# its length, as many as there are repeats.
_MOST_REPEATS, _LONGEST_PATTERN, _LONGEST_NAME, _MOST_SECONDS = 4, 1 << 16, 200, 2.0
_REPEAT = re.compile(r"[*+?{]")

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
            compiled.append((bounded(entry), value))
        else:
            plain.setdefault(entry, value)

    seconds = 0.0

    def find(module: str) -> T | None:
        nonlocal seconds
        if module in plain or not compiled:
            return plain.get(module)
        if len(module) > _LONGEST_NAME:
            raise CheckpointError(f"{brief(module)}: a name of {len(module)} characters, and patterns of names to try")
        begun = time.monotonic()
        found = next((value for pattern, value in compiled if pattern.match(module)), None)
        seconds += time.monotonic() - begun
        if seconds > _MOST_SECONDS:
            raise CheckpointError(f"the patterns of quantization_config take over {_MOST_SECONDS:.0f} s to try")
        return found

    return find


def bounded(entry: str) -> re.Pattern[str]:
    """The pattern of an entry "re:…", compiled, if it can be tried on a name in bounded time.

    Raises:
        CheckpointError: it is none, it repeats a group, or has more than four repeats.
    """
    pattern = entry.removeprefix("re:")
    bare = re.sub(r"\\.", "x", pattern.replace("(?", "("))  # no escapes, and no question mark that begins a group
    repeats = [found for found in _REPEAT.finditer(bare) if found[0] != "?"]
    fault = ""
    if len(pattern) > _LONGEST_PATTERN:
        fault = f"it has {len(pattern)} characters"
    elif any(bare[found.start() - 1 : found.start()] == ")" for found in repeats):
        fault = "a group is repeated"
    elif len(repeats) > _MOST_REPEATS:
        fault = f"there are {len(repeats)} repeats, more than {_MOST_REPEATS}"
    if fault:
        raise CheckpointError(f"{brief(entry)}: trying this pattern could take for ever: {fault}; name the modules")
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{brief(entry)} is not a regular expression ({error})") from None


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
