"""Texts for calibration: read, mixed, and batched as tokens. Same sources, same seed: same texts in the same order.

A source is a file (a line is a text; in .jsonl, .csv, .tsv and .parquet a column is), a data set of the Hugging Face
hub ("org/name"), or "builtin": prose from Python's own documentation, which every installation has.

A sample of n texts is the n whose keyed hash is smallest. That makes it seeded, free of duplicates, independent of the
file's order, and possible in one pass that never holds more than the sample.
"""

import heapq
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.calibration.tables import Row, read_lines, read_rows
from bitwright.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

BUILTIN = "builtin"
TEXT_FIELDS = ("text", "sentence", "content", "sentence1", "question", "query", "document", "passage", "body")

LEAST_CALIBRATION_TEXTS = 8  # a static range from fewer depends on which texts they happen to be

_TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_DATA_SET = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_MIN_LENGTH = 3
_ROWS_PER_TEXT = 50  # of a data set on the hub, which may be larger than anybody wants to download


@dataclass(frozen=True, slots=True)
class Source:
    """Where texts come from, and their share of a mix relative to the other sources'.

    name: a path, a data set's name or "builtin". field: the column that is the text, None to find it by `TEXT_FIELDS`.
    """

    name: str
    weight: float = 1.0
    field: str | None = None


def parse_sources(specs: Sequence[str]) -> list[Source]:
    """Sources from "name[#field][:weight]", e.g. "news.jsonl#body:0.7".

    What follows the last colon is a weight only if it is a number, so a path may have colons; a spec that is itself the
    path of a file is taken as that.

    Raises:
        DataError: no source, or a weight that is not positive and finite.
    """
    if not specs:
        raise DataError("no source of texts; give a file, a data set, or builtin")
    return [_parse_source(spec) for spec in specs]


def load_texts(source: str, n: int | None = None, *, seed: int = 0) -> list[str]:
    """`n` different texts of one source in a seeded random order; all of them if there are fewer, or `n` is None.

    Texts are stripped; those shorter than three characters or without a letter are dropped.

    Raises:
        DataError: a source that is missing, unreadable or not UTF-8, lacks the field, or has no usable text.
    """
    (parsed,) = parse_sources([source])
    return _sample(parsed, n, seed)


def mix(sources: Sequence[Source], n: int, *, seed: int = 0) -> list[str]:
    """`n` different texts from several sources, in proportion to their weights, in a seeded random order.

    No text is drawn twice, also not from two sources. A source that is too small gives all that it has, and the others
    make up for it; all together may have fewer than `n`.

    Raises:
        DataError: n < 1, no source, or as `load_texts`.
    """
    if n < 1 or not sources:
        raise DataError(f"{n} texts of {len(sources)} sources: give at least one of each")
    chosen: dict[str, None] = {}
    pools = {source: iter(_sample(source, n, seed)) for source in sources}
    taken = dict.fromkeys(pools, 0)
    while pools and len(chosen) < n:
        behind = min(pools, key=lambda source: (taken[source] + 0.5) / source.weight)  # apportionment by Webster's rule
        text = next((text for text in pools[behind] if text not in chosen), None)
        if text is None:
            del pools[behind]
        else:
            chosen[text] = None
            taken[behind] += 1
    return sorted(chosen, key=lambda text: _priority(text, seed))


def require_texts(texts: Sequence[str], least: int, what: str) -> None:
    """Refuse a sample that is too small. what: what the texts are for, in the plural ("static ranges").

    Raises:
        DataError: fewer than `least` texts.
    """
    if len(texts) < least:
        noun = "text" if len(texts) == 1 else "texts"
        raise DataError(f"{len(texts)} {noun}; {what} need at least {least}; give more with --data")


def builtin_texts(n: int | None = None, *, seed: int | None = None) -> list[str]:
    """English sentences of 40 to 200 characters from `pydoc_data.topics` of the standard library (another version of
    Python may have others): `n` in a seeded random order, or without a seed the first `n` of the documentation.

    A sentence ends with ., ! or ? before white space; runs of white space count as one space.
    """
    if seed is not None:
        return _sample(Source(BUILTIN), n, seed)
    return list(islice(_builtin_sentences(), n))


def plain_text(path: Path) -> str | None:
    """The whole of a file of plain text; None for tables, and where there is no such file.

    Raises:
        DataError: unreadable, or not UTF-8.
    """
    if path.suffix.lower() in (*_TABLES, ".json") or not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def token_batches(
    tokenizer: Any, texts: Sequence[str], *, max_tokens: int, batch_size: int, seed: int = 0
) -> "list[dict[str, Tensor]]":
    """Token batches for a forward pass: texts of similar length together, the batches in a seeded random order.

    Args:
        tokenizer: of transformers; it truncates to `max_tokens` and pads to the longest of a batch.

    Returns:
        The tokenizer's tensors, each (batch, tokens) int64: input_ids, attention_mask and what else the model reads.

    Raises:
        DataError: no texts; max_tokens or batch_size below one.
    """
    if not texts or max_tokens < 1 or batch_size < 1:
        raise DataError(
            f"{len(texts)} texts in batches of {batch_size}, {max_tokens} tokens each: all must be at least 1"
        )
    limits = {"truncation": True, "max_length": max_tokens}
    lengths = [len(ids) for ids in tokenizer(list(texts), **limits)["input_ids"]]
    by_length = sorted(range(len(texts)), key=lengths.__getitem__)
    batches = [[texts[i] for i in by_length[start : start + batch_size]] for start in range(0, len(texts), batch_size)]
    order = sorted(range(len(batches)), key=lambda i: _priority(str(i), seed))
    return [dict(tokenizer(batches[i], padding=True, return_tensors="pt", **limits)) for i in order]


