"""The model that is polished: the source's modules around linears whose codes are frozen."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bitwright.kernels.input_grid import rounded_by_groups
from bitwright.models.load import LoadedModel, materialise
from bitwright.models.sites import find_blocks
from bitwright.numerics.linear import PendingLinear, QuantizedLinear
from bitwright.numerics.spec import QuantSpec
from bitwright.training.polished_linear import PolishedLinear


@dataclass(frozen=True, slots=True)
class Student:
    """A model under training.

    linears: those that are polished, by name. norms: the parameters of norms that are trained, by name.
    """

    model: nn.Module
    linears: Mapping[str, PolishedLinear]
    norms: Mapping[str, nn.Parameter]

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All that is trained."""
        found = {f"{name}.{part}": p for name, linear in self.linears.items() for part, p in linear.named_parameters()}
        return found | dict(self.norms)

    @property
    def units(self) -> dict[str, float]:
        """What a step of 1 is of each parameter: relative to it, and to the error that so many bits leave."""
        found: dict[str, float] = {}
        for name, linear in self.linears.items():
            weight, inputs = linear.linear.weight.spec, linear.linear.input_spec
            found |= {f"{name}.{part}": _coarseness(weight) for part, _ in linear.named_parameters()}
            if inputs is not None and linear.log_input is not None:
                found[f"{name}.log_input"] = _coarseness(inputs)
        mean = sum(_coarseness(x.linear.weight.spec) for x in self.linears.values()) / len(self.linears)
        norms = {name: float(p.detach().square().mean().sqrt()) or 1.0 for name, p in self.norms.items()}
        return found | {name: mean * size for name, size in norms.items()}


def make_student(
    opened: LoadedModel,
    layers: Mapping[str, PendingLinear],
    changed: Mapping[str, Callable[[], Tensor]],
    in_16_bit: Mapping[str, torch.dtype],
    *,
    rounds_groups: bool,
) -> Student:
    """Fill the empty model `opened`, with quantized linears in their places. Mutates it.

    The float weight of a linear that is polished is never read: its codes are, a byte each.

    Args:
        changed: float parameters that differ from the source. in_16_bit: parameters that are rounded, and to which.
        rounds_groups: whether float inputs of weights of at most 4 bits are rounded to int8 by token and group, as our
            engine does.
    """
    model = opened.model
    linears = {name: _polished(pending.load(), rounds_groups=rounds_groups) for name, pending in layers.items()}
    for name, linear in linears.items():
        model.set_submodule(name, linear)
    materialise(opened, "")
    trained = {id(p) for linear in linears.values() for p in linear.parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if id(parameter) in trained:
                continue
            parameter.requires_grad_(False)
            if name in changed:
                parameter.copy_(changed[name]())
            if name in in_16_bit:
                parameter.copy_(parameter.to(in_16_bit[name]))
    norms = dict(_norms(model))
    for parameter in norms.values():
        parameter.requires_grad_()
    return Student(model, linears, norms)


def recompute_blocks(opened: LoadedModel) -> None:
    """Keep no activations inside a block for the gradient: a third more work for a fraction of the memory. Mutates."""
    for path, _ in find_blocks(opened.model, opened.architecture):
        block = opened.model.get_submodule(path)
        block.__dict__["forward"] = partial(checkpoint, block.forward, use_reentrant=False)


def _coarseness(spec: QuantSpec) -> float:
    """How large a step of the grid is, beside one of 4 bits: a scale may move further where rounding lost more."""
    return 2.0 ** (4 - spec.bits)


def _polished(linear: QuantizedLinear, *, rounds_groups: bool) -> PolishedLinear:
    group = rounded_by_groups(linear.weight.spec, linear.shape[1]) if rounds_groups else 0
    return PolishedLinear(linear, group=group)


def _norms(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, module in model.named_modules():
        if "norm" in type(module).__name__.lower():
            yield from ((f"{name}.{part}", value) for part, value in module.named_parameters(recurse=False))
