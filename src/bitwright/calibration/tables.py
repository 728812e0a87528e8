"""Reads rows of csv, tsv, jsonl, parquet and plain text files as a stream, with line numbers for messages."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bitwright.errors import DataError
from bitwright.parsing import parse_json

Row = list[str] | dict[str, Any]
Choose = Callable[[list[str]], list[str]]

TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")  # endings of files that have columns

PARQUET_NEEDED = "parquet files need pyarrow: pip install 'bitwright[data]'"
_csv_field_limit = 1 << 24  # the csv module's own limit, 131,072 characters, is less than a long document


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Read the lines of a UTF-8 file without line ends, with their numbers from 1. A byte order mark is dropped.

    Raises:
        DataError: no such file, a directory, or bytes that are not UTF-8 (the message says which).
    """
    try:
        with path.open("rb") as file:
            offset = 0
            for number, raw in enumerate(file, start=1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}, line {number}: byte 0x{raw[error.start]:02x} at offset {offset + error.start} is not "
                        "UTF-8; convert the file, e.g. iconv -f LATIN1 -t UTF-8"
                    ) from None
                offset += len(raw)
                yield number, text.rstrip("\r\n")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def read_rows(path: Path, choose: Choose | None = None) -> Iterator[tuple[int, Row]]:
    """Read the rows of a table with their line numbers: lists of cells from .csv and .tsv (header included), else
    dicts.

    A .tsv cell is what is between two tabs: quotation marks are text. A .csv follows the usual quoting. Blank lines are
    dropped.

    choose: the columns that are read of a .parquet file, from the names of all; by default all of them.

    Raises:
        DataError: as `read_lines`; a suffix that is no table; a line that is not a JSON object; a parquet file that is
            none, or pyarrow missing.
    """
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            for number, line in read_lines(path):
                if line.strip():
                    yield number, _json_object(line, path, number)
        case ".tsv":
            for number, line in read_lines(path):
                if line.strip():
                    yield number, line.split("\t")
        case ".csv":
            yield from _csv_rows(path)
        case ".parquet":
            yield from _parquet_rows(path, choose)
        case suffix:
            raise DataError(
                f"{path}: the name of a table must end in .jsonl, .tsv, .csv or .parquet, not in "
                f"{suffix or 'nothing'!r}"
            )


def lines_of_text(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file without columns that are not blank, with their numbers.

    Raises:
        DataError: as `read_lines`; a file that ends in .json.
    """
    if path.suffix.lower() == ".json":
        raise DataError(
            f"{path}: Bitwright does not read .json; write one JSON object per line into a file that ends in .jsonl"
        )
    return ((number, line) for number, line in read_lines(path) if line.strip())


def _json_object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        value = parse_json(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number}: this line is not JSON ({error.msg} at column {error.colno})") from None
    except ValueError as error:
        raise DataError(f"{path}, line {number}: {error}") from None
    if not isinstance(value, dict):
        raise DataError(
            f"{path}, line {number}: every line must be a JSON object, but this one is a {type(value).__name__}"
        )
    return value


def _csv_rows(path: Path) -> Iterator[tuple[int, Row]]:
    before = csv.field_size_limit(_csv_field_limit)
    try:
        # The reader needs line ends to keep those inside quotes.
        reader = csv.reader((line + "\n" for _, line in read_lines(path)), strict=True)
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; is it a csv file?") from None
    finally:
        csv.field_size_limit(before)


def _parquet_rows(path: Path, choose: Choose | None) -> Iterator[tuple[int, Row]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise DataError(f"{path}: {PARQUET_NEEDED}") from None
    try:
        with pq.ParquetFile(path) as file:
            number = 0
            columns = None if choose is None else choose(list(file.schema_arrow.names))
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: this file cannot be read as parquet ({error})") from None
