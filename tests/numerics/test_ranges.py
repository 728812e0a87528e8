"""Every range equals a slow and obvious version of itself; and laws that hold for all of them."""

import functools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bitwright.errors import NumericsError
from bitwright.numerics import RANGES, WEIGHT_RANGES, Histogram, QuantSpec, fake_quantize
from bitwright.numerics.grids import grouped
from bitwright.numerics.ranges import absmax, entropy, min_max, moving_average, mse, percentile

BITS = (8, 4, 3, 2)
NAMES = [name for name in RANGES if name not in WEIGHT_RANGES]  # those are tested with the search that mse shares
ALL = {name: RANGES[name] for name in NAMES} | {"percentile 95": functools.partial(percentile, percent=95)}
ON_FEW_VALUES = [name for name in ALL if name != "entropy"]  # which wants thousands
FULL = ("absmax", "min_max", "moving_average")
GRANULARITIES: list[dict[str, Any]] = [{"per_tensor": True}, {}, {"group_size": 16}]
HALF_A_STEP = 0.5 + 256 * 2**-24  # float32 division is off by 2⁻²⁴ relative, of up to 255 steps

Ends = tuple[float, float]


def specs(*granularities: dict[str, Any], bits: Sequence[int] = BITS) -> list[QuantSpec]:
    return [QuantSpec(bits=b, symmetric=s, **g) for b in bits for s in (True, False) for g in granularities]


def distributions(n: int, k: int) -> dict[str, Tensor]:
    """(n, k) samples: even, heavy-tailed, one-sided with a spike at zero, nearly one-sided, skewed by an outlier."""
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(n, k, generator=g)
    outlier = normal.clone()
    outlier[:, 7] = -30
    return {
        "normal": normal,
        "heavy": normal / torch.rand(n, k, generator=g),
        "relu": torch.relu(normal),
        "gelu": torch.nn.functional.gelu(3 * normal),
        "negative": -normal.abs() - 1,
        "outlier": outlier,
    }


DISTRIBUTIONS, MANY_VALUES = distributions(2, 32), distributions(2, 4096)
on_every_distribution = pytest.mark.parametrize("x", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS.keys())
on_every_granularity = pytest.mark.parametrize("spec", specs(*GRANULARITIES), ids=str)
on_tensors = pytest.mark.parametrize("spec", specs({"per_tensor": True}), ids=str)
# Every range with the granularities and the sample that suit it.
on_every_range = pytest.mark.parametrize(
    ("name", "spec", "samples"),
    [(name, spec, DISTRIBUTIONS) for name in ON_FEW_VALUES for spec in specs(*GRANULARITIES, bits=(8, 3))]
    + [("entropy", spec, MANY_VALUES) for spec in specs({"per_tensor": True}, {}, {"group_size": 2048}, bits=(8, 3))],
)


# The obvious versions: plain Python over a list of values.


def as_stored(scale: float, spec: QuantSpec) -> np.float32:
    """Of at most 4 bits, the next bfloat16 value from it on up."""
    if spec.bits > 4:
        return np.float32(scale)
    stored = torch.tensor(np.float32(scale)).bfloat16()
    above = torch.nextafter(stored, torch.tensor(math.inf, dtype=torch.bfloat16))
    return np.float32((stored if float(stored) >= np.float32(scale) else above).float())


def grid_of(ends: Ends, spec: QuantSpec) -> tuple[np.float32, int | None]:
    lo, hi = min(ends[0], 0.0), max(ends[1], 0.0)
    if spec.symmetric:
        return as_stored(max(-lo, hi) / spec.half_steps or 1.0, spec), None
    scale = as_stored((hi - lo) / (2**spec.bits - 1) or 1.0, spec)
    return scale, round(spec.code_min - lo / float(scale))


def obvious_absmax(values: Sequence[float], spec: QuantSpec) -> Ends:
    reach = max(abs(v) for v in values)
    return -reach, reach


def obvious_min_max(values: Sequence[float], spec: QuantSpec) -> Ends:
    return min(values), max(values)


def obvious_percentile(values: Sequence[float], spec: QuantSpec, percent: str = "95") -> Ends:
    dropped = (100 - Fraction(percent)) / 100 * len(values)
    if spec.symmetric:
        limit = sorted(abs(v) for v in values)[-1 - math.floor(dropped)]
        return -limit, limit
    each_side = math.floor(dropped / 2)
    return sorted(values)[each_side], sorted(values)[-1 - each_side]


