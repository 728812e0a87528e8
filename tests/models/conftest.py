"""Small random decoders of every family, and a forward in float64 throughout."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bitwright.models.load import load_model
from tests.families import DECODERS, small_model

TinyDecoder = Callable[..., nn.Module]


@pytest.fixture(scope="session")
def tiny_decoder() -> TinyDecoder:
    """`tiny_decoder(family, task, **config)`: a new small random float64 model, the same for the same arguments, as
    transformers builds it (fused experts, Conv1D). No weight or bias keeps a value of 0 or 1."""

    def make(family: str, task: str = "text-generation", **config: Any) -> nn.Module:
        model: nn.Module = small_model(family, task, **{"noise": 0.2, "dtype": torch.float64} | config)
        return model

    return make


@pytest.fixture
def model_of(tiny_model: Callable[..., Path], tiny_decoder: TinyDecoder) -> Callable[..., nn.Module]:
    """`model_of(family, **config)`: a small random float64 model of any family, a decoder with its head."""

    def make(family: str, **config: Any) -> nn.Module:
        if family in DECODERS:
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