def _parse_source(spec: str) -> Source:
    if Path(spec).is_file():
        return Source(spec)
    name, weight = spec, 1.0
    head, colon, tail = spec.rpartition(":")
    if colon:
        try:
            name, weight = head, float(tail)
        except ValueError:
            name = spec
    if not (weight > 0 and math.isfinite(weight)):
        raise DataError(f"{spec}: weight {weight:g}; a weight is a positive number")
    if Path(name).is_file():
        return Source(name, weight)
    head, hash_sign, field = name.rpartition("#")
    return Source(head, weight, field) if hash_sign and head and field else Source(name, weight)


def _sample(source: Source, n: int | None, seed: int) -> list[str]:
    """The n texts of smallest priority, in its order."""
    if n is not None and n < 1:
        raise DataError(f"{source.name}: {n} texts; ask for at least one")
    kept: set[str] = set()
    worst_first: list[tuple[int, str]] = []
    n_read = 0
    for text in _texts(source, n):
        n_read += 1
        text = text.strip()
        if len(text) < _MIN_LENGTH or text in kept or not any(map(str.isalpha, text)):
            continue
        entry = (-_priority(text, seed), text)
        kept.add(text)
        if n is None or len(kept) <= n:
            heapq.heappush(worst_first, entry)
        else:
            kept.remove(heapq.heappushpop(worst_first, entry)[1])
    if not n_read:
        raise DataError(f"{source.name}: no texts in it")
    if not kept:
        raise DataError(
            f"{source.name}: all of its {n_read} texts are shorter than {_MIN_LENGTH} characters or have no letter"
        )
    return [text for _, text in sorted(worst_first, reverse=True)]


def _priority(text: str, seed: int) -> int:
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=str(seed).encode())
    return int.from_bytes(digest.digest(), "big")


def _texts(source: Source, n: int | None) -> Iterator[str]:
    path = Path(source.name)
    if source.name == BUILTIN:
        return _builtin_sentences()
    if path.suffix.lower() == ".json":
        raise DataError(f"{path}: one JSON object per line is read, from a file that ends in .jsonl")
    if path.suffix.lower() in _TABLES:
        return _column(read_rows(path), source)
    if path.exists() or not _DATA_SET.fullmatch(source.name) or path.suffix.lower() == ".txt":
        if source.field is not None:
            raise DataError(f"{path}: #{source.field} names a column, and lines of text have none")
        return (line for _, line in read_lines(path) if line.strip())
    return _column(enumerate(_data_set_rows(source.name, n), start=1), source)


def _column(rows: Iterable[tuple[int, Row]], source: Source) -> Iterator[str]:
    """The cells of the text column: of dicts by key, of lists by the header, which is the first of them."""
    header: list[str] | None = None
    field = source.field
    for number, row in rows:
        if isinstance(row, list) and header is None:
            header = [cell.strip() for cell in row]
            field = _text_field(header, source, number)
            continue
        if isinstance(row, list):
            row = dict(zip(header or (), row, strict=False))
        if field is None or field not in row:
            field = _text_field(list(row), source, number)
        value = row[field]
        if value is None:
            continue
        if not isinstance(value, str):
            raise DataError(f"{source.name}, line {number}: {field} is a {type(value).__name__}, a text is needed")
        yield value


def _text_field(found: list[str], source: Source, number: int) -> str:
    wanted = (source.field,) if source.field else TEXT_FIELDS
    for field in wanted:
        if field in found:
            return field
    raise DataError(
        f"{source.name}, line {number}: no column {' or '.join(wanted)}; found {', '.join(found) or 'none'}. "
        f"Name the column: {source.name}#COLUMN"
    )


def _data_set_rows(name: str, n: int | None) -> Iterator[dict[str, Any]]:
    try:
        import datasets
    except ModuleNotFoundError:
        raise DataError(f"{name}: no such file, and data sets of the hub need: pip install 'bitwright[data]'") from None
    try:
        rows = datasets.load_dataset(name, split="train", streaming=True)
        yield from islice(rows, None if n is None else n * _ROWS_PER_TEXT)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{name}: no such file, and not to be had as a data set of the Hugging Face hub ({type(error).__name__}: "
            f"{error}). Check the name and the network, or give a local file"
        ) from None


def _builtin_sentences() -> Iterator[str]:
    from pydoc_data.topics import topics

    for topic in topics.values():
        for sentence in re.split(r"(?<=[.!?])\s+", re.sub(r"\s+", " ", topic).strip()):
            if 40 <= len(sentence) <= 200:
                yield sentence
