"""Laws of the grids that are not uniform: where their levels lie, and that every value takes the nearest."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor

from bitwright.errors import NumericsError
from bitwright.numerics import (
    QTensor,
    QuantSpec,
    RangeFunction,
    code_values,
    codebook_of,
    fit_codebook,
    nearest_codes,
    quantize,
)
from bitwright.numerics.levels import whole_levels
from bitwright.numerics.ranges import absmax, mse

GRIDS = [
    QuantSpec(bits=bits, grid=grid, group_size=group_size)
    for grid, bits in (
        ("pot", 4),
        ("pot", 3),
        ("pot", 2),
        ("apot", 4),
        ("apot", 3),
        ("nf4", 4),
        ("kmeans", 4),
        ("kmeans", 2),
        ("ternary", 2),
        ("binary", 1),
    )
    for group_size in (None, 4)
]
FITTED = [QuantSpec(bits=bits, grid="kmeans", group_size=group) for bits in (4, 3, 2) for group in (None, 16)]
on_every_grid = pytest.mark.parametrize("spec", GRIDS, ids=str)
matrices = npst.arrays(np.float32, (2, 8), elements=st.floats(-(2.0**126), 2.0**126, width=32)).map(torch.from_numpy)


def levels(q: QTensor) -> Tensor:
    """The values that each group's codes can stand for: float64 (N, G, L)."""
    codes = torch.arange(q.spec.code_min, q.spec.code_max + 1)
    return code_values(codes, q.scale_NG[..., None].double(), None, q.spec, q.codebook)


def test_nf4_is_what_bitsandbytes_publishes() -> None:
    published = [-1, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0]
    published += [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1]
    book = codebook_of(QuantSpec(bits=4, grid="nf4"))
    assert book is not None
    torch.testing.assert_close(book, torch.tensor(published, dtype=torch.float32), rtol=0, atol=1e-6)


def test_powers_of_two_are_powers_of_two() -> None:
    book = codebook_of(QuantSpec(bits=4, grid="pot"))
    assert book is not None
    assert book[8:].tolist() == [2.0**k for k in range(-6, 1)]


def test_additive_powers_of_two_are_all_sums_over_their_maximum() -> None:
    a, b = (0, 1 / 2, 1 / 4, 1 / 16), (0, 1 / 8)
    sums = sorted({(x + y) / (a[1] + b[1]) for x in a for y in b})
    book = codebook_of(QuantSpec(bits=4, grid="apot"))
    assert book is not None
    assert book[7:].tolist() == torch.tensor(sums).tolist()


@pytest.mark.parametrize("spec", [spec for spec in GRIDS if codebook_of(spec) is not None], ids=str)
def test_fixed_levels_ascend_from_minus_one_to_one_with_a_code_for_each(spec: QuantSpec) -> None:
    book = codebook_of(spec)
    assert book is not None
    assert (book.diff() > 0).all()
    assert (book[0], book[-1], len(book)) == (-1, 1, spec.code_max + 1)
    assert len(book) in (2**spec.bits, 2**spec.bits - 1)
    if spec.grid != "nf4":
        assert torch.equal(book, -book.flip(0))
    assert (0 in book) == spec.has_zero


@pytest.mark.parametrize(
    ("spec", "largest"),
    [
        (QuantSpec(bits=4, grid="fp4"), 12), (QuantSpec(bits=4, grid="pot"), 64), (QuantSpec(bits=3, grid="pot"), 4),
        (QuantSpec(bits=4, grid="apot"), 10), (QuantSpec(bits=3, grid="apot"), 4),
        (QuantSpec(bits=1, grid="binary"), 1),
    ],
    ids=str,
)  # fmt: skip
def test_sums_of_powers_of_two_are_whole_multiples_of_a_step(spec: QuantSpec, largest: int) -> None:
    book = codebook_of(spec)
    assert book is not None
    whole, step = whole_levels(book.tolist())
    assert max(whole) == -min(whole) == largest
    assert torch.equal((torch.tensor(whole, dtype=torch.float64) * step).float(), book)


@pytest.mark.parametrize("factor", [1.0, 1e-30, -3e20])
def test_any_levels_are_within_half_a_step_of_whole_ones(factor: float) -> None:
    for seed in range(20):
        book = torch.randn(16, generator=torch.Generator().manual_seed(seed)).sort().values * factor
        whole, step = whole_levels(book.tolist())
        assert max(map(abs, whole)) == 127
        assert list(whole) == [round(level * 127 / float(book.abs().max())) for level in book.tolist()]
        assert max(abs(n * step - level) for n, level in zip(whole, book.tolist(), strict=True)) <= step * 0.5001
    assert whole_levels([0.0] * 4) == ((0,) * 4, 1.0)


