"""Compares a block's outputs before and after its linears are rounded."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitwright.calibration.hooks import hooked
from bitwright.calibration.observers import LayerStats, rescaled
from bitwright.evaluate import metrics
from bitwright.methods.rtn import rtn
from bitwright.numerics import RANGES
from bitwright.numerics.grids import fake_quantize, scale_and_zero_point
from bitwright.numerics.linear import InputTransform
from bitwright.numerics.schemes import Scheme

_COMPARED_VALUES = 1 << 16  # of each output


def distance(before: Sequence[Any], after: Sequence[Any]) -> float:
    """Earth Mover's Distance between outputs of a block, over an even sample of their values."""
    return metrics.emd([_spread(output) for output in before], [_spread(output) for output in after])


def mean_squared_error(before: Sequence[Any], after: Sequence[Any]) -> float:
    """Of all values of the outputs, each output counting alike."""
    pairs = [(_tensor(u).float(), _tensor(v).float()) for u, v in zip(before, after, strict=True)]
    return float(sum((u - v).square().mean(dtype=torch.float64) for u, v in pairs) / len(pairs))


@contextmanager
def rounded_to_nearest(
    model: nn.Module, names: Sequence[str], scheme: Scheme, stats: LayerStats, transform: InputTransform
) -> Iterator[None]:
    """The model with these linears rounded to nearest, weight and input, in float; as before at the end.

    names: of linears that read one input. stats: of that input, before `transform`, which is undone in the weights.
    """
    seen = rescaled(stats, transform)
    spec = scheme.input
    static = None
    if spec is not None and not spec.dynamic:
        static = scale_and_zero_point(seen.min_K.min().reshape(1, 1), seen.max_K.max().reshape(1, 1), spec)

    def round_input(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert spec is not None
        x_MK = transform.seen(args[0].reshape(-1, args[0].shape[-1]))
        grid = static or RANGES["min_max"](x_MK, spec)
        x_MK = transform.unseen(fake_quantize(x_MK, *grid, spec))
        return (x_MK.reshape(args[0].shape), *args[1:])

    assert scheme.weight is not None
    before: dict[str, Tensor] = {}
    try:
        for name in names:
            linear = model.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            before[name] = linear.weight.detach().clone()
            rounded = rtn(transform.absorbed(before[name]), None, scheme.weight, RANGES["min_max"]).qtensor
            with torch.no_grad():
                linear.weight.copy_(transform.restored(rounded.dequantize()))
        with hooked(model, before=dict.fromkeys(names if spec is not None else (), round_input)):
            yield
    finally:
        for name, weight in before.items():
            with torch.no_grad():
                model.get_submodule(name).weight.copy_(weight)  # type: ignore[operator]


def _spread(output: Any) -> np.ndarray:
    values = _tensor(output).detach().float().flatten()
    return values[:: max(1, values.numel() // _COMPARED_VALUES)].numpy()


def _tensor(output: Any) -> Tensor:
    """The first tensor of what a block, or a model, puts out."""
    while not isinstance(output, Tensor):
        output = output[0]
    return output
