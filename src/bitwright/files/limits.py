"""How long a text may be, by a model's side files: found once, for both doors. No torch."""

from pathlib import Path
from typing import Any

from bitwright.errors import ModelError, brief
from bitwright.files.directory import ModelDirectory

_NO_LIMIT = 1 << 40  # transformers writes a number around 1e30


def sentence_limit(directory: ModelDirectory) -> list[int]:
    """What sentence_bert_config.json says, in tokens, special ones included: one number, or none.

    Raises:
        ModelError: max_seq_length there is no number of tokens.
    """
    file = directory.path / "sentence_bert_config.json"
    length = (directory.object(file.name) or {}).get("max_seq_length")
    if isinstance(length, float):
        raise ModelError(f"{file}: max_seq_length is {length!r}; a number of tokens is needed, or null for no limit")
    return length_limit(length, file, "max_seq_length")


def tokenizer_limit(directory: ModelDirectory) -> list[int]:
    """What tokenizer_config.json says: one number, or none. Raises as `length_limit`."""
    file = directory.path / "tokenizer_config.json"
    return length_limit((directory.object(file.name) or {}).get("model_max_length"), file, "model_max_length")


def length_limit(length: Any, file: Path, key: str) -> list[int]:
    """A number of tokens that a file gives: one number; none where it gives none, or one that is no limit.

    Raises:
        ModelError: something else.
    """
    if length is None:
        return []
    if not isinstance(length, int | float) or isinstance(length, bool) or not length >= 1:
        raise ModelError(f"{file}: {key} is {brief(length)}; a number of tokens is needed, or null for no limit")
    return [int(length)] if length < _NO_LIMIT else []
