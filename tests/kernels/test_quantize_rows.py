"""Every variant of quantize_rows equals its definition bit by bit, and the definition obeys the laws of a quantizer."""

import pytest
import torch

from bitwright.errors import KernelError
from bitwright.kernels import reference
from bitwright.numerics.schemes import SCHEMES
from bitwright.numerics.spec import QuantSpec

DYNAMIC = [SCHEMES["w8a8"].input, SCHEMES["w8a8_symmetric"].input]
STATIC = [SCHEMES["w8a8_static"].input, SCHEMES["w8a8_static_symmetric"].input]
SIZES = [1, 3, 7, 8, 15, 16, 17, 31, 33, 64, 100, 385]


def grid(spec):
    """The scale and zero point of a static spec."""
    if spec.dynamic:
        return None, None
    return torch.tensor([0.037]), None if spec.symmetric else torch.tensor([-11], dtype=torch.int8)


def rows(k, m=9):
    """Rows of very different ranges, one of them on one side of zero only, one of them halfway between codes."""
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(k)) * torch.logspace(-3, 3, m)[:, None]
    x[1] = x[1].abs() + 0.1
    x[2] = -x[2].abs()
    x[3] = torch.arange(k) - 0.5
    return x


def assert_same(found, want):
    assert torch.equal(found[0], want[0])
    torch.testing.assert_close(found[1], want[1], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found[2], want[2])


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("spec", DYNAMIC + STATIC)
def test_variant_equals_definition(quantize, spec, k):
    x = rows(k)
    assert_same(quantize(x, spec, *grid(spec)), reference.quantize_rows(x, spec, *grid(spec)))


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("spec", DYNAMIC + STATIC)
def test_bf16_rows_are_their_float32_values(quantize, spec, k):
    x = rows(k).bfloat16()
    x[6, k // 2] = torch.nan
    assert_same(quantize(x, spec, *grid(spec)), reference.quantize_rows(x, spec, *grid(spec)))


@pytest.mark.parametrize("spec", DYNAMIC + STATIC)
def test_rows_may_be_strided_and_unaligned(quantize, spec):
    wide = rows(103)
    x = wide[:, 1:98]
    assert x.data_ptr() % 16 == 4
    assert x.stride(0) == 103
    assert_same(quantize(x, spec, *grid(spec)), reference.quantize_rows(x, spec, *grid(spec)))


@pytest.mark.parametrize("spec", DYNAMIC + STATIC)
def test_only_the_asked_rows_are_written(quantize, spec):
    x = rows(40)
    codes, scale, zero = quantize(x, spec, *grid(spec), begin=4)
    want = reference.quantize_rows(x, spec, *grid(spec))
    assert_same((codes[4:], scale[4:], zero[4:]), tuple(part[4:] for part in want))
    assert (scale[:4] == -7.0).all()
    assert (zero[:4] == 1000).all()
    assert (codes[:4] == 77 - 128).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 16, 31, 36])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", DYNAMIC + STATIC)
def test_row_that_is_not_finite_has_scale_nan(quantize, spec, dtype, place, bad):
    x = rows(37).to(dtype)
    x[5, place] = bad
    found = quantize(x, spec, *grid(spec))
    assert found[1][5].isnan()
    assert found[1].isnan().sum() == 1
    assert_same(found, reference.quantize_rows(x, spec, *grid(spec)))


@pytest.mark.parametrize("bits", [0x7F81, 0x7FFF, -0x7F, -1])  # either sign, least and largest payload
@pytest.mark.parametrize("spec", DYNAMIC + STATIC)
def test_every_nan_of_bf16_is_seen(quantize, spec, bits):
    x = rows(37).bfloat16()
    x.view(torch.int16)[5, 11] = bits
    assert x.isnan().sum() == 1
    assert_same(quantize(x, spec, *grid(spec)), reference.quantize_rows(x, spec, *grid(spec)))


