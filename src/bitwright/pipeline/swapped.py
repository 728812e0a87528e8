"""Puts quantized modules in the place of some of a float model's linears."""

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
    """Give parameters of `hf` the values after folding, by name; those without values stay empty. Mutates `hf`. If all
    are given, `hf` computes the same function with other numbers.
    """
    with torch.no_grad():
        for name, load in changed.items():
            parameter = hf.get_parameter(name)
            if not parameter.is_meta:
                parameter.copy_(load())


def folded(model: FloatModel, quantized: Quantized) -> GenericModel:
    """A whole float model after folding, with its own copies of the modules that were folded."""
    whole = model.generic
    if quantized.changed:
        if whole is model:
            whole = copy.deepcopy(whole)
        fold_in(whole.hf, quantized.changed)
    return whole


def quantized_modules(quantized: Quantized) -> dict[str, nn.Module]:
    """The quantized module of each linear, by name."""
    return {name: QuantLinear(pending.load(), name=name) for name, pending in quantized.layers.items()}


@contextmanager
def only_quantized(hf: nn.Module, modules: Mapping[str, nn.Module], names: frozenset[str]) -> Iterator[None]:
    """`hf` with only these linears replaced by their quantized modules, until the end of the `with` block."""
    before = {name: swap_one(hf, name, modules[name]) for name in names}
    try:
        yield
    finally:
        for name, module in before.items():
            swap_one(hf, name, module)
