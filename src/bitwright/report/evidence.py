"""Why these methods: what the decision rests on, whatever shape the Record keeps it in, as tables and lists."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bitwright.report.wording import number, words

_MOST_LISTED = 4
_NOTHING: tuple[Any, ...] = (None, "", [], {})


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One part of the evidence: either a table (columns, and rows of cells as plain values) or `lines` of text."""

    title: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    lines: tuple[str, ...] = ()


def exhibits(decision: Any) -> list[Exhibit]:
    """The parts of a decision, in its order: rows become a table, texts a list, pairs a table of two columns."""
    return list(_exhibits(decision)) if isinstance(decision, dict) else []


def cell(value: Any) -> str:
    """A value as the text of a cell: numbers shortened, pairs joined, of long lists the first and their length."""
    if isinstance(value, dict):
        return ", ".join(f"{words(key)} {cell(part)}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        if len(value) > _MOST_LISTED:
            return f"{cell(value[0])} and {len(value) - 1} others"
        return ", ".join(map(cell, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value)


def _exhibits(decision: dict[str, Any]) -> Iterator[Exhibit]:
    for key, value in decision.items():
        title = words(key)
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            columns = tuple(dict.fromkeys(key for row in value for key, part in row.items() if part not in _NOTHING))
            yield Exhibit(title, tuple(map(words, columns)), tuple(tuple(map(row.get, columns)) for row in value))
        elif isinstance(value, list) and value:
            yield Exhibit(title, lines=tuple(map(cell, value)))
        elif isinstance(value, dict) and value:
            yield Exhibit(title, ("", ""), tuple((words(name), part) for name, part in value.items()))
        elif value not in _NOTHING:
            yield Exhibit(title, lines=(cell(value),))
