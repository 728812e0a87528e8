"""The inputs of the benchmark: random token ids, the same for every runtime, within what the model accepts."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitwright.errors import ModelError
from bitwright.families import architecture_of
from bitwright.files.directory import CONFIG_FILE, ModelDirectory

# The first ids of most vocabularies are special or unused tokens; padding among them would change what is computed.
FIRST_ORDINARY_TOKEN = 1000


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The facts of a configuration about a model's inputs and shape.

    vocabulary: number of token ids. max_tokens: the longest text, None where neither config.json nor transformers says.
    n_heads, hidden_size: of its attention, 0 where the configuration does not say.
    """

    model_type: str
    vocabulary: int
    max_tokens: int | None
    n_heads: int
    hidden_size: int


def model_shape(directory: ModelDirectory) -> ModelShape:
    """Read the model's shape from the config.json of a directory.

    Raises:
        ModelError: no such file, not JSON, no vocabulary size in it, or a family without a row.
    """
    config = directory.config
    if not isinstance(config.get("vocab_size"), int):
        raise ModelError(
            f"{directory.transformer / CONFIG_FILE}: there is no vocab_size, so the benchmark cannot draw token ids"
        )
    row = architecture_of(str(config.get("model_type")))
    positions = config.get(*row.keys.positions)
    return ModelShape(
        model_type=str(config["model_type"]),
        vocabulary=config["vocab_size"],
        max_tokens=None if positions is None else positions - row.positions.first(config),
        n_heads=config.get(row.keys.heads) or 0,
        hidden_size=config.get(row.keys.hidden_size) or 0,
    )


def random_tokens(
    shape: ModelShape, *, batch: int, tokens: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """ids_BT and mask_BT, int64: ordinary tokens drawn uniformly, and a mask of ones (no padding)."""
    first = min(FIRST_ORDINARY_TOKEN, shape.vocabulary // 2)
    ids_BT = np.random.default_rng(seed).integers(first, shape.vocabulary, size=(batch, tokens), dtype=np.int64)
    return ids_BT, np.ones_like(ids_BT)
