"""Names of modules as `quantization_config` gives them: whole, or as "re:" and a pattern."""

import re
import time
from collections.abc import Callable, Collection, Iterable
from math import comb, prod
from typing import TypeVar

from bitwright.errors import CheckpointError, brief

# A pattern of a stranger's must not run without end. Where no group is repeated, the ways to try one on a name are at
# most its choices (alternatives, and twice for each "?") times those to part the name's characters among its repeats.
_MOST_WAYS, _LONGEST_PATTERN, _LONGEST_NAME = 100_000_000, 1 << 16, 200
# Time for all names together: our own patterns and usual ones take microseconds each.
_SECONDS, _SECONDS_EACH = 2.0, 0.001
_REPEAT = re.compile(r"[*+{]")
_CLASS = re.compile(r"\[\^?\]?[^\]]*\]")

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


def matcher(entries: Iterable[tuple[str, T]], *, anywhere: bool = False) -> Callable[[str], T | None]:
    """A function from a module's name to the value of the entry that is that name, or else of the first pattern that
    matches it: from its beginning, or `anywhere` in it."""
    plain: dict[str, T] = {}
    compiled: list[tuple[Callable[[str], object], T]] = []
    for entry, value in entries:
        if entry.startswith("re:"):
            pattern = bounded(entry)
            compiled.append((pattern.search if anywhere else pattern.match, value))
        else:
            plain.setdefault(entry, value)

    tried, seconds = 0, 0.0

    def find(module: str) -> T | None:
        nonlocal tried, seconds
        if module in plain or not compiled:
            return plain.get(module)
        if len(module) > _LONGEST_NAME:
            raise CheckpointError(
                f"{brief(module)}: this name has {len(module)} characters, which is too many to match against patterns"
            )
        begun = time.monotonic()
        found = next((value for match, value in compiled if match(module)), None)
        tried, seconds = tried + 1, seconds + time.monotonic() - begun
        if seconds > _SECONDS + _SECONDS_EACH * tried:
            raise CheckpointError(
                f"the patterns of quantization_config would take {seconds:.0f} s to match against the names of modules"
            )
        return found

    return find


def bounded(entry: str) -> re.Pattern[str]:
    """The pattern of an entry "re:…", compiled, if it can be tried on a name in bounded time.

    Raises:
        CheckpointError: it is none, it repeats a group, or there are too many ways to try it.
    """
    pattern, fault = entry.removeprefix("re:"), ""
    bare = _CLASS.sub("x", re.sub(r"\\.", "x", pattern, flags=re.DOTALL))
    if len(pattern) > _LONGEST_PATTERN:
        fault = f"it has {len(pattern)} characters"
    elif re.search(r"\(\?(#|[a-z]*x)", bare):
        fault = "it has comments, or the flag x"
    elif re.search(r"\)[*+{]", bare):
        fault = "a group is repeated"
    elif (ways := _ways(bare.replace("(?", "("))) > _MOST_WAYS:
        fault = f"there are {ways} ways to match, more than {_MOST_WAYS}"
    if fault:
        raise CheckpointError(
            f"{brief(entry)}: matching this pattern could take for ever, because {fault}; list the modules by name"
        )
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{brief(entry)} is not a regular expression ({error})") from None


def _ways(bare: str) -> int:
    """The ways to try a pattern on the longest name; it is given without classes, escapes and kinds of groups."""
    choices, open_groups = 1 << bare.count("?"), [1]
    for letter in bare:
        if letter == "(":
            open_groups.append(1)
        elif letter == "|":
            open_groups[-1] += 1
        elif letter == ")" and len(open_groups) > 1:
            choices *= open_groups.pop()
    repeats = len(_REPEAT.findall(bare))
    return choices * prod(open_groups) * comb(_LONGEST_NAME + repeats, repeats)


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
