"""Small random decoders as directories, and their linears quantized by rounding to nearest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.numerics.linear import QuantizedLinear
from tests.rounded import rounded_linears

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

    return rounded_linears
