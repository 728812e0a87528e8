"""How many tokens a text may have, as a model's side files say. No torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitwright.errors import ModelError, brief
from bitwright.files.directory import ModelDirectory
from bitwright.files.sentences import Sentences

NO_LIMIT = 1 << 40  # transformers writes a number around 1e30


def text_limit(sentences: Sentences, tokenizer: Sequence[int], trained: Sequence[int], table: Sequence[int]) -> int:
    """The number of tokens at which a text is cut, special tokens included; `NO_LIMIT` if nothing cuts it.

    As sentence-transformers and transformers have it: what the side files say counts alone; else the least of what the
    tokenizer and config.json say, the latter only where the library looks at it (`Sentences.capped`).

    Args:
        tokenizer: its limit. trained: max_position_embeddings. table: rows of absolute positions. One number or none.
    """
    if sentences.max_tokens is not None:
        return min([*table, sentences.max_tokens])
    return min([*table, *tokenizer, *(trained if sentences.capped or table else ()), NO_LIMIT])


def tokenizer_limit(directory: ModelDirectory) -> list[int]:
    """The limit in tokenizer_config.json: one number, or none. Raises as `length_limit`."""
    file = directory.transformer / "tokenizer_config.json"
    return length_limit(
        (directory.transformer.object(file.name) or {}).get("model_max_length"), file, "model_max_length"
    )


def length_limit(length: Any, file: Path, key: str) -> list[int]:
    """The limit that a file gives, in tokens: one number, or none if the file has no limit.

    Raises:
        ModelError: something else.
    """
    if length is None:
        return []
    if not isinstance(length, int | float) or isinstance(length, bool) or not length >= 1:
        raise ModelError(f"{file}: {key} is {brief(length)}; it must be a number of tokens, or null for no limit")
    return [int(length)] if length < NO_LIMIT else []