def transform(k):
    """A shift and a multiplier per feature, of very different sizes."""
    g = torch.Generator().manual_seed(k + 1)
    return {"shift_K": torch.randn(k, generator=g), "multiplier_K": 1.0 / (torch.rand(k, generator=g) * 8 + 1e-3)}


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", DYNAMIC + STATIC)
def test_shift_and_multiplier_come_before_the_range(quantize, spec, dtype, k):
    x = rows(k).to(dtype)
    x[6, k // 2] = torch.nan
    found = quantize(x, spec, *grid(spec), **transform(k))
    assert_same(found, reference.quantize_rows(x, spec, *grid(spec), **transform(k)))
    by_hand = (x.float() - transform(k)["shift_K"]) * transform(k)["multiplier_K"]
    assert_same(found, reference.quantize_rows(by_hand, spec, *grid(spec)))


@pytest.mark.parametrize("spec", DYNAMIC + STATIC)
def test_identity_transform_changes_nothing(quantize, spec):
    x = rows(100)
    identity = {"shift_K": torch.zeros(100), "multiplier_K": torch.ones(100)}
    assert_same(quantize(x, spec, *grid(spec), **identity), quantize(x, spec, *grid(spec)))


@pytest.mark.parametrize("spec", DYNAMIC + STATIC)
def test_row_that_a_multiplier_takes_out_of_range_has_scale_nan(quantize, spec):
    x = torch.ones(2, 37)
    x[1, 5] = 1e38
    changed = {"shift_K": torch.zeros(37), "multiplier_K": torch.full((37,), 10.0)}
    found = quantize(x, spec, *grid(spec), **changed)
    assert found[1].isnan().flatten().tolist() == [False, True]
    assert_same(found, reference.quantize_rows(x, spec, *grid(spec), **changed))


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, -3e-39, 1.2e-38, 3e38, -3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", DYNAMIC + STATIC)
def test_extreme_rows_are_defined(quantize, spec, dtype, value):
    x = torch.full((2, 20), value, dtype=dtype)
    x[1, ::2] = 0.0
    found = quantize(x, spec, *grid(spec))
    assert_same(found, reference.quantize_rows(x, spec, *grid(spec)))
    assert found[1].isfinite().all()
    assert (1 / found[1]).isfinite().all()


def test_range_that_overflows_is_nan(quantize):
    x = torch.tensor([[3e38, -3e38]])
    assert quantize(x, DYNAMIC[0])[1].isnan().all()
    assert quantize(x, DYNAMIC[1])[1].isfinite().all()


@pytest.mark.parametrize("spec", DYNAMIC)
def test_error_is_at_most_half_a_step_and_zero_is_exact(spec):
    x = rows(200)
    x[:, 17] = 0.0
    codes, scale, zero = reference.quantize_rows(x, spec)
    back = (codes.double() - zero) * scale
    # An asymmetric grid's zero point is rounded, which can push one end of the range out by half a step more.
    halves = 1 if spec.symmetric else 2
    assert ((back - x).abs() <= halves * scale / 2 * (1 + 1e-5)).all()
    assert (back[:, 17] == 0).all()


@pytest.mark.parametrize("spec", DYNAMIC)
def test_row_of_zeros_has_scale_one(spec):
    codes, scale, zero = reference.quantize_rows(torch.zeros(3, 8), spec)
    assert (scale == 1).all()
    assert ((codes - zero) == 0).all()


def test_inputs_have_one_scale_per_row_or_tensor():
    x = torch.ones(2, 8)
    for spec in (
        QuantSpec(group_size=4, dynamic=True),
        QuantSpec(dynamic=True, per_tensor=True),
        QuantSpec(dynamic=False),
    ):
        with pytest.raises(KernelError, match="dynamic scale per row or a static one per tensor"):
            reference.quantize_rows(x, spec)
    with pytest.raises(KernelError, match="needs a scale"):
        reference.quantize_rows(x, STATIC[0])
