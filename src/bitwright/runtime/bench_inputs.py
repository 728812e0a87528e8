"""The inputs of the benchmark: random token ids, the same for every runtime, within what the model accepts."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitwright.errors import ModelError

# The first ids of most vocabularies are special or unused tokens; padding among them would change what is computed.
FIRST_ORDINARY_TOKEN = 1000

# These count positions from pad_token_id + 1, so their table is longer than the longest text.
_POSITIONS_AFTER_PADDING = frozenset({"camembert", "data2vec-text", "longformer", "mpnet", "roberta", "xlm-roberta"})


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a configuration says about a model's inputs and shape.

    vocabulary: number of token ids. max_tokens: the longest text, None if positions are relative.
    n_heads, hidden_size: of its attention, 0 where the configuration does not say.
    """

    model_type: str
    vocabulary: int
    max_tokens: int | None
    n_heads: int
    hidden_size: int


def read_model_shape(directory: Path) -> ModelShape:
    """Read `config.json`, importing nothing.

    Raises:
        ModelError: no such file, not JSON, or no vocabulary size in it.
    """
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); name a Hugging Face model directory") from None
    if not isinstance(config, dict) or not isinstance(config.get("vocab_size"), int):
        raise ModelError(f"{path}: no vocab_size, so there are no token ids to draw from")
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    if positions is not None and config.get("model_type") in _POSITIONS_AFTER_PADDING:
        positions -= config.get("pad_token_id", 1) + 1
    return ModelShape(
        model_type=str(config.get("model_type", "")),
        vocabulary=config["vocab_size"],
        max_tokens=positions,
        n_heads=config.get("num_attention_heads") or config.get("n_heads") or 0,  # DistilBERT has names of its own
        hidden_size=config.get("hidden_size") or config.get("dim") or 0,
    )


def random_tokens(
    shape: ModelShape, *, batch: int, tokens: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """ids_BT and mask_BT, int64: ordinary tokens drawn uniformly, and a mask of ones (no padding)."""
    first = min(FIRST_ORDINARY_TOKEN, shape.vocabulary // 2)
    ids_BT = np.random.default_rng(seed).integers(first, shape.vocabulary, size=(batch, tokens), dtype=np.int64)
    return ids_BT, np.ones_like(ids_BT)
