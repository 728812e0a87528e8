"""Reads a corpus that memory does not hold: all files twice, first to check and count, then shard by shard."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from bitwright.calibration.columns import Source, as_text, fields_of, named_columns, picked
from bitwright.calibration.tables import TABLES, lines_of_text, read_rows
from bitwright.errors import DataError

Id = int | str
_SUFFIXES = (*TABLES, ".txt")


class Texts(NamedTuple):
    """Where the texts are. data: files, or folders of them, each with "#COLUMN" after it or not. column: of files that
    name none. id_column: holds a name for each row, whole numbers or texts; by default rows are numbered.
    """

    data: Sequence[str]
    column: str | None = None
    id_column: str | None = None


class Row(NamedTuple):
    """A row of a file. line: its number, for messages."""

    text: str
    id: Id | None
    file: str
    line: int


class Shard(NamedTuple):
    """Successive rows of the corpus, from `begin` on. rows: without their texts, which only a worker needs."""

    number: int
    begin: int
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        first, last = self.rows[0], self.rows[-1]
        return f"rows from {first.file}, line {first.line} to {last.file}, line {last.line}"


@dataclass(frozen=True, slots=True)
class Corpus:
    """A corpus that was read once. digest: of all texts and ids. rows: of each file. stamps: size and time of the last
    change of each. ignored: how many files of the folders have other endings.
    """

    sources: tuple[Source, ...]
    id_column: str | None
    digest: str
    rows: tuple[int, ...]
    stamps: tuple[tuple[int, int], ...]
    ignored: int = 0

    def __len__(self) -> int:
        return sum(self.rows)

    def shards(self, size: int, wanted: Container[int]) -> Iterator[tuple[Shard, list[str]]]:
        """The shards of `size` rows whose numbers are wanted, in order, each with its texts.

        Raises:
            DataError: a file has changed since it was counted.
        """
        rows, number = self._again(), 0
        while found := list(islice(rows, size)):
            if number in wanted:
                yield (
                    Shard(number, number * size, tuple(row._replace(text="") for row in found)),
                    [r.text for r in found],
                )
            number += 1

    def _again(self) -> Iterator[Row]:
        for source, stamp, expected in zip(self.sources, self.stamps, self.rows, strict=True):
            n = 0
            for row in _rows(source, self.id_column):
                n += 1
                yield row
            if _stamp(source) != stamp or n != expected:
                raise DataError(f"{source.name}: this file was changed while it was read; start again when it is done")


def read_corpus(texts: Texts, out: Path) -> Corpus:
    """Read all files once, and check every row. out: where vectors will be written; no text may be there.

    Raises:
        DataError: a file that is missing or cannot be read, has no such column, or has no rows; a row whose text is
            null or no text, or holds half of a surrogate pair; ids of several types; no texts at all.
    """
    sources, ignored = _find(texts, out)
    digest, counts, stamps = blake2b(digest_size=32), [], []
    kind: type | None = None
    for source in sources:
        stamps.append(_stamp(source))
        n = 0
        for row in _rows(source, texts.id_column):
            n += 1
            kind = _checked(row, kind, texts.id_column)
            for part in (row.text, row.id):
                data = _encoded(row, "" if part is None else str(part))
                digest.update(len(data).to_bytes(8, "little") + data)
        counts.append(n)
    if not sum(counts):
        raise DataError(f"{', '.join(texts.data)}: there are no texts; give files with at least one")
    return Corpus(tuple(sources), texts.id_column, digest.hexdigest(), tuple(counts), tuple(stamps), ignored)


def _find(texts: Texts, out: Path) -> tuple[list[Source], int]:
    """The files, and how many in folders are ignored because of their endings."""
    found: dict[Path, Source] = {}
    ignored = 0
    for spec in texts.data:
        name, columns = (spec, []) if Path(spec).exists() else named_columns(spec)
        if len(columns) > 1:
            raise DataError(f"{spec}: two columns are named, but single texts are read here; name one column")
        path = Path(name).expanduser()
        if not path.exists():
            raise DataError(f"{name}: there is no such file or folder")
        if path.is_dir() and path.resolve() in (out.resolve(), *out.resolve().parents):
            raise DataError(f"{out}: this lies in {path}, whose files are read; write somewhere else")
        files = sorted(file for file in path.rglob("*") if _is_seen(file, path)) if path.is_dir() else [path]
        for file in files:
            if path.is_dir() and file.suffix.lower() not in _SUFFIXES:
                ignored += 1
                continue
            if file in found:
                raise DataError(f"{file}: this file is named twice; leave one out")
            column = columns[0] if columns else texts.column
            found[file] = Source(str(file), field=None if file.suffix.lower() == ".txt" else column)
        if path.is_dir() and not any(path in file.parents for file in found):
            raise DataError(f"{path}: no file in this folder has one of the endings {', '.join(_SUFFIXES)}")
    return list(found.values()), ignored


def _is_seen(file: Path, folder: Path) -> bool:
    """Whether this is a file, and not hidden in the way of Unix or, with an underscore, of Spark."""
    return file.is_file() and not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)


def _stamp(source: Source) -> tuple[int, int]:
    found = Path(source.name).stat()
    return found.st_size, found.st_mtime_ns


def _rows(source: Source, id_column: str | None) -> Iterator[Row]:
    """The rows of a file. Blank lines of a file without columns are left out.

    Raises:
        DataError: as `read_rows` and `picked`; a text that is null, or no text; no column of ids.
    """
    path = Path(source.name)
    if path.suffix.lower() not in TABLES:
        if id_column is not None:
            raise DataError(f"{path}: ids are in the column {id_column}, but this file has only lines of text")
        yield from (Row(line, None, source.name, number) for number, line in lines_of_text(path))
        return

    def needed(found: list[str]) -> list[str]:
        return [*fields_of(found, source, 1), *(name for name in found if name == id_column)]

    for number, (field,), cells in picked(read_rows(path, needed), source):
        text = as_text(cells[field], field, source, number)
        if text is None:
            raise DataError(f"{path}, line {number}: {field} is null, but must be a text; put one there, or remove it")
        if id_column is not None and id_column not in cells:
            raise DataError(f"{path}, line {number}: there is no column {id_column} for the ids")
        yield Row(text, None if id_column is None else cells[id_column], source.name, number)


def _checked(row: Row, kind: type | None, id_column: str | None) -> type | None:
    """The type of all ids so far."""
    if id_column is None:
        return None
    here: type = type(row.id)
    if here not in (int, str) or here is not (kind or here):
        raise DataError(
            f"{row.file}, line {row.line}: the id in {id_column} is a {here.__name__}, but ids must all be "
            f"{kind.__name__ if kind else 'int or str'}"
        )
    return here


def _encoded(row: Row, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{row.file}, line {row.line}: position {error.start} holds half of a surrogate pair; remove it"
        ) from None


def ids_of(shard: Shard) -> list[Any]:
    """The ids of a shard's rows: those of the file, else their numbers in the corpus, from 0."""
    if shard.rows[0].id is None:
        return list(range(shard.begin, shard.begin + len(shard.rows)))
    return [row.id for row in shard.rows]
