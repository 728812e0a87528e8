"""Quantized modules in the place of a float model's linears, some at a time."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bitwright.kernels.linear import QuantLinear
from bitwright.quantizing.layers import Quantized
from bitwright.runtime.swap import swap_one


def fold_in(hf: nn.Module, changed: Mapping[str, Callable[[], Tensor]]) -> None:
    """Give parameters of `hf`, by name, the values that folding left. Mutates `hf`; where all of them are given, it is
    the same function in other numbers."""
    with torch.no_grad():
        for name, load in changed.items():
            hf.get_parameter(name).copy_(load())


def folded(hf: nn.Module, quantized: Quantized) -> nn.Module:
    """A float model after folding: a copy, or the model itself if nothing was folded."""
    if not quantized.changed:
        return hf
    hf = copy.deepcopy(hf)
    fold_in(hf, quantized.changed)
    return hf


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