def obvious_mse(
    values: Sequence[float], spec: QuantSpec, counts: Sequence[int] | None = None, ends: Any = None
) -> Ends:
    best, best_error = (0.0, 0.0), math.inf
    lo, hi = ends or (min(values), max(values))
    x, weight = np.array(values), np.array(counts or [1] * len(values), dtype=np.float64)
    for step in range(100):
        shrunk = (min(lo, 0) * (1 - step / 100), max(hi, 0) * (1 - step / 100))
        scale, zero = grid_of(shrunk, spec)
        codes = np.clip(np.round(x / float(scale)) + (zero or 0), spec.code_min, spec.code_max)
        error = float((weight * ((codes - (zero or 0)) * float(scale) - x) ** 2).sum())
        if error < best_error * (1 - 1e-9):
            best, best_error = shrunk, error
    return best


def obvious_entropy(values: Sequence[float], spec: QuantSpec) -> Ends:
    top = max(abs(v) for v in values)
    width = 2.0 ** (math.frexp(top)[1] - 12)
    bins = np.zeros(int(top / width) + 1)
    for v in values:
        bins[math.floor(v / width) if v >= 0 else -math.floor(v / width) - 1] += 1
    bins = np.trim_zeros(bins, "b")
    bins[0] = bins[1]
    lo, hi = min(*values, 0.0), max(*values, 0.0)
    levels = 2 ** (spec.bits - 1) if spec.symmetric else round(2**spec.bits * top / (hi - lo))
    best_kept, best_divergence = 0, math.inf
    for kept in range(max(128, levels), len(bins) + 1):
        reference = bins[:kept].copy()
        reference[-1] += bins[kept:].sum()
        level = np.arange(kept) * levels // kept
        filled = bins[:kept] > 0
        mass = np.bincount(level, weights=bins[:kept], minlength=levels)
        share = mass / np.maximum(np.bincount(level, weights=filled, minlength=levels), 1)
        candidate = np.where(filled, share[level], 0)
        if bins[kept - 1] == 0 or candidate.sum() == 0:
            continue  # nothing stands where the outliers were put: infinite
        p, q = reference / reference.sum(), candidate / candidate.sum()
        divergence = float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())
        if divergence <= best_divergence + 1e-9:  # the last of equals
            best_kept, best_divergence = kept, min(divergence, best_divergence)
    limit = best_kept * width
    return max(lo, -limit), min(hi, limit)


OBVIOUS: dict[str, Callable[[Sequence[float], QuantSpec], Ends]] = {
    "absmax": obvious_absmax,
    "min_max": obvious_min_max,
    "percentile": functools.partial(obvious_percentile, percent="99.99"),
    "percentile 95": obvious_percentile,
    "moving_average": obvious_min_max,  # of a single batch
}


def assert_grids_equal(ours: tuple[Tensor, Tensor | None], ends: list[Ends], spec: QuantSpec) -> None:
    want = [grid_of(e, spec) for e in ends]
    np.testing.assert_allclose(ours[0].flatten().numpy(), np.array([scale for scale, _ in want]), rtol=1e-6)
    zeros = [None] * len(want) if ours[1] is None else ours[1].flatten().tolist()
    assert zeros == [zero for _, zero in want]


def assert_zero_points_equal(a: Tensor | None, b: Tensor | None) -> None:
    assert (a is None) == (b is None)
    if a is not None and b is not None:
        assert torch.equal(a, b)


@on_every_distribution
@on_every_granularity
@pytest.mark.parametrize("name", OBVIOUS)
def test_tensor_ranges_equal_the_obvious_ones(name: str, spec: QuantSpec, x: Tensor) -> None:
    groups = grouped(x, spec).flatten(0, 1).tolist()
    assert_grids_equal(ALL[name](x, spec), [OBVIOUS[name](group, spec) for group in groups], spec)


@pytest.mark.parametrize("x", MANY_VALUES.values(), ids=MANY_VALUES.keys())
@pytest.mark.parametrize("spec", [QuantSpec(per_tensor=True), QuantSpec(bits=4, per_tensor=True, symmetric=False)])
def test_entropy_equals_the_obvious_one(spec: QuantSpec, x: Tensor) -> None:
    want = [obvious_entropy(x.flatten().tolist(), spec)]
    assert_grids_equal(entropy(x, spec), want, spec)
    assert_grids_equal(entropy(Histogram.of(x), spec), want, spec)


def test_entropy_searches_each_row_alone() -> None:
    x = MANY_VALUES["heavy"]
    rows = [entropy(row[None], QuantSpec(per_tensor=True))[0] for row in x]
    assert torch.equal(entropy(x, QuantSpec())[0], torch.cat(rows))