def test_levels_are_on_the_cpu_even_where_a_model_without_values_is_built() -> None:
    codebook_of.cache_clear()
    for spec in (QuantSpec(bits=4, grid="nf4"), QuantSpec(bits=4, grid="apot"), QuantSpec(bits=1, grid="binary")):
        with torch.device("meta"):
            book = codebook_of(spec)
        assert book is not None
        assert book.device.type == "cpu"


def test_only_kmeans_is_fitted() -> None:
    with pytest.raises(NumericsError, match="levels of the nf4 grid are fixed"):
        fit_codebook(torch.ones(2, 8), torch.ones(2, 1), QuantSpec(bits=4, grid="nf4"))


# Law 1, for every grid: |x − dequantize(quantize(x))| is the distance to the nearest level, hence at most half the gap
# between the two around x.


@given(matrices, st.sampled_from(GRIDS))
def test_every_value_takes_the_nearest_level(x: Tensor, spec: QuantSpec) -> None:
    q = quantize(x, *absmax(x, spec), spec)
    grouped = x.double().reshape(*q.scale_NG.shape, -1)
    values = code_values(q.codes_NK.reshape(grouped.shape), q.scale_NG[..., None].double(), None, spec, q.codebook)
    best = (grouped[..., None] - levels(q)[..., None, :]).abs().amin(-1)
    # float32 division and midpoints are off by 2⁻²⁴, of levels up to 1 and values up to the group's reach in scales.
    slack = 2**-22 * torch.maximum(q.scale_NG[..., None].double(), grouped.abs())
    assert ((values - grouped).abs() <= best + slack).all()


@given(matrices, st.sampled_from([spec for spec in GRIDS if not spec.is_mean_scaled and spec.grid != "kmeans"]))
def test_absmax_reaches_every_value(x: Tensor, spec: QuantSpec) -> None:
    """Nothing is out of range: the nearest level is at most half a local gap away."""
    q = quantize(x, *absmax(x, spec), spec)
    grouped = x.double().reshape(*q.scale_NG.shape, -1)
    ladder = levels(q)
    above = torch.searchsorted(ladder, grouped.contiguous()).clamp(1, ladder.shape[-1] - 1)
    half_gap = (ladder.gather(-1, above) - ladder.gather(-1, above - 1)) / 2
    error = (q.dequantize().double().reshape(grouped.shape) - grouped).abs()
    assert (error <= half_gap + 2**-22 * q.scale_NG[..., None].double()).all()


@given(matrices, st.sampled_from([spec for spec in GRIDS if spec.has_zero]))
def test_zero_maps_to_zero(x: Tensor, spec: QuantSpec) -> None:
    x[:, ::2] = 0
    assert (quantize(x, *absmax(x, spec), spec).dequantize()[:, ::2] == 0).all()


@on_every_grid
def test_next_to_nothing_is_left_of_an_all_zero_group(spec: QuantSpec) -> None:
    """Where 0 is no level, the smallest scale stands in for it; the other groups are not disturbed."""
    x = torch.zeros(2, 8)
    assert quantize(x, *absmax(x, spec), spec).dequantize().abs().max() <= torch.finfo(torch.float32).smallest_normal
    x[1] = torch.tensor([1.0, -1.0]).repeat(4)
    back = quantize(x, *absmax(x, spec), spec).dequantize()
    assert back[0].abs().max() <= torch.finfo(torch.float32).smallest_normal
    torch.testing.assert_close(back[1], x[1])


@on_every_grid
@pytest.mark.parametrize("value", [-3.7, 5e37])
def test_a_constant_is_kept(spec: QuantSpec, value: float) -> None:
    """Its magnitude is the largest, and the mean; both ends of every grid lie there."""
    x = torch.full((2, 8), value)
    torch.testing.assert_close(quantize(x, *absmax(x, spec), spec).dequantize(), x)


def test_a_single_value() -> None:
    x = torch.tensor([[-0.3]])
    for spec in GRIDS[::2]:
        torch.testing.assert_close(quantize(x, *absmax(x, spec), spec).dequantize(), x)


@on_every_grid
def test_nan_is_counted_and_refused(spec: QuantSpec) -> None:
    x = torch.ones(2, 8)
    x[1, 2] = torch.nan
    with pytest.raises(NumericsError, match="1 of 16 are NaN or infinite"):
        quantize(x, *absmax(torch.ones(2, 8), spec), spec)
    with pytest.raises(NumericsError, match="1 of 16 are NaN or infinite"):
        absmax(x, spec)


@given(matrices, st.sampled_from([spec for spec in GRIDS if spec.grid != "kmeans"]))
def test_quantizing_twice_changes_nothing(x: Tensor, spec: QuantSpec) -> None:
    q = quantize(x, *absmax(x, spec), spec)
    again = quantize(q.dequantize(), q.scale_NG, None, spec, q.codebook)
    assert torch.equal(again.codes_NK, q.codes_NK)


