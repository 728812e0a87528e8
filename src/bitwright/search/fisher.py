"""Sensitivity by Fisher information: estimates from the float model's gradients, to first order, how far quantizing a
linear moves the output.

Let e be what quantizing a linear adds to its outputs: e = x ΔWᵀ where only the weight W is rounded. A scalar s that is
computed from them changes by ⟨δ, e⟩ = Σ δ·e with δ = ∂s/∂y, which for a rounded weight is ⟨∂s/∂W, ΔW⟩. The score is the
mean of ⟨δ, e⟩² over texts and over scalars drawn from the output:

    a distribution p:   s = log p(y), y ~ p      ΔWᵀ F ΔW with the Fisher information F: twice the KL divergence
    a vector f:         s = v·f, v ~ N(0, I)     ‖J e‖²: the squared change of f

Fisher information as the curvature of a distance between outputs: Martens, https://arxiv.org/abs/1412.1193; why labels
are drawn from the model and not taken from data: Kunstner et al., https://arxiv.org/abs/1905.12558.

The diagonal approximation Σ (δ·e)² (of weights Σ g²·ΔW², as in Optimal Brain Damage and, for quantization, in
SqueezeLLM, https://arxiv.org/abs/2306.07629) takes errors of different outputs and tokens for independent. Errors of
plain rounding nearly are, those of a few broken inputs are not: they push every output the same way. It needs the same
gradients, so that nothing is saved by it: the full form is what ranks, the diagonal stands beside it for comparison.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitwright.calibration.hooks import hooked
from bitwright.errors import InputError

Draw = Callable[[Tensor, torch.Generator], Tensor]
LinearFunction = Callable[[Tensor], Tensor]

_KEPT_PER_OUTPUT = 8  # values that a gradient needs per output of a linear: of norms, activations, attention, errors


@dataclass(frozen=True, slots=True)
class Score:
    """Of a unit. fisher: the mean of ⟨δ, e⟩², its linears' changes added up first. diagonal: the mean of Σ (δ·e)²."""

    fisher: float
    diagonal: float


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a linear: its output, of which gradients are taken, and what quantizing it would have added."""

    name: str
    output: Tensor
    error: Tensor


def fisher_scores(
    model: nn.Module, units: Mapping[str, Sequence[str]], quantized: Mapping[str, LinearFunction],
    texts: Iterable[Callable[[], Tensor]], draw: Draw, *, draws: int = 4, seed: int = 0,
) -> dict[str, Score]:  # fmt: skip
    """The score of each unit. One text is in memory at a time: its activations, but no gradient of a weight.

    Args:
        model: the float model. Its linears are hooked while a text runs; nothing in it is changed.
        units: names of linears, by unit.
        quantized: what each of these would put out if it were quantized: float (..., K) to (..., N).
        texts: each runs the model on one text and returns its output.
        draw: a scalar drawn from an output: `log_likelihood` or `projection`.
        draws: scalars per text; more texts say more than more scalars.

    Raises:
        InputError: no text.
    """
    generator = torch.Generator().manual_seed(seed)
    names = [name for members in units.values() for name in members]
    fisher, diagonal = dict.fromkeys(units, 0.0), dict.fromkeys(units, 0.0)
    count = 0
    for text in texts:
        calls: list[_Call] = []
        with torch.enable_grad(), _noting(model, names, quantized, calls):
            output = text()
        for _ in range(draws):
            change, square = _first_order(draw(output, generator), calls)
            for unit, members in units.items():
                fisher[unit] += sum(change.get(name, 0.0) for name in members) ** 2
                diagonal[unit] += sum(square.get(name, 0.0) for name in members)
            count += 1
    if not count:
        raise InputError("Fisher scores are means over texts, but there are none; give texts")
    return {unit: Score(fisher[unit] / count, diagonal[unit] / count) for unit in units}


def log_likelihood(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Σ log p(y), a label y drawn from each row's own distribution. logits: float (..., classes)."""
    log_p_RC = functional.log_softmax(logits.float().reshape(-1, logits.shape[-1]), dim=-1)
    drawn_R1 = torch.multinomial(log_p_RC.detach().exp(), 1, generator=generator)
    return log_p_RC.gather(1, drawn_R1).sum()


def projection(output: Tensor, generator: torch.Generator) -> Tensor:
    """v·f with v ~ N(0, I). output: float, of any shape, taken as one vector f."""
    return (torch.randn(output.shape, generator=generator) * output.float()).sum()


def memory_needed(model: nn.Module, names: Iterable[str], tokens: int) -> int:
    """Bytes, roughly: the model in float32, and what the gradients of a text of so many tokens need.

    model: its parameters may be on the meta device. names: of its linears.
    """
    return 4 * sum(p.numel() for p in model.parameters()) + gradient_bytes(model, names, tokens)


def gradient_bytes(model: nn.Module, names: Iterable[str], tokens: int) -> int:
    """`memory_needed` beside the model itself."""
    outputs = sum(model.get_parameter(f"{name}.weight").shape[0] for name in names)
    return 4 * _KEPT_PER_OUTPUT * tokens * outputs


def _noting(
    model: nn.Module, names: Sequence[str], quantized: Mapping[str, LinearFunction], calls: list[_Call]
) -> AbstractContextManager[None]:
    """Note every call of these linears, until the end of the block."""

    def note(_: nn.Module, args: tuple[Tensor, ...], output: Tensor, *, name: str) -> Tensor:
        if not output.requires_grad:  # nothing before it is differentiated: the gradient ends here
            output = output.detach().requires_grad_()
        with torch.no_grad():
            calls.append(_Call(name, output, quantized[name](args[0].detach()) - output))
        return output

    return hooked(model, after={name: partial(note, name=name) for name in names})


def _first_order(scalar: Tensor, calls: Sequence[_Call]) -> tuple[dict[str, float], dict[str, float]]:
    """(Σ δ·e, Σ (δ·e)²) of each linear, over all its calls."""
    outputs = [call.output for call in calls]
    gradients: Sequence[Any] = torch.autograd.grad(scalar, outputs, retain_graph=True, materialize_grads=True)
    change: dict[str, float] = {}
    square: dict[str, float] = {}
    for call, gradient in zip(calls, gradients, strict=True):
        product = gradient.double() * call.error.double()
        change[call.name] = change.get(call.name, 0.0) + float(product.sum())
        square[call.name] = square.get(call.name, 0.0) + float(product.square().sum())
    return change, square
