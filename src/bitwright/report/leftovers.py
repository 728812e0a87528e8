"""What the source model has beside it that the result does not hold, in words."""

from collections.abc import Sequence
from typing import NamedTuple

from bitwright.record import LeftOut
from bitwright.report.wording import number

# Why, in the order of what a reader misses most.
REASONS = {
    "weights": "other weights; a file that is no safetensors may run code when it is opened",
    "code": "code, which is never copied",
    "large": "a large file that is no part of the tokenizer",
    "unknown": "a kind of file that may hold anything",
    "training": "the state of training",
    "unread": "a file outside the folder of the Transformer, which nothing reads there",
    "copy": "the same model in another format",
}
_NAMED = 3  # in one line


class Row(NamedTuple):
    """One file, or all copies of the model together; bytes: of all of them."""

    name: str
    bytes: int
    why: str


def left_out_rows(left_out: Sequence[LeftOut]) -> list[Row]:
    """A row for each file that was left out, and one, the last, for all copies of the model."""
    order = list(REASONS)
    files = sorted((file for file in left_out if file.reason != "copy"), key=lambda file: _place(file.reason, order))
    rows = [Row(file.name, file.bytes, REASONS.get(file.reason, file.reason)) for file in files]
    if copies := [file for file in left_out if file.reason == "copy"]:
        tops = dict.fromkeys(top + "/" * bool(inner) for top, _, inner in (file.name.partition("/") for file in copies))
        rows.append(Row(_some(list(tops)), sum(file.bytes for file in copies), REASONS["copy"]))
    return rows


def left_out_line(left_out: Sequence[LeftOut]) -> str:
    """The same in one line: "a.pt, b.pt, c.pkl and 2 more; and the same model in another format"."""
    rows = left_out_rows(left_out)
    names = [row.name for row in rows if row.why != REASONS["copy"]]
    copies = [f"{REASONS['copy']} ({row.name})" for row in rows[len(names) :]]
    if not names:
        return "".join(copies)
    return _some(names) + f"; and {REASONS['copy']}" * bool(copies)


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {number(more)} more" if more > 0 else "")


def _place(reason: str, order: Sequence[str]) -> int:
    return order.index(reason) if reason in order else len(order)