@on_every_grid
def test_columns_round_as_the_matrix_does(spec: QuantSpec) -> None:
    """What a rounding needs that goes column by column, in float32 and in float64."""
    x = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    q = quantize(x, *absmax(x, spec), spec)
    for k in range(16):
        scale = q.scale_NG[:, k * q.scale_NG.shape[1] // 16]
        codes = nearest_codes(x[:, k].double(), scale.double(), None, spec, q.codebook)
        assert codes.dtype == torch.float64
        assert torch.equal(codes.to(torch.int8), q.codes_NK[:, k])
        assert torch.equal(code_values(q.codes_NK[:, k], scale, None, spec, q.codebook), q.dequantize()[:, k])


def test_scales_of_ternary_and_binary_are_mean_magnitudes() -> None:
    x = torch.tensor([[1.0, -2.0, 3.0, 0.0]])
    for grid, bits in (("ternary", 2), ("binary", 1)):
        assert absmax(x, QuantSpec(bits=bits, grid=grid))[0] == 1.5
    assert quantize(x, torch.tensor([[1.5]]), None, QuantSpec(bits=2, grid="ternary")).codes_NK.tolist() == [
        [1, -1, 1, 0]
    ]
    assert quantize(x, torch.tensor([[1.5]]), None, QuantSpec(bits=1, grid="binary")).codes_NK.tolist() == [
        [1, 0, 1, 1]
    ]


# k-means.


def sample(shape: tuple[int, int] = (32, 256)) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=g) * (0.1 + torch.rand(shape[0], 1, generator=g))


@pytest.mark.parametrize("spec", FITTED, ids=str)
def test_fitting_is_deterministic_and_leaves_its_arguments_alone(spec: QuantSpec) -> None:
    x, (scale, _) = sample(), absmax(sample(), spec)
    book = fit_codebook(x, scale, spec)
    assert torch.equal(book, fit_codebook(x.clone(), scale.clone(), spec))
    assert torch.equal(book, quantize(x, scale, None, spec).codebook)
    assert torch.equal(x, sample())


@pytest.mark.parametrize("spec", FITTED, ids=str)
def test_lloyds_algorithm_on_the_values_themselves_hardly_moves_the_levels(spec: QuantSpec) -> None:
    x = sample()
    q = quantize(x, *absmax(x, spec), spec)
    assert q.codebook is not None
    scale = q.scale_NG[..., None].double()
    normal = x.reshape(*q.scale_NG.shape, -1).double() / scale
    weight, levels = scale.square().expand_as(normal), q.codebook.double()
    for _ in range(50):
        nearest = (normal[..., None] - levels).abs().argmin(-1).flatten()
        levels = torch.bincount(nearest, (weight * normal).flatten()) / torch.bincount(nearest, weight.flatten())
    best = quantize(x, q.scale_NG, None, spec, levels.float()).dequantize()
    assert (q.dequantize() - x).square().sum() <= (best - x).square().sum() * 1.001


@pytest.mark.parametrize("group_size", [None, 16])
def test_fitted_levels_lose_less_than_fixed_ones(group_size: int | None) -> None:
    x = sample()

    def loss(grid: str) -> float:
        spec = QuantSpec(bits=4, grid=grid, group_size=group_size)  # type: ignore[arg-type]
        return float((quantize(x, *absmax(x, spec), spec).dequantize() - x).square().sum())

    assert loss("kmeans") < min(loss(grid) for grid in ("uniform", "nf4", "apot", "pot"))


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_as_many_values_as_levels_are_kept(bits: int) -> None:
    g = torch.Generator().manual_seed(bits)
    few = torch.rand(2**bits, generator=g) * 2 - 1
    x = few[torch.arange(64 * 2**bits) % 2**bits].reshape(1, -1)
    spec = QuantSpec(bits=bits, grid="kmeans")
    torch.testing.assert_close(quantize(x, *absmax(x, spec), spec).dequantize(), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("choose", [absmax, mse])
def test_fewer_values_than_levels_are_kept(choose: RangeFunction) -> None:
    x = torch.tensor([[0.5, 0.5, -0.25, 0.0]])
    spec = QuantSpec(bits=4, grid="kmeans")
    torch.testing.assert_close(quantize(x, *choose(x, spec), spec).dequantize(), x, rtol=0, atol=1e-7)


def test_kmeans_codes_mean_nothing_without_their_levels() -> None:
    spec = QuantSpec(bits=4, grid="kmeans")
    with pytest.raises(NumericsError, match="needs its codebook"):
        nearest_codes(torch.ones(2), torch.ones(2), None, spec)
