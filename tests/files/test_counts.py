"""config.json cannot make more than the files hold."""

from typing import Any

import pytest

from bitwright.errors import ModelError
from bitwright.files.counts import check_counts

SHAPES = {f"layers.{layer}.{name}.weight": (64, 64) for layer in range(2) for name in "abc"} | {"words": (30522, 64)}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 10**5}, "num_hidden_layers is 100000; the files hold 7 tensors, so at most 1000"),
        ({"n_layer": 10**9}, "n_layer is 1000000000"),
        ({"text_config": {"num_hidden_layers": 1001}}, "num_hidden_layers is 1001"),
        ({"num_local_experts": 10**6}, "num_local_experts is 1000000"),
        ({"num_hidden_layers": 100, "n_routed_experts": 100}, "it asks for 10000 layers and experts"),
        ({"num_labels": 10**9}, "num_labels is 1000000000; the files hold 7 tensors, so at most 30522"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings is 1000000000000"),
        ({"vocab_size": -1}, "vocab_size is -1"),
    ],
)
def test_counts_that_the_files_cannot_have(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=f"^config.json: {message}"):
        check_counts(config, SHAPES, "config.json")


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        ({"num_hidden_layers": 12, "num_hidden_groups": 1}, SHAPES),  # shared
        ({"num_hidden_layers": 48, "num_experts": 128}, {f"{i}.up": (128, 8, 8) for i in range(48)}),  # experts in one
        ({"num_hidden_layers": 61, "n_routed_experts": 256}, {str(i): (8, 8) for i in range(61 * 256 * 3)}),
        ({"num_hidden_layers": "many", "num_labels": True, "vocab_size": None}, SHAPES),  # for transformers to refuse
        ({"num_hidden_layers": 96, "max_position_embeddings": 10_485_760}, {}),
        ({"num_hidden_layers": 61, "n_routed_experts": 384}, {}),
        ({"num_hidden_layers": 24, "num_experts": 60}, {str(i): (8, 8) for i in range(6 * 60 * 3)}),  # in every fourth
    ],
)
def test_counts_that_models_have(config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    check_counts(config, shapes, "config.json")
