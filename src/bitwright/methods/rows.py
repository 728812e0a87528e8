"""Weights that read the same input (q, k, v; gate, up) rounded in one go: their Gram matrix is factored once."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bitwright.calibration.observers import LayerStats
from bitwright.methods.slots import Rounded, Rounding
from bitwright.numerics.ranges import RangeFunction
from bitwright.numerics.spec import QuantSpec


def round_together(
    rounding: Rounding,
    weights: Sequence[Tensor],
    stats: LayerStats | None,
    spec: QuantSpec,
    range_function: RangeFunction,
) -> list[Rounded]:
    """What `rounding` makes of each of the weights (N_i, K), with the notes of all.

    Rows do not influence each other where each has scales and levels of its own, so the weights are stacked. Otherwise
    (one scale, or fitted levels, for a whole tensor) they are rounded one by one.
    """
    if len(weights) == 1 or spec.per_tensor or spec.grid == "kmeans":
        return [rounding(w_NK, stats, spec, range_function) for w_NK in weights]
    rounded = rounding(torch.cat(list(weights)), stats, spec, range_function)
    ends = torch.tensor([len(w_NK) for w_NK in weights]).cumsum(0).tolist()
    return [_rows(rounded, end - len(w_NK), end) for w_NK, end in zip(weights, ends, strict=True)]


def stacked(parts: Sequence[Rounded]) -> Rounded:
    """Weights with the same spec, each row with a scale of its own, as one. Of notes that differ the last counts."""

    def of(tensors: Sequence[Tensor | None]) -> Tensor | None:
        found = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(found) if found else None

    weights = [part.qtensor for part in parts]
    whole = replace(
        weights[0],
        codes_NK=torch.cat([q.codes_NK for q in weights]),
        scale_NG=torch.cat([q.scale_NG for q in weights]),
        zero_point_NG=of([q.zero_point_NG for q in weights]),
        minimum_NG=of([q.minimum_NG for q in weights]),
    )
    notes = {key: value for part in parts for key, value in part.notes.items()}
    return Rounded(whole, of([part.bias_N for part in parts]), notes)


def _rows(rounded: Rounded, begin: int, end: int) -> Rounded:
    """Rows [begin, end), copied, so that no weight keeps the others' memory."""

    def of(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[begin:end].clone()

    q = rounded.qtensor
    part = replace(
        q,
        codes_NK=q.codes_NK[begin:end].clone(),
        scale_NG=q.scale_NG[begin:end].clone(),
        zero_point_NG=of(q.zero_point_NG),
        minimum_NG=of(q.minimum_NG),
    )
    return Rounded(part, of(rounded.bias_N), dict(rounded.notes))
