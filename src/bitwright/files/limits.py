"""How long a text may be, by a model's side files: found once, for both doors. No torch."""

from bitwright.errors import ModelError
from bitwright.files.directory import ModelDirectory


def sentence_limit(directory: ModelDirectory) -> list[int]:
    """What sentence_bert_config.json says, in tokens, special ones included: one number, or none.

    Raises:
        ModelError: max_seq_length there is no number of tokens.
    """
    file = directory.path / "sentence_bert_config.json"
    length = (directory.object(file.name) or {}).get("max_seq_length")
    if length is None:
        return []
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise ModelError(f"{file}: max_seq_length is {length!r}; a number of tokens is needed, or null for no limit")
    return [length]


def tokenizer_limit(directory: ModelDirectory) -> list[int]:
    """What tokenizer_config.json says: one number, or none. transformers writes a number around 1e30 for no limit."""
    length = (directory.object("tokenizer_config.json") or {}).get("model_max_length")
    return [int(length)] if isinstance(length, int | float) and length >= 1 else []
