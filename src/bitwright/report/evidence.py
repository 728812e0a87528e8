"""Why these methods: what the decision rests on, whatever the Record keeps of it, as tables and lists."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bitwright.report.wording import is_number, number, percent, seconds, size, words

_MOST_LISTED = 4  # of a list within a cell
_LEADING = ("unit", "model", "method", "chosen", "reason", "why")  # columns that a reader looks for first
_NOTHING: tuple[Any, ...] = (None, "", [], {})


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One part of the evidence: a table, with columns unless it is one of pairs, or `lines` of text.

    rows: of cells, each the plain value, to sort by, and its text.
    """

    title: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[tuple[Any, str], ...], ...] = ()
    lines: tuple[str, ...] = ()


def exhibits(decision: Any) -> list[Exhibit]:
    """The parts of a decision: its single facts as pairs; then, in its order, rows as tables and texts as lists."""
    if not isinstance(decision, dict):
        return []
    parts = {key: value for key, value in decision.items() if value not in _NOTHING}
    facts = {key: value for key, value in parts.items() if not isinstance(value, (dict, list))}
    rest = {key: value for key, value in parts.items() if key not in facts}
    return [*_exhibits({"in short": facts} if facts else {}), *_exhibits(rest)]


def cell(value: Any, key: str = "") -> str:
    """A value as text: numbers as what their key says they are, pairs joined, of long lists the first alone."""
    if isinstance(value, dict):
        return ", ".join(f"{words(name)} {cell(part, key or name)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        if len(value) > _MOST_LISTED:
            return f"{cell(value[0], key)} and {len(value) - 1} others"
        return ", ".join(cell(part, key) for part in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key == "role":
        return words(value)
    if not is_number(value):
        return number(value)
    parts = key.split("_")
    if "bytes" in parts:
        return size(value)
    if parts[-1] == "seconds":
        return seconds(value)
    return percent(value) if {"error", "loss", "expected"}.intersection(parts) else number(value)


def _exhibits(parts: dict[str, Any]) -> Iterator[Exhibit]:
    for key, value in parts.items():
        if isinstance(value, dict):
            pairs = (((name, _title(name)), (part, cell(part, name))) for name, part in value.items())
            yield Exhibit(_title(key), (), tuple(pairs))
        elif all(isinstance(row, dict) for row in value):
            held = dict.fromkeys(column for row in value for column, part in row.items() if part not in _NOTHING)
            columns = [name for name in _LEADING if name in held] + [name for name in held if name not in _LEADING]
            rows = tuple(tuple((row.get(name), cell(row.get(name), name)) for name in columns) for row in value)
            yield Exhibit(_title(key), tuple(map(_title, columns)), rows)
        else:
            yield Exhibit(_title(key), lines=tuple(cell(line, key) for line in value))


def _title(key: str) -> str:
    """A key as a heading: "n_tokens" -> "tokens"."""
    return words(key.removeprefix("n_"))
