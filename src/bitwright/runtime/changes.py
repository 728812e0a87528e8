"""`Changes`: how a variant of a model differs from its float source, and how to make it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from bitwright.families import Architecture
from bitwright.kernels.linear import RoundedEmbedding
from bitwright.numerics.linear import QuantizedLinear
from bitwright.numerics.qtensor import QTensor
from bitwright.runtime.model import Model
from bitwright.runtime.swap import swap_linears, swap_one


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """How a variant differs from the source.

    layers: quantized linears. half: linears in 16 bit, and in which dtype. tables: int8 embeddings. changed: other
    float parameters, by name. in_16_bit: parameters outside the blocks that are rounded, and to which dtype.
    """

    layers: Mapping[str, Callable[[], QuantizedLinear]] = field(default_factory=dict)
    half: Mapping[str, torch.dtype] = field(default_factory=dict)
    tables: Mapping[str, QTensor] = field(default_factory=dict)
    changed: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)
    in_16_bit: Mapping[str, torch.dtype] = field(default_factory=dict)

    @property
    def swaps(self) -> bool:
        """Whether any module is replaced by one of ours; if not, the variant is a float model with other numbers."""
        return bool(self.layers or self.half or self.tables)


NO_CHANGES = Changes()


class FloatModel(Model, Protocol):
    """A float model from which variants can be made."""

    def changed(self, changes: Changes) -> Model:
        """The variant with these changes. The source does not change."""


def apply_changes(model: nn.Module, architecture: Architecture, changes: Changes, prefix: str = "") -> None:
    """Make the changes in the modules of `model` that have values and names with `prefix`. Mutates the model."""
    real = {name for name, value in model.named_parameters() if not value.is_meta and name.startswith(prefix)}
    with torch.no_grad():
        for name in real & changes.changed.keys():
            model.get_parameter(name).copy_(changes.changed[name]())
        for name in real & changes.in_16_bit.keys():
            _round(model, architecture, name, changes.in_16_bit[name])
    modules = {name.rpartition(".")[0] for name in real}
    layers = {name: load() for name, load in changes.layers.items() if name in modules}
    tables = {name: table for name, table in changes.tables.items() if name in modules}
    half = {name: dtype for name, dtype in changes.half.items() if name in modules}
    swap_linears(model, layers, half, architecture, tables=tables)


def _round(model: nn.Module, architecture: Architecture, name: str, dtype: torch.dtype) -> None:
    """Round a parameter. The table of words, if nothing but a look-up reads it, is rounded where it is looked up: it is
    large, and few of its rows are."""
    value, path = model.get_parameter(name), name.rpartition(".")[0]
    module = model.get_submodule(path)
    readers = sum(value is one for part in model.modules() for one in part._parameters.values())
    if type(module) is nn.Embedding and readers == 1 and f".{path}".endswith(f".{architecture.embeddings.words}"):
        swap_one(model, path, RoundedEmbedding(module, dtype))
    else:
        value.copy_(value.to(dtype))
