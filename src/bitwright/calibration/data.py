"""Reads texts for calibration, mixes them, and makes token batches. The same sources and seed give the same order.

A source is a file (a line is a text; in .jsonl, .csv, .tsv and .parquet a column is, or two columns are a pair), a data
set of the Hugging Face hub ("org/name"), or "builtin": texts that every installation has (`passages`), all of them or,
as "builtin#news", one kind.

A sample of n texts is the n whose keyed hash is smallest. That makes it seeded, free of duplicates, independent of the
file's order, and possible in one pass that never holds more than the sample.
"""

import heapq
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.calibration.columns import Source, Text, column, named_columns
from bitwright.calibration.overlap import refuse_same_corpus
from bitwright.calibration.passages import DOCUMENTATION, documentation_sentences, of_kind, passages
from bitwright.calibration.tables import TABLES, lines_of_text, read_rows
from bitwright.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

BUILTIN = "builtin"

LEAST_CALIBRATION_TEXTS = 8  # a static range from fewer depends on which texts they happen to be

_DATA_SET = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_MIN_LENGTH = 3
_ROWS_PER_TEXT = 50  # of a data set on the hub, which may be larger than anybody wants to download


def parse_sources(specs: Sequence[str]) -> list[Source]:
    """Parse sources such as "name[#field[,field]][:weight]", e.g. "news.jsonl#body:0.7"; two fields are a pair.

    What follows the last colon is a weight only if it is a number, so a path may have colons; a spec that is itself the
    path of a file is taken as that.

    Raises:
        DataError: no source, a weight that is not positive and finite, or more than two fields.
    """
    if not specs:
        raise DataError("there is no source of texts; give a file, a data set of the hub, or builtin")
    return [_parse_source(spec) for spec in specs]


def in_pairs(source: Source) -> Source:
    """The source for a model that reads pairs: two columns of a table, unless one is named."""
    if source.field or not _is_table(source.name):
        return source
    return replace(source, pairs=True)


def load_texts(source: str, n: int | None = None, *, seed: int = 0) -> list[str]:
    """`n` different texts of one source in a seeded random order; all of them if there are fewer, or `n` is None.

    Texts are stripped; those shorter than three characters or without a letter are dropped.

    Raises:
        DataError: a source that is missing, unreadable or not UTF-8, lacks the field, has no usable text, or holds
            pairs.
    """
    (parsed,) = parse_sources([source])
    if parsed.pairs:
        raise DataError(f"{source}: two columns are named, but single texts are read here; name one column")
    return [text for text in _sample(parsed, n, seed) if isinstance(text, str)]


def mix(sources: Sequence[Source], n: int, *, seed: int = 0) -> list[Text]:
    """`n` different texts, or pairs, from several sources, in proportion to their weights, in a seeded random order.

    No text is drawn twice, also not from two sources. A source that is too small gives all that it has, and the others
    make up for it; all together may have fewer than `n`.

    Raises:
        DataError: n < 1, no source, two that share most of their texts, or as `load_texts`.
    """
    if n < 1 or not sources:
        raise DataError(f"{n} texts of {len(sources)} sources are too few; ask for at least one text per source")
    chosen: dict[Text, None] = {}
    samples = [(source, _sample(source, n, seed)) for source in sources]
    refuse_same_corpus(samples)
    pools = {source: iter(sample) for source, sample in samples}
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


def require_texts(texts: Sequence[Text], least: int, what: str) -> None:
    """Refuse a sample that is too small. what: what the texts are for, in the plural ("static ranges").

    Raises:
        DataError: fewer than `least` texts.
    """
    if len(texts) < least:
        noun = "text" if len(texts) == 1 else "texts"
        raise DataError(f"the data gives {len(texts)} {noun}, but {what} need at least {least}; give more with --data")


def builtin_texts(n: int | None = None, *, seed: int | None = None) -> list[str]:
    """Sentences of Python's documentation: `n` in a seeded random order, or without a seed the first `n`."""
    if seed is not None:
        return load_texts(f"{BUILTIN}#{DOCUMENTATION}", n, seed=seed)
    return list(islice(documentation_sentences(), n))


def plain_text(path: Path) -> str | None:
    """The whole content of a plain text file; None for a table or a missing file.

    Raises:
        DataError: unreadable, or not UTF-8.
    """
    if path.suffix.lower() in (*TABLES, ".json") or not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: this file is not UTF-8 text ({error}); convert it, e.g. with iconv -t UTF-8"
        ) from None


