"""Replaces a model's linears and embeddings by modules that compute with codes."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitwright.errors import InputError, ModelError
from bitwright.families import Architecture
from bitwright.kernels.linear import HalfLinear, QuantEmbedding, QuantLinear, RoundedEmbedding, cpu_multiplies_bf16
from bitwright.models.sites import find_blocks
from bitwright.numerics.linear import QuantizedLinear
from bitwright.numerics.qtensor import QTensor

# Far below what separates exact GELU from its tanh and sigmoid approximations (4e-4, 2e-2), far above float32 rounding.
_GELU_TOLERANCE = 1e-6


def swap_linears(
    model: nn.Module,
    layers: Mapping[str, QuantizedLinear],
    half: Mapping[str, torch.dtype],
    architecture: Architecture,
    *,
    tables: Mapping[str, QTensor] | None = None,
    fuse_gelu: bool = True,
) -> None:
    """Replace linears of `model` by quantized or 16-bit ones, and embeddings by int8 tables. A linear that stays in 16
    bit keeps its bias; a quantized linear brings its own.

    Where an exact GELU alone consumes a quantized linear (`architecture.activations`), the linear applies it, and the
    activation module becomes the identity.

    The head of a language model that is kept in 16 bit stays a float linear, and tied if it is: logits rounded to bf16
    would differ visibly from float ones.

    Args:
        layers: asked for one by one, so that a mapping may load them then.
        half: linears kept in 16 bit, and the dtype, bf16 or fp16, to which their weights are rounded.

    Raises:
        ModelError: a name that is not a linear (or, of a table, an embedding) of this model, or of another shape.
    """
    fused = _fusable(model, layers, architecture) if fuse_gelu else {}
    head = _head(model)
    for name, layer in layers.items():
        _linear(model, name, layer.shape)
        swap_one(model, name, QuantLinear(layer, gelu=name in fused, name=name))
    for name in fused.values():
        swap_one(model, name, nn.Identity())
    for name, dtype in half.items():
        linear = _linear(model, name, None)
        weight = linear.weight.detach()
        rounded = weight.to(dtype)
        if linear is not head:
            swap_one(model, name, HalfLinear(rounded, linear.bias))
        elif not torch.equal(rounded.to(weight.dtype), weight):
            swap_one(model, name, _float_linear(rounded.to(weight.dtype), linear.bias))
    for name, table in (tables or {}).items():
        embedding = model.get_submodule(name)
        if not isinstance(embedding, nn.Embedding) or tuple(embedding.weight.shape) != table.shape:
            raise ModelError(f"{name}: an int8 table of shape {table.shape} cannot replace {embedding}")
        swap_one(model, name, QuantEmbedding(table, embedding.padding_idx))


def set_compute(model: nn.Module, compute: str) -> torch.dtype:
    """Set the dtype in which everything that is not quantized computes: "float32", "bfloat16" or "auto". "auto" is
    bfloat16 if the CPU multiplies it, because that takes less time. It is float32 for a model that generates text,
    because bfloat16 between the blocks raises perplexity by about a thousandth. Mutates the model's parameters. The
    quantized modules keep their exact numbers, and buffers (rotary frequencies) do not change, as in transformers.

    Returns:
        The dtype chosen.

    Raises:
        InputError: another word.
    """
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    dtypes["auto"] = dtypes["bfloat16" if cpu_multiplies_bf16() and not _generates(model) else "float32"]
    if compute not in dtypes:
        raise InputError(f"compute = {compute!r} is unknown; choose one of {', '.join(dtypes)}")
    for parameter in model.parameters():
        if not parameter.is_meta:  # what has no values yet is rounded once it has
            parameter.data = parameter.data.to(dtypes[compute])
    for module in model.modules():
        if isinstance(module, QuantEmbedding | RoundedEmbedding):
            module.dtype = dtypes[compute]
    return dtypes[compute]


def round_groups(model: nn.Module, *, on: bool) -> None:
    """Let 4-bit linears round float inputs as the engine does (`QuantLinear.rounds_groups`), or not."""
    for module in model.modules():
        if isinstance(module, QuantLinear):
            module.rounds_groups = on


def swap_one(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put `module` at `name` in `model`, with the training flag of the old module. Returns the old module."""
    old = model.get_submodule(name)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module.train(old.training))
    return old


def is_exact_gelu(module: nn.Module) -> bool:
    """Whether a module computes x·Φ(x). The test compares values, because names and classes of activations vary."""
    probe = torch.linspace(-6.0, 6.0, 97)
    with torch.inference_mode():
        got = module(probe)
    return isinstance(got, Tensor) and torch.allclose(got, functional.gelu(probe), rtol=0.0, atol=_GELU_TOLERANCE)


def _fusable(model: nn.Module, layers: Collection[str], architecture: Architecture) -> dict[str, str]:
    """Quantized linear -> the exact GELU that is the only reader of its output."""
    modules = dict(model.named_modules(remove_duplicate=False))
    pairs = (
        (f"{block}.{linear}", f"{block}.{activation}")
        for block, _ in find_blocks(model, architecture)
        for linear, activation in architecture.activations.items()
    )
    return {
        linear: activation
        for linear, activation in pairs
        if linear in layers and activation in modules and is_exact_gelu(modules[activation])
    }


def _linear(model: nn.Module, name: str, shape: tuple[int, int] | None) -> nn.Linear:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise ModelError(f"{name}: {type(model).__name__} has no such module") from None
    if not isinstance(module, nn.Linear) or shape not in (None, tuple(module.weight.shape)):
        raise ModelError(f"{name}: {module} cannot be replaced by a linear with a weight of shape {shape}")
    return module


def _head(model: nn.Module) -> Any:
    """What makes the logits of a language model; None in another model."""
    get_head: Any = getattr(model, "get_output_embeddings", None)
    return get_head() if get_head is not None and _generates(model) else None


def _generates(model: nn.Module) -> bool:
    can_generate: Any = getattr(model, "can_generate", None)
    return can_generate is not None and bool(can_generate())


def _float_linear(weight_NK: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight_NK.shape[1], weight_NK.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight_NK, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear
