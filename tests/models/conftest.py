"""Small random decoders of every family, and a forward in float64 throughout."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bitwright.models.load import load_model

TinyDecoder = Callable[..., nn.Module]

_SIZE = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "head_dim": 12,  # times heads is not the hidden size, as in Qwen3 and Gemma
}
_EQUAL_HEADS = {"num_key_value_heads": 4, "head_dim": 8}
_MOE = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_FIRST_DENSE = {"first_k_dense_replace": 1, "n_shared_experts": 2, "n_group": 2, "topk_group": 1}

# Family -> what its small config has beyond _SIZE.
FAMILIES: dict[str, dict[str, Any]] = {
    "deepseek_v3": _EQUAL_HEADS
    | _MOE
    | _FIRST_DENSE
    | {"q_lora_rank": 20, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 10, "v_head_dim": 12},
    "gemma3": {
        "text_config": _SIZE,
        "mm_tokens_per_image": 4,
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
        },
    },
    "gemma3_text": {},
    "glm4": {},
    "glm4_moe": _MOE | _FIRST_DENSE,
    "gpt2": {"n_inner": 48},
    "llama": {},
    "mistral": {},
    "mixtral": _MOE,
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi3": {"head_dim": 8},
    "qwen2": {"head_dim": 8},
    "qwen3": {},
    "qwen3_moe": _MOE | {"mlp_only_layers": [0]},
}

_CLASSES = {
    "embedding": "AutoModel",
    "text-generation": "AutoModelForCausalLM",
    "sequence-classification": "AutoModelForSequenceClassification",
}


@pytest.fixture(scope="session")
def decoder_families() -> list[str]:
    """Every family that `tiny_decoder` can make."""
    return sorted(FAMILIES)


@pytest.fixture(scope="session")
def tiny_decoder() -> TinyDecoder:
    """`tiny_decoder(family, task, **config)`: a new small random float64 model, the same for the same arguments, as
    transformers builds it (fused experts, Conv1D). No weight or bias keeps a value of 0 or 1."""

    def make(family: str, task: str = "text-generation", **config: Any) -> nn.Module:
        import transformers

        size = {} if family == "gemma3" else _SIZE
        settings = size | FAMILIES[family] | config
        if task == "sequence-classification":
            settings["num_labels"] = 3
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            model: nn.Module = getattr(transformers, _CLASSES[task]).from_config(
                transformers.AutoConfig.for_model(family, **settings), experts_implementation="eager"
            )
            model.double()
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor += 0.2 * torch.randn_like(tensor)
        return model.eval()

    return make


@pytest.fixture
def model_of(tiny_model: Callable[..., Path], tiny_decoder: TinyDecoder) -> Callable[..., nn.Module]:
    """`model_of(family, **config)`: a small random float64 model of any family, a decoder with its head."""

    def make(family: str, **config: Any) -> nn.Module:
        if family in FAMILIES:
            return tiny_decoder(family, **config)
        return load_model(tiny_model(family, **config), dtype=torch.float64).model

    return make


class _Float64(TorchFunctionMode):
    """Whatever a model casts to float32 (norms, softmax, routers) it casts to float64 instead."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        func = Tensor.double if func is Tensor.float else func
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        kwargs = {key: torch.float64 if arg is torch.float32 else arg for key, arg in (kwargs or {}).items()}
        return func(*args, **kwargs)


@pytest.fixture(scope="session")
def outputs() -> Callable[[nn.Module], Tensor]:
    """Everything floating that a float64 model puts out for 3 sequences of 12 tokens, one of them padded, flat."""

    def run(model: Any) -> Tensor:
        ids = torch.randint(5, 200, (3, 12), generator=torch.Generator().manual_seed(1))
        mask = torch.ones_like(ids)
        mask[0, 7:] = 0
        ids[mask == 0] = model.config.get_text_config().pad_token_id
        with torch.no_grad(), _Float64():
            found = model(input_ids=ids, attention_mask=mask)
        return torch.cat([value.flatten() for value in found.values() if isinstance(value, Tensor)])

    return run
