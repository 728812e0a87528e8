"""Small random decoders on disk, of what differs in how they run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Attention windows of two kinds; experts in all blocks but the first, of which a token sees few.
_DIFFERENT: dict[str, dict[str, Any]] = {
    "gemma3_text": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "glm4_moe": {"num_local_experts": 6, "n_shared_experts": 1},
}


@pytest.fixture(scope="session")
def decoder_dir(tiny_model: Callable[..., Path]) -> Callable[..., Path]:
    """`decoder_dir(family, **config)`: directory of a small random language model of 3 blocks, written once."""

    def make(family: str, **config: Any) -> Path:
        return tiny_model(family, **{"num_hidden_layers": 3, "noise": 0.2} | _DIFFERENT.get(family, {}) | config)

    return make
