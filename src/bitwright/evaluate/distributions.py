"""Histograms of weights and activations before and after quantization, for the report's pictures."""

from typing import Any

import torch
from torch import Tensor

BINS = 64


def distribution(before: Tensor, after: Tensor) -> dict[str, list[float]]:
    """Shares of the values that fall into `BINS` equal bins over the range of `before`.

    Args:
        before, after: float tensors of one shape; values of `after` outside the range count in the outermost bins.

    Returns:
        {"edges": BINS + 1 numbers, "before": BINS shares, "after": BINS shares}; the shares of each sum to 1.
    """
    lo, hi = float(before.min()), float(before.max())
    if lo == hi:
        lo, hi = lo - 0.5, hi + 0.5
    edges = torch.linspace(lo, hi, BINS + 1)
    shares = [torch.histc(values.float().clamp(lo, hi), BINS, lo, hi) / values.numel() for values in (before, after)]
    return {"edges": edges.tolist(), "before": shares[0].tolist(), "after": shares[1].tolist()}


def linear_distributions(
    name: str, role: str, weight: tuple[Tensor, Tensor], inputs: tuple[Tensor, Tensor] | None
) -> dict[str, Any]:
    """The Record's entry for one linear; `weight` and `inputs` are (before, after)."""
    activation = distribution(*inputs) if inputs is not None else None
    return {"name": name, "role": role, "weight": distribution(*weight), "activation": activation}
