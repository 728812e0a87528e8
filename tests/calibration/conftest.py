"""Small random decoders on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

_SIZE = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 48,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}

# What differs in how they run: attention windows of two kinds, experts in all blocks or but the first, positions in a
# table, tokens flattened for the FFN.
_FAMILIES: dict[str, dict[str, Any]] = {
    "gemma3_text": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "glm4_moe": {
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
        "n_group": 2,
        "topk_group": 1,
    },
    "gpt2": {"n_inner": 48},
    "llama": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}


@pytest.fixture(scope="session")
def decoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`decoder_dir(family, **config)`: directory of a small random language model, written once."""
    made: dict[str, Path] = {}

    def make(family: str, **config: Any) -> Path:
        import transformers

        key = repr((family, sorted(config.items())))
        if key not in made:
            made[key] = tmp_path_factory.mktemp(family)
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(0)
                model = transformers.AutoModelForCausalLM.from_config(
                    transformers.AutoConfig.for_model(family, **_SIZE | _FAMILIES[family] | config)
                )
                for tensor in model.state_dict().values():
                    tensor += 0.2 * torch.randn_like(tensor)
            model.save_pretrained(made[key])
        return made[key]

    return make
