"""Measures what the choice of a method needs: the features of a unit, and the error that each method would leave.

A unit is the set of linears that share an input, or all experts of a block. Nothing here runs a model: all follows from
the weights and from the statistics of a small calibration sample.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.calibration.observers import LayerStats, rescaled
from bitwright.errors import NumericsError
from bitwright.evaluate.output_errors import squared_outputs
from bitwright.methods import METHODS, Alpha, transform_of
from bitwright.methods.awq import awq
from bitwright.methods.rtn import rtn
from bitwright.methods.scaling import expected_error, input_noise
from bitwright.models.sites import LinearSite
from bitwright.numerics import RANGES
from bitwright.numerics.histogram import Histogram
from bitwright.numerics.schemes import SCHEMES, Scheme, fit_group

_ROWS = 192  # output features that errors are measured on, of all readers of an input; the others are alike
_SEARCHED_ROWS = 64  # and those on which candidates of a transform are compared
_EXPONENTS = 8  # of AWQ's search; the whole one has 20
_DAMPING = 0.01  # of a Gram matrix, relative to its mean diagonal, as GPTQ has it
_PERCENTILE = 0.999


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """One tensor that linears of a unit read.

    stats: with a Gram matrix and, unless no token came by, a histogram. weights: float (N, K) of the linears that are
    quantized. foldable: whether a scale of its features fits into what makes it.
    """

    stats: LayerStats
    weights: Sequence[Tensor]
    foldable: bool


@dataclass(frozen=True, slots=True)
class Features:
    """The features of one unit.

    n_weights: values in all its linears. k: input features. n_tokens: of the sample that reached it.
    tail: the largest magnitude of its inputs relative to their 99.9th percentile; kurtosis: of the inputs, 3 for a
    normal distribution; channel_ratio: the largest input feature's absmax relative to the median feature's.
    error_int4, error_int8: relative error of the outputs after rounding the weights to nearest, in groups that fit K
    or by row.
    expected: of each method that fits the scheme, the relative error of the outputs that it is expected to leave, from
    rounding weights and inputs.
    foldable: whether transforms of all its inputs fold into the weights before.
    """

    unit: str
    role: str
    block: int | None
    scheme: str
    sites: tuple[LinearSite, ...]
    n_weights: int
    k: int
    n_tokens: int
    tail: float
    kurtosis: float
    channel_ratio: float
    error_int4: float
    error_int8: float
    expected: Mapping[str, float]
    foldable: bool


# The methods that are compared, least work first: smoothing is a formula, GPTQ solves once per input, AWQ compares many
# scales.
COMPARED = ("rtn", "smoothquant", "gptq", "smoothquant_gptq", "awq", "awq_gptq")


def candidates(scheme: Scheme) -> tuple[str, ...]:
    """The methods that are worth comparing for a scheme: smoothing where inputs are rounded, scaling below 8 bits."""
    smooths = scheme.input is not None
    scales = scheme.weight is not None and scheme.weight.bits < 8
    useless = {"smoothquant": not smooths, "awq": not scales}
    return tuple(name for name in COMPARED if not useless.get(METHODS[name].transform or "", False))


def measure(
    unit: str, sites: Sequence[LinearSite], scheme: str, n_weights: int, seen: Sequence[Seen], *, alpha: Alpha
) -> Features:
    """The features of one unit.

    Args:
        sites: its linears. scheme: name of the one that they get. n_weights: values in all of them.
        seen: the tensors that they read; of many experts a few will do.
        alpha: SmoothQuant's exponent, as `smoothquant` takes it; where it is to be searched, its default counts.

    Raises:
        NumericsError: nothing was seen; NaN or infinity in weights or inputs.
    """
    if not seen:
        raise NumericsError(f"{unit}: no token of the sample reached these linears; give more text")
    k = len(seen[0].stats.min_K)
    tails, kurtoses, ratios = zip(*(_shape_of(tensor.stats) for tensor in seen), strict=True)
    sampled = [_sampled_rows(tensor.weights) for tensor in seen]
    float_outputs = sum(squared_outputs(w, tensor.stats) for w, tensor in zip(sampled, seen, strict=True))

    def relative(squared_error: float) -> float:
        return math.sqrt(max(squared_error, 0.0) / float_outputs) if float_outputs > 0 else 0.0

    def rounded(name: str) -> float:
        spec = fit_group(SCHEMES[name], k)[0].weight
        assert spec is not None
        deltas = (w - rtn(w, None, spec, RANGES["absmax"]).qtensor.dequantize() for w in sampled)
        return relative(sum(squared_outputs(d, tensor.stats) for d, tensor in zip(deltas, seen, strict=True)))

    expected = {
        method: relative(
            sum(_squared_error(method, w, t.stats, SCHEMES[scheme], alpha) for w, t in zip(sampled, seen, strict=True))
        )
        for method in candidates(SCHEMES[scheme])
    }
    return Features(
        unit=unit,
        role=sites[0].role,
        block=sites[0].block,
        scheme=scheme,
        sites=tuple(sites),
        n_weights=n_weights,
        k=k,
        n_tokens=sum(tensor.stats.n_tokens for tensor in seen),
        tail=max(tails),
        kurtosis=max(kurtoses),
        channel_ratio=max(ratios),
        error_int4=rounded("w4a16"),
        error_int8=rounded("w8a16"),
        expected=expected,
        foldable=all(tensor.foldable for tensor in seen),
    )


def _squared_error(method: str, w_NK: Tensor, stats: LayerStats, scheme: Scheme, alpha: Alpha) -> float:
    """Σ over tokens of ‖W x − Ŵ x̂‖² that a method is expected to leave: rounding of weights and of inputs, as if the
    two were independent.
    """
    row = METHODS[method]
    scheme = fit_group(scheme, w_NK.shape[1])[0]
    spec = scheme.weight
    assert spec is not None
    if row.transform is not None:
        judge = expected_error([w_NK], stats, scheme, rows=_SEARCHED_ROWS)
        choose = transform_of(method, alpha=None if alpha == "search" else alpha, shiftable=False)
        assert choose is not None
        scaled = awq([w_NK], stats, scheme, judge, grid=_EXPONENTS) if row.transform == "awq" else choose(
            [w_NK], stats, scheme, judge
        )  # fmt: skip
        if scaled is not None:
            w_NK, stats = scaled.transform.absorbed(w_NK), rescaled(stats, scaled.transform)
    delta_NK = w_NK - rtn(w_NK, stats, spec, RANGES[row.range]).qtensor.dequantize()
    total = squared_outputs(delta_NK, stats)
    if row.rounding == "gptq":
        total *= _left_by_compensation(stats)
    if scheme.input is not None:
        noise_K = input_noise(stats, scheme.input) * stats.n_tokens
        total += float(w_NK.square().sum(0, dtype=torch.float64) @ noise_K)
    return total


def _left_by_compensation(stats: LayerStats) -> float:
    """The share of the squared error that is left when later columns make up for the error of earlier ones.

    With G = L Lᵀ, columns in GPTQ's order, rounding errors e of equal mean square: Σ L_kk² e_k² instead of Σ G_kk e_k².
    """
    assert stats.gram_KK is not None
    gram = stats.gram_KK.double()
    alive = gram.diagonal() > 0
    gram = gram[alive][:, alive]
    if not len(gram):
        return 1.0
    order = gram.diagonal().argsort()
    gram = gram[order][:, order]
    damped = gram + _DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    lower, failed = torch.linalg.cholesky_ex(damped)
    if bool(failed):
        return 1.0
    return min(1.0, float(lower.diagonal().square().sum() / damped.diagonal().sum()))


def _shape_of(stats: LayerStats) -> tuple[float, float, float]:
    """(tail, kurtosis, channel ratio) of the inputs."""
    absmax_K = stats.absmax_K.double()
    typical = float(absmax_K[absmax_K > 0].median()) if bool((absmax_K > 0).any()) else 1.0
    if stats.histogram is None:
        raise NumericsError("the shape of the inputs is computed from their histogram; observe with histogram=True")
    return (*_tail_and_kurtosis(stats.histogram), float(absmax_K.max()) / typical)


def _tail_and_kurtosis(histogram: Histogram) -> tuple[float, float]:
    """(largest magnitude / 99.9th percentile, fourth central moment / variance²); (1, 0) of zeros alone."""
    if histogram.absmax == 0:
        return 1.0, 0.0
    counts = histogram.magnitude_counts
    bins = int((counts.cumsum(0) < _PERCENTILE * int(counts.sum())).sum()) + 1
    tail = histogram.absmax / min(bins * histogram.width, histogram.absmax)
    share = histogram.counts.double() / int(histogram.counts.sum())
    values = histogram.edges[:-1] + histogram.width / 2
    values -= share @ values
    variance = float(share @ values**2)
    return tail, float(share @ values**4) / variance**2


def _sampled_rows(weights: Sequence[Tensor]) -> Tensor:
    """Evenly spaced rows of all weights together: float32 (≤ _ROWS, K)."""
    n = sum(len(w) for w in weights)
    step = max(1, math.ceil(n / _ROWS))
    return torch.cat([w[::step].detach().float() for w in weights])