def test_entropy_takes_the_widest_of_equals() -> None:
    """With two distinct values, keeping both loses nothing, and neither does moving the rare one onto the other."""
    x, spec = torch.tensor([1.0] * 3000 + [2.0] * 100)[None], QuantSpec(per_tensor=True)
    assert torch.equal(entropy(x, spec)[0], absmax(x, spec)[0])


def test_entropy_of_few_values_is_refused() -> None:
    with pytest.raises(NumericsError, match="at least 2048 values per scale to fill its histogram, got 32"):
        entropy(DISTRIBUTIONS["normal"], QuantSpec())


@on_every_distribution
@on_tensors
@pytest.mark.parametrize("name", FULL)
def test_full_ranges_are_the_same_on_a_histogram(name: str, spec: QuantSpec, x: Tensor) -> None:
    ours, exact = ALL[name](Histogram.of(x), spec), ALL[name](x, spec)
    assert torch.equal(ours[0], exact[0])
    assert_zero_points_equal(ours[1], exact[1])


@on_every_distribution
@pytest.mark.parametrize("percent", [99.99, 99.9, 98, 75.5, 50])
@pytest.mark.parametrize("symmetric", [True, False])
def test_percentile_on_a_histogram_is_widened_by_less_than_a_bin_at_each_end(
    symmetric: bool, percent: float, x: Tensor
) -> None:
    spec, h = QuantSpec(symmetric=symmetric, per_tensor=True), Histogram.of(x)
    n_steps = spec.half_steps if symmetric else 255
    exact, ours = (float(percentile(v, spec, percent=percent)[0]) * n_steps for v in (x, h))
    assert exact * (1 - 1e-6) <= ours <= (exact + (1 if symmetric else 2) * h.width) * (1 + 1e-6)


@on_every_distribution
@on_tensors
def test_mse_on_a_histogram_equals_the_obvious_one_on_bin_centres(spec: QuantSpec, x: Tensor) -> None:
    h = Histogram.of(x)
    used = h.counts.nonzero().flatten()
    centres, counts = (h.edges[used] + h.width / 2).tolist(), h.counts[used].tolist()
    assert_grids_equal(mse(h, spec), [obvious_mse(centres, spec, counts, (h.minimum, h.maximum))], spec)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("decay", [None, 0.0, 0.9])
def test_moving_average_equals_the_obvious_one(decay: float | None, symmetric: bool) -> None:
    spec = QuantSpec(symmetric=symmetric, per_tensor=True)
    batches = [batch * 2.0**i for i, batch in enumerate(DISTRIBUTIONS.values())]
    ends: list[Ends] = []
    for batch in batches:
        lo, hi = min(float(batch.min()), 0.0), max(float(batch.max()), 0.0)
        ends.append((-max(-lo, hi), max(-lo, hi)) if symmetric else (lo, hi))
    if decay is None:
        want = (sum(lo for lo, _ in ends) / len(ends), sum(hi for _, hi in ends) / len(ends))
    else:
        want = ends[0]
        for lo, hi in ends[1:]:
            want = (decay * want[0] + (1 - decay) * lo, decay * want[1] + (1 - decay) * hi)
    h = functools.reduce(Histogram.__add__, [Histogram.of(batch) for batch in batches])
    assert_grids_equal(moving_average(h, spec, decay=decay), [want], spec)


# Laws.


def squared_error(x: Tensor, grid: tuple[Tensor, Tensor | None], spec: QuantSpec) -> float:
    return float((fake_quantize(x, *grid, spec).double() - x.double()).square().sum())


@on_every_distribution
@on_every_granularity
def test_mse_is_never_worse_than_the_full_range(spec: QuantSpec, x: Tensor) -> None:
    full = absmax if spec.symmetric else min_max
    assert squared_error(x, mse(x, spec), spec) <= squared_error(x, full(x, spec), spec) * (1 + 1e-12)
    if spec.per_tensor:  # bin centres stand for their values to within half a bin
        h = Histogram.of(x)
        ours, theirs = (math.sqrt(squared_error(x, choose(h, spec), spec)) for choose in (mse, full))
        assert ours <= theirs + h.width * math.sqrt(x.numel())


@on_every_range
def test_no_range_reaches_beyond_the_values(name: str, spec: QuantSpec, samples: dict[str, Tensor]) -> None:
    widest = min_max if name != "absmax" else absmax
    for x in samples.values():
        assert (ALL[name](x, spec)[0] <= widest(x, spec)[0]).all()


