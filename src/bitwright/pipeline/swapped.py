"""Quantized modules in the place of a float model's linears, some at a time."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bitwright.kernels.linear import QuantLinear
from bitwright.quantizing.layers import Quantized
from bitwright.runtime.changes import FloatModel
from bitwright.runtime.generic_model import GenericModel
from bitwright.runtime.swap import swap_one


def fold_in(hf: nn.Module, changed: Mapping[str, Callable[[], Tensor]]) -> None:
    """Give parameters of `hf`, by name, the values that folding left; those without values stay so. Mutates `hf`; where
    all of them are given, it is the same function in other numbers."""
    with torch.no_grad():
        for name, load in changed.items():
            parameter = hf.get_parameter(name)
            if not parameter.is_meta:
                parameter.copy_(load())


def folded(model: FloatModel, quantized: Quantized) -> GenericModel:
    """A float model after folding, whole, with modules of its own where anything was folded."""
    whole = model.generic
    if quantized.changed:
        if whole is model:
            whole = copy.deepcopy(whole)
        fold_in(whole.hf, quantized.changed)
    return whole


def quantized_modules(quantized: Quantized) -> dict[str, nn.Module]:
    """By name, the quantized module of each linear."""
    return {name: QuantLinear(pending.load(), name=name) for name, pending in quantized.layers.items()}


@contextmanager
def only_quantized(hf: nn.Module, modules: Mapping[str, nn.Module], names: frozenset[str]) -> Iterator[None]:
    """`hf` with just these linears replaced by their quantized modules, until the end of the block."""
    before = {name: swap_one(hf, name, modules[name]) for name in names}
    try:
        yield
    finally:
        for name, module in before.items():
            swap_one(hf, name, module)
