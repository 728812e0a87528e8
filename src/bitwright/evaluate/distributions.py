"""Histograms of weights and activations before and after quantization, for the report's pictures."""

import torch
from torch import Tensor

from bitwright.record import Distribution, Histogram

BINS = 64


def histogram(before: Tensor, after: Tensor) -> Histogram:
    """Shares of the values that fall into `BINS` equal bins over the range of `before`.

    Args:
        before, after: float tensors of one shape; values of `after` outside the range count in the outermost bins.

    Returns:
        BINS + 1 edges and twice BINS shares; the shares of each sum to 1.
    """
    lo, hi = float(before.min()), float(before.max())
    if lo == hi:
        lo, hi = lo - 0.5, hi + 0.5
    edges = torch.linspace(lo, hi, BINS + 1)
    shares = [torch.histc(values.float().clamp(lo, hi), BINS, lo, hi) / values.numel() for values in (before, after)]
    return Histogram(*(tuple(values.tolist()) for values in (edges, *shares)))


def linear_distributions(
    name: str, role: str, weight: tuple[Tensor, Tensor], inputs: tuple[Tensor, Tensor] | None
) -> Distribution:
    """The Record's entry for one linear; `weight` and `inputs` are (before, after)."""
    return Distribution(name, role, histogram(*weight), None if inputs is None else histogram(*inputs))
