"""Finds a table's columns of texts, or of pairs of texts: as the user names them, or by their usual names."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bitwright.calibration.tables import Row
from bitwright.errors import DataError

TextPair = tuple[str, str]
Text = str | TextPair  # what a source holds: all texts, or all pairs

TEXT_FIELDS = ("text", "sentence", "content", "sentence1", "question", "query", "document", "passage", "body")
# In the order in which a model reads them. A table of questions with contexts may have answers, too: not what is read.
PAIR_FIELDS = (
    ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("sentence_a", "sentence_b"), ("text1", "text2"),
    ("text_a", "text_b"), ("text", "text_pair"), ("s1", "s2"), ("question1", "question2"), ("premise", "hypothesis"),
    ("question", "context"), ("query", "document"), ("query", "passage"), ("query", "candidate"), ("query", "answer"),
    ("question", "passage"), ("question", "answer"), ("question", "sentence"), ("query", "title"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Source:
    """A source of texts, and its share of a mix relative to the other sources.

    name: a path, a data set's name or "builtin". field: the column that is the text, None to find it by `TEXT_FIELDS`.
    pairs: whether two columns are read, as a pair: `field` and `second`, or those found by `PAIR_FIELDS`.
    """

    name: str
    weight: float = 1.0
    field: str | None = None
    second: str | None = None
    pairs: bool = False


def named_columns(spec: str) -> tuple[str, list[str]]:
    """A name and the columns after its last #, as in "pairs.tsv#query,document"; no columns without a #.

    Raises:
        DataError: more than two columns, or an empty name of one.
    """
    head, hash_sign, fields = spec.rpartition("#")
    if not (hash_sign and head and fields):
        return spec, []
    columns = [field.strip() for field in fields.split(",")]
    if len(columns) > 2 or not all(columns):
        raise DataError(f"{spec}: #{fields} must name one column or two; write {head}#COLUMN or {head}#FIRST,SECOND")
    return head, columns


def column(rows: Iterable[tuple[int, Row]], source: Source) -> Iterator[Text]:
    """The texts of rows, or the pairs if `source.pairs`. Dicts are read by key; lists by the header, which is the first
    list. A row whose text is null is left out.

    Raises:
        DataError: no such column, a cell that is no text, or an empty one in a pair.
    """
    for number, fields, row in picked(rows, source):
        cells = [as_text(row[field], field, source, number) for field in fields]
        if source.pairs:
            yield _pair(cells, fields, source, number)
        elif cells[0] is not None:
            yield cells[0]


def picked(rows: Iterable[tuple[int, Row]], source: Source) -> Iterator[tuple[int, list[str], dict[str, Any]]]:
    """Of each row: its line number, the columns that hold the text or the pair, and all its cells by column.

    Raises:
        DataError: no such column.
    """
    header: list[str] | None = None
    fields: list[str] = []
    for number, row in rows:
        if isinstance(row, list) and header is None:
            header = [cell.strip() for cell in row]
            fields = fields_of(header, source, number)
            continue
        if isinstance(row, list):
            row = dict(zip(header or (), row, strict=False))
        if not fields or not all(field in row for field in fields):
            fields = fields_of(list(row), source, number)
        yield number, fields, row


def fields_of(found: list[str], source: Source, number: int) -> list[str]:
    """The columns that hold the text or the pair, of those that a table has.

    Raises:
        DataError: it has none.
    """
    if not source.pairs:
        wanted = (source.field,) if source.field else TEXT_FIELDS
        field = next((field for field in wanted if field in found), None)
        if field is not None:
            return [field]
        needed, how = f"there is no column {' or '.join(wanted)}", f"Name the column: {source.name}#COLUMN"
    else:
        named = (source.field or "", source.second or "") if source.field else find_pair(found)
        if named and all(field in found for field in named):
            return list(named)
        needed = (
            f"there are no columns {' and '.join(named)}"
            if named
            else "no two columns have names that are usual for pairs"
        )
        how = f"Name the columns: {source.name}#FIRST,SECOND"
    raise DataError(f"{source.name}, line {number}: {needed}; the columns are {', '.join(found) or 'none'}. {how}")


def as_text(value: Any, field: str, source: Source, number: int) -> str | None:
    """The value of a cell, if it is a text or null.

    Raises:
        DataError: it is something else.
    """
    if value is not None and not isinstance(value, str):
        raise DataError(f"{source.name}, line {number}: {field} is a {type(value).__name__}, but must be a text")
    return value


def find_pair(found: Sequence[str]) -> tuple[str, str] | None:
    """Two of the column names that usually hold pairs, whatever their case."""
    spelled = {name.strip().casefold(): name for name in found}
    return next(((spelled[a], spelled[b]) for a, b in PAIR_FIELDS if a in spelled and b in spelled), None)


def _pair(cells: list[str | None], fields: list[str], source: Source, number: int) -> TextPair:
    first, second = ((cell or "").strip() for cell in cells)
    if not (first and second):
        empty = fields[1] if first else fields[0]
        raise DataError(f"{source.name}, line {number}: {empty} is empty, but a pair needs two texts")
    return first, second
