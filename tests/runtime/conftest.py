"""Small random decoders as directories, and their linears quantized by rounding to nearest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitwright.families import architecture_of
from bitwright.models.sites import find_linears
from bitwright.numerics.grids import grouped, quantize, scale_and_zero_point
from bitwright.numerics.linear import InputTransform, QuantizedLinear
from bitwright.numerics.schemes import SCHEMES, Scheme
from bitwright.numerics.spec import QuantSpec

# Wide enough that rows have more than one group of 32.
_WIDER = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 96, "moe_intermediate_size": 32}


@pytest.fixture(scope="session")
def tiny_decoder(tiny_model: Callable[..., Path]) -> Callable[..., Path]:
    """`tiny_decoder(family, dtype, **config)`: directory of a small random language model with a tokenizer, written
    once. 2 blocks, hidden 64, vocabulary 200, at most 64 tokens (of text) or 66.
    """

    def make(family: str = "llama", dtype: torch.dtype = torch.float32, **config: Any) -> Path:
        tied = {"tie_word_embeddings": True} if family == "llama" else {}
        return tiny_model(family, **_WIDER | {"dtype": dtype} | tied | config)

    return make


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
