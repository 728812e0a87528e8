"""Laws of the uniform grid."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor

from bitwright.errors import NumericsError
from bitwright.numerics import QTensor, QuantSpec, fake_quantize, quantize, scale_and_zero_point
from bitwright.numerics.grids import grouped
from bitwright.numerics.ranges import min_max

BITS = (8, 4, 3, 2)
SPECS = [
    QuantSpec(bits=bits, symmetric=symmetric, **granularity)
    for bits in BITS
    for symmetric in (True, False)
    for granularity in ({}, {"group_size": 4}, {"per_tensor": True})
] + [QuantSpec(full_range=True), QuantSpec(bits=4, full_range=False)]

specs = st.sampled_from(SPECS)
# Every float32 magnitude from the subnormals up to where one grid step more would overflow.
matrices = npst.arrays(np.float32, (2, 8), elements=st.floats(-(2.0**126), 2.0**126, width=32)).map(torch.from_numpy)


def full_range_grid(x: Tensor, spec: QuantSpec, **options: Any) -> QTensor:
    return quantize(x, *min_max(x, spec, **options), spec)


def error_in_steps(x: Tensor, q: QTensor) -> Tensor:
    """|x − dequantize(q)| / scale, exact to 1e-12."""
    zero = 0 if q.zero_point_NG is None else q.zero_point_NG[..., None].double()
    steps = grouped(q.codes_NK.double(), q.spec) - zero
    return (grouped(x.double(), q.spec) / q.scale_NG[..., None].double() - steps).abs()


@given(matrices, specs)
def test_in_range_values_move_by_at_most_half_a_step(x: Tensor, spec: QuantSpec) -> None:
    # float32 division is off by 2⁻²⁴ relative, of up to 255 steps.
    assert error_in_steps(x, full_range_grid(x, spec)).max() <= 0.5 + 256 * 2**-24


@given(matrices, specs, st.sampled_from([torch.float16, torch.bfloat16]))
def test_out_of_range_values_take_the_end_codes(x: Tensor, spec: QuantSpec, dtype: torch.dtype) -> None:
    """A rounded scale may put the extremes out of range, and a range may be chosen too narrow."""
    x = x.clamp(-1e4, 1e4)
    scale, zero = min_max(x, spec, dtype=dtype)
    q = quantize(4 * x, scale, zero, spec)
    steps = grouped(4 * x.double(), spec) / scale[..., None].double() + (
        0 if zero is None else zero[..., None].double()
    )
    codes = grouped(q.codes_NK.float(), spec)
    assert (codes[steps > spec.code_max + 0.51] == spec.code_max).all()
    assert (codes[steps < spec.code_min - 0.51] == spec.code_min).all()


@given(matrices, specs)
def test_zero_maps_to_zero(x: Tensor, spec: QuantSpec) -> None:
    x[:, ::2] = 0
    assert (fake_quantize(x, *min_max(x, spec), spec)[:, ::2] == 0).all()


@given(matrices, specs)
def test_quantizing_twice_changes_nothing(x: Tensor, spec: QuantSpec) -> None:
    q = full_range_grid(x.clamp(-1e37, 1e37), spec)
    again = quantize(q.dequantize(), q.scale_NG, q.zero_point_NG, spec)
    assert torch.equal(again.codes_NK, q.codes_NK)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_all_zero_gets_scale_one(spec: QuantSpec) -> None:
    q = full_range_grid(torch.zeros(2, 8), spec)
    assert (q.scale_NG == 1).all()
    assert (q.dequantize() == 0).all()


@pytest.mark.parametrize("value", [-3.7, 1e-42, 5e37])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_constant_is_an_end_of_its_own_range(spec: QuantSpec, value: float) -> None:
    x = torch.full((2, 8), value)
    assert error_in_steps(x, full_range_grid(x, spec)).max() <= 0.5 + 1e-6
    assert (full_range_grid(x[:1, :4], spec).codes_NK == full_range_grid(x, spec).codes_NK[0, 0]).all()


def test_a_single_value() -> None:
    assert fake_quantize(torch.tensor([[127.0]]), torch.tensor([[1.0]]), None, QuantSpec()) == 127


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scales_can_be_inverted_however_small_the_values(dtype: torch.dtype) -> None:
    """Row quantizers multiply by the float32 reciprocal."""
    for spec in SPECS:
        scale, _ = scale_and_zero_point(torch.tensor([[-1e-44]]), torch.tensor([[1e-45]]), spec, dtype)
        assert scale.dtype == dtype
        assert torch.isfinite(1 / scale.float()).all()


def test_small_rows_keep_their_codes_with_float16_scales() -> None:
    """Their scales are subnormal: absmax 0.002 / 127 = 1.6e-5 is below float16's smallest normal number."""
    x = torch.linspace(-0.002, 0.002, 512)[None]
    q = full_range_grid(x, QuantSpec(), dtype=torch.float16)
    assert torch.bincount(q.codes_NK[0].int() + 127).count_nonzero() > 250


