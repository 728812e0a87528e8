"""How long a text may be, by a model's side files: found once, for both doors. No torch."""

from collections.abc import Sequence

from bitwright.files.directory import ModelDirectory
from bitwright.files.sentences import Sentences


def text_limit(sentences: Sentences, tokenizer: Sequence[int], capacity: int, trained: int) -> int:
    """Tokens of a text, special ones included, at which it is cut.

    As sentence-transformers and transformers have it: what the side files say counts alone; else the least of what the
    tokenizer and config.json (`max_position_embeddings`) say.

    Args:
        tokenizer: its limit, or nothing. capacity: what the model can take at all. trained: what config.json says.
    """
    asked = [sentences.max_tokens] if sentences.max_tokens is not None else [*tokenizer, trained]
    return min([capacity, *asked])


def tokenizer_limit(directory: ModelDirectory) -> list[int]:
    """What tokenizer_config.json says: one number, or none. transformers writes a number around 1e30 for no limit."""
    length = (directory.object("tokenizer_config.json") or {}).get("model_max_length")
    return [int(length)] if isinstance(length, int | float) and length >= 1 else []