def token_batches(
    tokenizer: Any, texts: Sequence[Text], *, max_tokens: int, batch_size: int, seed: int = 0, special: bool = True
) -> "list[dict[str, Tensor]]":
    """Token batches for a forward pass. Texts of similar length share a batch; the batches have a seeded random order.

    Args:
        tokenizer: of transformers; it truncates to `max_tokens` (of a pair the longer text first) and pads to the
            longest of a batch.
        texts: all of them single, or all of them pairs. special: whether special tokens are added.

    Returns:
        The tokenizer's tensors, each (batch, tokens) int64: input_ids, attention_mask and what else the model reads.

    Raises:
        DataError: no texts; max_tokens or batch_size below one.
    """
    if not texts or max_tokens < 1 or batch_size < 1:
        raise DataError(
            f"{len(texts)} texts, batch_size = {batch_size}, max_tokens = {max_tokens}: each must be at least 1"
        )
    limits = {"truncation": True, "max_length": max_tokens} | ({} if special else {"add_special_tokens": False})
    lengths = [len(ids) for ids in _tokenized(tokenizer, texts, **limits)["input_ids"]]
    by_length = sorted(range(len(texts)), key=lengths.__getitem__)
    batches = [[texts[i] for i in by_length[start : start + batch_size]] for start in range(0, len(texts), batch_size)]
    order = sorted(range(len(batches)), key=lambda i: _priority(str(i), seed))
    return [dict(_tokenized(tokenizer, batches[i], padding=True, return_tensors="pt", **limits)) for i in order]


def _tokenized(tokenizer: Any, texts: Sequence[Text], **options: Any) -> Any:
    """The tokens of texts or of pairs, with the token types that the tokenizer gives."""
    pairs = [text for text in texts if not isinstance(text, str)]
    if not pairs:
        return tokenizer(list(texts), **options)
    return tokenizer([first for first, _ in pairs], [second for _, second in pairs], **options)


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
        raise DataError(f"{spec}: the weight is {weight:g}, but must be a positive number")
    if Path(name).is_file():
        return Source(name, weight)
    name, columns = named_columns(name)
    field, second = [*columns, None, None][:2]
    return Source(name, weight, field, second, pairs=second is not None)


def _sample(source: Source, n: int | None, seed: int) -> list[Text]:
    """The n texts with the smallest priority, in order of priority."""
    if n is not None and n < 1:
        raise DataError(f"{source.name}: {n} texts are asked for; ask for at least one")
    kept: set[Text] = set()
    worst_first: list[tuple[int, Any]] = []  # of one source, all texts or all pairs
    n_read = 0
    for text in _texts(source, n):
        n_read += 1
        text = text.strip() if isinstance(text, str) else text
        if text in kept or not _is_usable(text):
            continue
        entry = (-_priority(text, seed), text)
        kept.add(text)
        if n is None or len(kept) <= n:
            heapq.heappush(worst_first, entry)
        else:
            kept.remove(heapq.heappushpop(worst_first, entry)[1])
    if not n_read:
        raise DataError(f"{source.name}: there are no texts in this file; give another one")
    if not kept:
        raise DataError(
            f"{source.name}: none of its {n_read} texts is usable, because all are shorter than {_MIN_LENGTH} "
            "characters or have no letter"
        )
    return [text for _, text in sorted(worst_first, reverse=True)]


def _is_usable(text: Text) -> bool:
    """Whether a text is usable. A pair always is; a single line may be only a rule or a number."""
    return not isinstance(text, str) or (len(text) >= _MIN_LENGTH and any(map(str.isalpha, text)))


def _priority(text: Text, seed: int) -> int:
    whole = text if isinstance(text, str) else "\0".join(text)
    digest = blake2b(whole.encode("utf-8", "surrogatepass"), digest_size=8, key=str(seed).encode())
    return int.from_bytes(digest.digest(), "big")


def _is_table(name: str) -> bool:
    """Whether a source has columns, as a table or a data set of the hub has."""
    path = Path(name)
    if path.suffix.lower() in TABLES:
        return True
    return name != BUILTIN and not path.exists() and path.suffix.lower() != ".txt" and bool(_DATA_SET.fullmatch(name))


def _texts(source: Source, n: int | None) -> Iterator[Text]:
    path = Path(source.name)
    if source.name == BUILTIN:
        return _builtin(source.field)
    if path.suffix.lower() in TABLES:
        return column(read_rows(path), source)
    if not _is_table(source.name):
        if source.field is not None:
            raise DataError(
                f"{path}: #{source.field} names a column, but this file has only lines of text; leave the column out"
            )
        return (line for _, line in lines_of_text(path))
    return column(enumerate(_data_set_rows(source.name, n), start=1), source)


def _builtin(kind: str | None) -> Iterator[Text]:
    """The built-in texts of a kind; without one, prose of the documentation and the English texts of all kinds."""
    if kind is not None:
        return (passage.text for passage in of_kind(kind))
    english = (passage.text for passage in passages() if passage.language == "en" and passage.kind != DOCUMENTATION)
    return chain(documentation_sentences(), english)


def _data_set_rows(name: str, n: int | None) -> Iterator[dict[str, Any]]:
    try:
        import datasets
    except ModuleNotFoundError:
        raise DataError(
            f"{name}: there is no such file. If this is a data set of the hub, run: pip install 'bitwright[data]'"
        ) from None
    try:
        rows = datasets.load_dataset(name, split="train", streaming=True)
        yield from islice(rows, None if n is None else n * _ROWS_PER_TEXT)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{name}: there is no such file, and the Hugging Face hub gave no such data set "
            f"({type(error).__name__}: {error}). Check the name and the network, or give a local file"
        ) from None
