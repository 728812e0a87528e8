"""Small random decoders as directories, and their linears quantized by rounding to nearest."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitwright.models.architectures import architecture_of, find_linears
from bitwright.numerics.grids import grouped, quantize, scale_and_zero_point
from bitwright.numerics.linear import InputTransform, QuantizedLinear
from bitwright.numerics.spec import SCHEMES, QuantSpec, Scheme

_SIZE = {
    "vocab_size": 200,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "initializer_range": 0.2,
}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

# Family -> what its small config has beyond _SIZE.
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma3_text": {},
    "gpt2": {"n_inner": 96},
    "llama": {"tie_word_embeddings": True},
    "mixtral": _EXPERTS,
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "qwen3_moe": _EXPERTS | {"mlp_only_layers": [0]},
}


@pytest.fixture(scope="session")
def decoder_families() -> list[str]:
    """Every family that `tiny_decoder` can write."""
    return sorted(FAMILIES)


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> Callable[..., Path]:
    """`tiny_decoder(family, dtype, **config)`: directory of a small random language model with a tokenizer, written
    once. 2 blocks, hidden 64, vocabulary 200, at most 64 tokens (of text) or 66.
    """
    made: dict[str, Path] = {}

    def make(family: str = "llama", dtype: torch.dtype = torch.float32, **config: Any) -> Path:
        key = repr((family, dtype, sorted(config.items())))
        if key not in made:
            made[key] = tmp_path_factory.mktemp(family)
            _write_decoder(made[key], family, dtype, config)
            for file in tiny_model("bert").glob("tokenizer*"):
                shutil.copy(file, made[key])
        return made[key]

    return make


def _write_decoder(path: Path, family: str, dtype: torch.dtype, config: dict[str, Any]) -> None:
    import transformers

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(family, **(_SIZE | FAMILIES[family] | config))
        )
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        model.to(dtype).save_pretrained(path)


@pytest.fixture(scope="session")
def round_linears() -> Callable[..., dict[str, QuantizedLinear]]:
    """`round_linears(model, family, scheme, transformed=False)`: every linear but heads and routers, to nearest codes;
    a scheme, or its name; `transformed` gives each an input transform that its weight has taken up.
    """

    def make(
        model: nn.Module, family: str, scheme: str | Scheme = "w4a16_g32", *, transformed: bool = False
    ) -> dict[str, QuantizedLinear]:
        layers = {}
        for site in find_linears(model, architecture_of(family)):
            if site.role not in ("head", "router"):
                linear = model.get_submodule(site.name)
                bias = None if linear.bias is None else linear.get_parameter("bias").detach()
                layers[site.name] = _stored(linear.get_parameter("weight").detach(), bias, scheme, transformed)
        return layers

    return make


def _stored(w_NK: Tensor, bias_N: Tensor | None, scheme: str | Scheme, transformed: bool) -> QuantizedLinear:
    scheme = SCHEMES[scheme] if isinstance(scheme, str) else scheme
    assert isinstance(scheme.weight, QuantSpec)
    transform = InputTransform(torch.linspace(0.5, 2.0, w_NK.shape[1])) if transformed else None
    w_NK = w_NK if transform is None else transform.absorbed(w_NK)
    ends = torch.aminmax(grouped(w_NK, scheme.weight), dim=-1)
    qtensor = quantize(w_NK, *scale_and_zero_point(ends.min, ends.max, scheme.weight), scheme.weight)
    return QuantizedLinear(qtensor, None if bias_N is None else bias_N.float(), scheme.input, transform=transform)
