"""Cuts running text into windows for language models: runs of tokens of equal length, without padding.

A source is what `calibration.data` reads. A file of plain text is taken whole and in order; of a table, a data set or
the built-in prose the texts are put one after another.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitwright.calibration.columns import Source
from bitwright.calibration.data import BUILTIN, load_texts, plain_text
from bitwright.calibration.overlap import refuse_same_corpus
from bitwright.calibration.passages import DOCUMENTATION, of_kind
from bitwright.calibration.tokens import token_ids
from bitwright.errors import DataError

Window = tuple[int, ...]


def running_text(source: Source, *, seed: int = 0) -> str:
    """The whole source as one text.

    Raises:
        DataError: missing, unreadable, not UTF-8, or without any text.
    """
    path = Path(source.name)
    if source.name == BUILTIN and source.field not in (None, DOCUMENTATION):
        return "\n\n".join(str(passage.text) for passage in of_kind(str(source.field)))
    if source.name == BUILTIN:
        from pydoc_data.topics import topics

        return "\n\n".join(topics.values())
    text = plain_text(path)
    if text is not None:
        return text
    fields = ",".join(field for field in (source.field, source.second) if field)
    field = f"#{fields}" if fields else ""
    return "\n\n".join(load_texts(source.name + field, seed=seed))


def token_windows(tokenizer: Any, text: str, length: int, what: str) -> list[Window]:
    """The non-overlapping windows of `length` tokens that a text fills, in order; no special tokens, the rest dropped.

    what: the text's name, for the message.

    Raises:
        DataError: the text is shorter than one window.
    """
    ids = token_ids(tokenizer, text)
    if len(ids) < length:
        raise DataError(
            f"{what}: the text has {len(ids)} tokens, but a window needs {length}; give more text, or ask for "
            "shorter windows"
        )
    return [tuple(ids[start : start + length]) for start in range(0, len(ids) - length + 1, length)]


def mix_windows(tokenizer: Any, sources: Sequence[Source], n: int, length: int, *, seed: int = 0) -> list[Window]:
    """`n` windows of several sources in proportion to their weights, drawn without replacement, in a seeded order.

    A source that is too small gives all that it has; all together may have fewer than `n`.

    Raises:
        DataError: two sources that share most of their windows, or as `running_text` and `token_windows`.
    """
    rng = random.Random(seed)
    found = [
        (source, token_windows(tokenizer, running_text(source, seed=seed), length, source.name)) for source in sources
    ]
    refuse_same_corpus(found)
    pools = {source: rng.sample(windows, len(windows)) for source, windows in found}
    taken = dict.fromkeys(pools, 0)
    drawn: list[Window] = []
    while pools and len(drawn) < n:
        behind = min(pools, key=lambda source: (taken[source] + 0.5) / source.weight)
        if not pools[behind]:
            del pools[behind]
            continue
        drawn.append(pools[behind].pop())
        taken[behind] += 1
    return rng.sample(drawn, len(drawn))