@on_every_range
@pytest.mark.parametrize("factor", [2.0**-40, 2.0**30])
def test_scales_follow_the_unit_of_the_values(
    factor: float, name: str, spec: QuantSpec, samples: dict[str, Tensor]
) -> None:
    x = samples["heavy"]
    (scale, zero), (scaled, same_zero) = ALL[name](x, spec), ALL[name](x * factor, spec)
    assert torch.equal(scaled, scale * factor)
    assert_zero_points_equal(zero, same_zero)


@on_every_range
@pytest.mark.parametrize("value", [0.0, 2.5, -1e-45, 1e37])
def test_constants_survive_every_range(value: float, name: str, spec: QuantSpec, samples: dict[str, Tensor]) -> None:
    """Nothing stands out in a constant tensor, so nothing is clipped and nothing breaks."""
    x = torch.full_like(samples["normal"], value)
    scale, zero = ALL[name](x, spec)
    error = (fake_quantize(x, scale, zero, spec).double() - x.double()).abs()
    assert error.max() <= scale.double().max() * HALF_A_STEP
    if value == 0:
        assert (scale == 1).all()


@pytest.mark.parametrize("name", ON_FEW_VALUES)
@pytest.mark.parametrize("spec", specs({}), ids=str)
def test_a_single_value_is_a_tensor(spec: QuantSpec, name: str) -> None:
    x = torch.tensor([[-0.3]])
    scale, zero = ALL[name](x, spec)
    assert (fake_quantize(x, scale, zero, spec) - x).abs() <= scale * HALF_A_STEP


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_are_stored_as_asked(dtype: torch.dtype, name: str) -> None:
    x = MANY_VALUES["normal"]
    for values in (x, Histogram.of(x)):
        assert ALL[name](values, QuantSpec(per_tensor=True), dtype=dtype)[0].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ALL)
def test_every_float_dtype_is_read(name: str, dtype: torch.dtype) -> None:
    x = MANY_VALUES["normal"].to(dtype)
    assert torch.equal(ALL[name](x, QuantSpec(bits=4))[0], ALL[name](x.float(), QuantSpec(bits=4))[0])


@pytest.mark.parametrize("name", ALL)
def test_rows_are_the_tokens_of_dynamic_activations(name: str) -> None:
    x, spec = MANY_VALUES["outlier"], QuantSpec(symmetric=False, dynamic=True)
    scale, zero = ALL[name](x, spec)
    for m in range(len(x)):
        scale_alone, zero_alone = ALL[name](x[m : m + 1], spec)
        assert torch.equal(scale[m : m + 1], scale_alone)
        assert_zero_points_equal(None if zero is None else zero[m : m + 1], zero_alone)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "entropy"])  # which does not minimize the error
def test_fewer_bits_and_coarser_scales_lose_more(name: str) -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(16, 256, generator=g) * (0.5 + torch.rand(16, 1, generator=g))

    def loss(bits: int, granularity: dict[str, Any], symmetric: bool) -> float:
        spec = QuantSpec(bits=bits, symmetric=symmetric, **granularity)
        return squared_error(x, ALL[name](x, spec), spec)

    for symmetric in (True, False):
        for granularity in GRANULARITIES:
            by_bits = [loss(bits, granularity, symmetric) for bits in BITS]
            assert by_bits == sorted(by_bits)
        for bits in BITS[:2]:
            tensor, row, group = (loss(bits, granularity, symmetric) for granularity in GRANULARITIES)
            assert group < row < tensor


@pytest.mark.parametrize("name", NAMES)
def test_nan_is_counted_and_refused(name: str) -> None:
    x = torch.ones(2, 8)
    x[1, 2] = torch.nan
    with pytest.raises(NumericsError, match="1 of 16 are NaN or infinite"):
        RANGES[name](x, QuantSpec())


@pytest.mark.parametrize("name", NAMES)
def test_a_histogram_has_no_rows(name: str) -> None:
    with pytest.raises(NumericsError, match="per_tensor = True"):
        RANGES[name](Histogram.of(torch.ones(8)), QuantSpec())


@pytest.mark.parametrize("percent", [0, -1, 100.5, math.nan])
def test_percent_is_a_percentage(percent: float) -> None:
    with pytest.raises(NumericsError, match="percent ="):
        percentile(torch.ones(2, 2), QuantSpec(), percent=percent)


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_decay_is_a_fraction(decay: float) -> None:
    with pytest.raises(NumericsError, match="decay ="):
        moving_average(Histogram.of(torch.ones(2)), QuantSpec(per_tensor=True), decay=decay)
