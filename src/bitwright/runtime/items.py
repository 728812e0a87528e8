"""What `encode` takes: texts, pairs of texts, or sequences of token ids, in anything that gives them in an order.

numpy, torch, pandas, pyarrow and datasets are known by what their objects can do; none is imported for it.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from bitwright.errors import InputError
from bitwright.files.tokenizer import OpenTokenizer, cut, encodings_of

Pair = tuple[str, str]
Items = Iterable[str] | Iterable[Pair] | Iterable[Sequence[int]]

_OF_PYTHON = (str, list, tuple)  # nothing to convert

# Missing values of pandas; those of Python and numpy are None and NaN.
_MISSING = ("NAType", "NaTType")


class Tokens(NamedTuple):
    """The token ids and token types of each item. types None: all are of type 0.

    skip: so many at the beginning of each, those of a prompt, do not count when token vectors are pooled.
    """

    ids: list[list[int]]
    types: list[list[int]] | None = None
    skip: int = 0

    def of(self, chosen: Sequence[int]) -> "Tokens":
        """The tokens of some items."""
        types = self.types
        return Tokens([self.ids[i] for i in chosen], None if types is None else [types[i] for i in chosen], self.skip)


def listed(items: Items) -> list[Any] | str:
    """All items of a list, a generator, an array, a Series or a table's column, in order. Values of numpy, torch and
    pyarrow become Python values. A single string is left to `texts_of`.

    Raises:
        InputError: what has no items, or no order of them, or names of columns instead.
    """
    if isinstance(items, str):
        return items
    if type(items) is list:  # as most are
        return [item if type(item) in _OF_PYTHON else _plain(item) for item in items]
    columns = any(hasattr(type(items), name) for name in ("columns", "column_names"))
    for refused, advice in (
        (columns, "; give one of its columns"),
        (isinstance(items, set | frozenset), ", whose order is undefined; give a list"),
        (isinstance(items, Mapping | bytes | bytearray) or not _iterates(items), ""),
    ):
        if refused:
            raise InputError(f"encode takes a list of texts, but this is {type(items).__name__}{advice}")
    return [item if type(item) in _OF_PYTHON else _plain(item) for item in items]


def texts_of(items: list[Any] | str) -> tuple[list[str], list[str] | None] | None:
    """The first texts, and the second texts of pairs. None if the items are not texts, or if there are none.

    items: as `listed` gives them.

    Raises:
        InputError: a single string, or texts or pairs with something else among them.
    """
    if isinstance(items, str):
        raise InputError("encode takes a list of texts, but this is one string; pass [text]")
    if not items:
        return None
    if _is_textual(items[0]):
        _check_all(items, lambda item: isinstance(item, str), "text", "str")
        return [str(text) for text in items], None
    if isinstance(items[0], tuple | list) and any(map(_is_textual, items[0])):
        _check_all(items, _is_pair, "pair", "two texts")
        return [str(pair[0]) for pair in items], [str(pair[1]) for pair in items]
    return None


def check_ids(items: list[Any] | str, max_tokens: int) -> list[list[int]]:
    """Check sequences of token ids, and return them as lists.

    Raises:
        InputError: one is something else, empty, or longer than `max_tokens`.
    """
    for index, item in enumerate(items):
        if not _are_whole(item):
            raise InputError(
                f"item {index} is {type(item).__name__}; give texts, pairs of texts or sequences of token ids"
            )
        if not 1 <= len(item) <= max_tokens:
            raise InputError(f"item {index} has {len(item)} tokens; this model takes 1 to {max_tokens}")
    return [list(map(int, item)) for item in items]


def check_types(types: Sequence[Sequence[int]] | None, ids: list[list[int]], n_types: int) -> Tokens:
    """Ids with the types of their tokens.

    n_types: of the model; types below it exist.

    Raises:
        InputError: not a type for each token, or one that the model does not have.
    """
    if types is None:
        return Tokens(ids)
    types = [_plain(row) for row in types]
    if len(types) != len(ids):
        raise InputError(f"there are token types for {len(types)} items, but {len(ids)} items")
    for index, (row, of) in enumerate(zip(types, ids, strict=True)):
        if not _are_whole(row):
            raise InputError(
                f"item {index}: token types must be a sequence of whole numbers, but this is {str(row)[:80]}"
            )
        if len(row) != len(of):
            raise InputError(f"item {index} has {len(of)} tokens but {len(row)} token types; give one type per token")
    check_range(types, n_types, "token type")
    return Tokens(ids, [list(map(int, row)) for row in types])


def check_range(rows: Sequence[Sequence[int]], end: int, what: str) -> None:
    """Refuse numbers for which a model's table has no row. end: numbers below it exist.

    Raises:
        InputError: one that is negative, or too large; the message names the item.
    """
    if min(chain.from_iterable(rows), default=0) < 0 or max(chain.from_iterable(rows), default=0) >= end:
        index, wrong = next((i, n) for i, row in enumerate(rows) for n in row if not 0 <= n < end)
        raise InputError(f"item {index}: {what} {wrong}, but this model has only 0 to {end - 1}")


def cut_all(encodings: Sequence[Any], limit: int | None, side: str, *, typed: bool) -> Tokens:
    """Encodings of the tokenizers library as tokens, with types if `typed`, cut to `limit` at `side`."""
    rows = [cut(encoding, sys.maxsize if limit is None else limit, side, typed=typed) for encoding in encodings]
    return Tokens([ids for ids, _ in rows], [types or [] for _, types in rows] if typed else None)


def read_with(
    opened: OpenTokenizer, first: list[str], second: list[str] | None, *, typed: bool, limit: int | None,
    where: object, special: bool = True,
) -> Tokens:  # fmt: skip
    """`Model.read` with a tokenizer of the tokenizers library. where: the model, for messages."""
    typed = typed and (opened.single_types if second is None else opened.types)
    found = encodings_of(opened.tokenizer, first, second, where, special=special)
    return cut_all(found, limit, opened.side, typed=typed)


def refuse_types(types: object) -> None:
    """Raises:
    InputError: token types were given with texts.
    """
    if types is not None:
        raise InputError("types can be given only with token ids; for texts the tokenizer gives them")


def refuse_long(longer: Iterable[bool], max_tokens: int) -> None:
    """Refuse texts that are too long. longer: for each text, whether it has more tokens than the model takes.

    Raises:
        InputError: one has.
    """
    index = next((i for i, too_long in enumerate(longer) if too_long), None)
    if index is not None:
        raise InputError(
            f"text {index} has more than {max_tokens} tokens, which is this model's limit; shorten it, or let it be "
            "cut with truncate=True"
        )


def _are_whole(numbers: Any) -> bool:
    """Whether this is a sequence of whole numbers."""
    if not isinstance(numbers, Sequence) or isinstance(numbers, str | bytes | bytearray):
        return False
    return all(isinstance(i, int | np.integer) and not isinstance(i, bool) for i in numbers)


def _iterates(items: Any) -> bool:
    try:
        iter(items)
    except TypeError:  # also of an array of no dimension
        return False
    return True


def _plain(item: Any) -> Any:
    """An item of numpy, torch or pyarrow, or a sequence of such items, as Python values; any other unchanged."""
    for name in ("tolist", "as_py"):
        if (convert := getattr(item, name, None)) is not None:
            return convert()
    return item


def _is_missing(item: Any) -> bool:
    return item is None or (isinstance(item, float) and item != item) or type(item).__name__ in _MISSING


def _is_textual(item: Any) -> bool:
    """Whether this is a text, or a wrong value in the place of a text."""
    return isinstance(item, str | bytes) or _is_missing(item)


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple | list) and len(item) == 2 and all(isinstance(text, str) for text in item)


def _check_all(items: list[Any], fits: Callable[[Any], bool], what: str, kind: str) -> None:
    index = next((i for i, item in enumerate(items) if not fits(item)), None)
    if index is None:
        return
    parts = items[index] if isinstance(items[index], tuple | list) else [items[index]]
    advice = ""
    if (missing := next((part for part in parts if _is_missing(part)), items)) is not items:
        advice = f': a value is missing ({missing}); leave the {what} out, or put "" there'
    elif any(isinstance(part, bytes) for part in parts):
        advice = ": bytes are not texts; decode them: item.decode()"
    raise InputError(f"{what} {index} is {type(items[index]).__name__}, not {kind}{advice}")