@given(matrices, specs)
def test_codes_are_chosen_for_the_scale_as_stored(x: Tensor, spec: QuantSpec) -> None:
    x = x.clamp(-1e4, 1e4)
    q = full_range_grid(x, spec, dtype=torch.float16)
    assert q.scale_NG.dtype == torch.float16
    in_float32 = quantize(x, q.scale_NG.float(), q.zero_point_NG, spec)
    assert torch.equal(q.codes_NK, in_float32.codes_NK)


@pytest.mark.parametrize("bits", BITS)
def test_zero_points_are_chosen_for_the_scale_as_stored(bits: int) -> None:
    """The lowest code then stands within half a step of the lower end, unless the rounded scale cannot reach it."""
    spec, g = QuantSpec(bits=bits, symmetric=False), torch.Generator().manual_seed(bits)
    lo, hi = -torch.rand(500, 1, generator=g), torch.rand(500, 1, generator=g)
    scale, zero = scale_and_zero_point(lo, hi, spec, torch.bfloat16)
    assert zero is not None
    steps_off = (spec.code_min - zero.double()) - lo.double() / scale.double()
    assert (steps_off.abs() <= 0.5)[zero < spec.code_max].all()


def test_a_scale_that_overflows_its_dtype_is_refused() -> None:
    with pytest.raises(NumericsError, match="store scales in float32"):
        full_range_grid(torch.full((1, 4), 1e8), QuantSpec(), dtype=torch.float16)


@pytest.mark.parametrize("spec", [QuantSpec(bits=2), QuantSpec(bits=2, symmetric=False)], ids=str)
def test_the_widest_float32_range_does_not_overflow(spec: QuantSpec) -> None:
    largest = torch.finfo(torch.float32).max
    scale, _ = scale_and_zero_point(torch.tensor([[-largest]]), torch.tensor([[largest]]), spec)
    assert torch.isfinite(scale).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_dtype_rounds_like_its_value_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    scale, zero = min_max(x, SPECS[0])
    assert torch.equal(quantize(x, scale, zero, SPECS[0]).codes_NK, quantize(x.float(), scale, zero, SPECS[0]).codes_NK)


def test_arguments_are_left_alone() -> None:
    x = torch.randn(2, 8)
    scale, zero = min_max(x, QuantSpec(symmetric=False))
    assert zero is not None
    before = x.clone(), scale.clone(), zero.clone()
    fake_quantize(x, scale, zero, QuantSpec(symmetric=False))
    assert all(torch.equal(a, b) for a, b in zip(before, (x, scale, zero), strict=True))


def test_nan_and_infinity_are_counted_and_refused() -> None:
    x = torch.ones(2, 8)
    x[0, 3], x[1, 1] = torch.nan, torch.inf
    with pytest.raises(NumericsError, match="2 of 16 are NaN or infinite"):
        quantize(x, torch.ones(2, 1), None, QuantSpec())
    with pytest.raises(NumericsError, match="1 of 2 are NaN or infinite"):
        scale_and_zero_point(torch.tensor([0.0, -torch.inf]), torch.ones(2), QuantSpec())


def test_a_range_upside_down_is_refused() -> None:
    with pytest.raises(NumericsError, match="1 of 2 ranges"):
        scale_and_zero_point(torch.tensor([0.0, 2.0]), torch.ones(2), QuantSpec())


@pytest.mark.parametrize("bad", [torch.ones(8), torch.ones(0, 8), torch.ones(2, 8, dtype=torch.int32)])
def test_only_non_empty_float_matrices(bad: Tensor) -> None:
    with pytest.raises(NumericsError, match="non-empty floating matrix"):
        quantize(bad, torch.ones(2, 1), None, QuantSpec())


def test_shapes_must_fit() -> None:
    with pytest.raises(NumericsError, match="K = 8 is not a multiple of group_size = 3"):
        quantize(torch.ones(2, 8), torch.ones(2, 1), None, QuantSpec(group_size=3))
    with pytest.raises(NumericsError, match=r"needs scales of shape \(2, 1\)"):
        quantize(torch.ones(2, 8), torch.ones(1, 1), None, QuantSpec())
