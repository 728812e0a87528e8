"""Every variant of quantize_groups equals its definition bit by bit, which obeys the laws of a quantizer."""

import pytest
import torch
from torch import Tensor

from bitwright.kernels import layouts, native, reference

POISON_CODE, POISON = 77, -7
# (K, group)
SHAPES = [(8, 8), (40, 8), (40, 40), (96, 32), (128, 128), (192, 64), (288, 96), (576, 64), (1536, 128), (120, 24)]
DTYPES = [torch.float32, torch.bfloat16]


def rows(k: int, m: int = 9) -> Tensor:
    """Rows of very different ranges, one of them on one side of zero only, one of them halfway between codes."""
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(k)) * torch.logspace(-3, 3, m)[:, None]
    x[1] = x[1].abs() + 0.1
    x[2] = torch.arange(k) % 8 - 3.5
    x[2, ::8] = 127.0
    return x


def quantize(
    variant: str,
    x_MK: Tensor,
    group: int,
    begin: int = 0,
    *,
    by_row: bool = False,
    shift_K: Tensor | None = None,
    multiplier_K: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(codes, scale, sums) shaped like the reference's, poisoned wherever the kernel wrote nothing."""
    (m, k), module = x_MK.shape, native.load()
    stride, groups = module.code_stride(k), k // group
    codes = torch.full((m, stride), POISON_CODE, dtype=torch.int8)
    scale = torch.full((m, groups + 2), float(POISON))
    sums = torch.full((m, groups + 2), POISON, dtype=torch.int32)
    op = module.QuantizeGroups(
        x=x_MK.data_ptr(),
        bf16=x_MK.dtype == torch.bfloat16,
        x_stride=x_MK.stride(0),
        k=k,
        group=group,
        by_row=by_row,
        shift=0 if shift_K is None else shift_K.data_ptr(),
        multiplier=0 if multiplier_K is None else multiplier_K.data_ptr(),
        codes=codes.data_ptr(),
        code_stride=stride,
        scale=scale.data_ptr(),
        sum=sums.data_ptr(),
        group_stride=groups + 2,
    )
    module.quantize_groups(variant, op, begin, m)
    padded = k + -k % 64
    assert (codes[begin:, k:padded] == 0).all(), "the padding of a row is 0"
    assert (codes[begin:, padded:] == POISON_CODE).all(), "wrote past the padding of a row"
    assert (scale[:, groups:] == POISON).all()
    assert (sums[:, groups:] == POISON).all()
    return codes[:, :k], scale[:, :groups], sums[:, :groups]


def assert_same(found: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    assert torch.equal(found[0], want[0])
    torch.testing.assert_close(found[1], want[1], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found[2], want[2])


@pytest.mark.parametrize(("k", "group"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_variant_equals_definition(quantize_groups_variant: str, dtype: torch.dtype, k: int, group: int) -> None:
    x = rows(k).to(dtype)
    for by_row in (False, True):
        want = reference.quantize_groups(x, group, by_row=by_row)
        assert_same(quantize(quantize_groups_variant, x, group, by_row=by_row), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_be_strided_and_unaligned(quantize_groups_variant: str, dtype: torch.dtype) -> None:
    x = rows(103).to(dtype)[:, 1:97]
    assert_same(quantize(quantize_groups_variant, x, 24), reference.quantize_groups(x, 24))


def test_only_the_asked_rows_are_written(quantize_groups_variant: str) -> None:
    x = rows(64)
    codes, scale, sums = quantize(quantize_groups_variant, x, 32, begin=4)
    assert_same((codes[4:], scale[4:], sums[4:]), tuple(part[4:] for part in reference.quantize_groups(x, 32)))
    assert (codes[:4] == POISON_CODE).all()
    assert (scale[:4] == POISON).all()
    assert (sums[:4] == POISON).all()


@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [24, 31, 40, 47])
@pytest.mark.parametrize("dtype", DTYPES)
def test_group_that_is_not_finite_has_scale_nan(
    quantize_groups_variant: str, dtype: torch.dtype, place: int, bad: float
) -> None:
    x = rows(96).to(dtype)
    x[5, place] = bad
    found = quantize(quantize_groups_variant, x, 24)
    assert found[1].isnan().nonzero().tolist() == [[5, 1]]
    assert_same(found, reference.quantize_groups(x, 24))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("k", "group"), [(40, 8), (96, 24), (576, 96)])
def test_shift_and_multiplier_come_before_the_range(
    quantize_groups_variant: str, dtype: torch.dtype, k: int, group: int
) -> None:
    x, g = rows(k).to(dtype), torch.Generator().manual_seed(k + 1)
    x[8, 3] = 3e38
    changed = {"shift_K": torch.randn(k, generator=g), "multiplier_K": 1.0 / (torch.rand(k, generator=g) * 8 + 1e-3)}
    changed["multiplier_K"][3] = 10.0  # an overflow
    found = quantize(quantize_groups_variant, x, group, **changed)
    assert_same(found, reference.quantize_groups(x, group, **changed))
    assert found[1].isnan().nonzero().tolist() == [[8, 0]]


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, -3e-39, 1.2e-38, 3e38, -3e38])
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_groups_are_defined(quantize_groups_variant: str, dtype: torch.dtype, value: float) -> None:
    x = torch.full((2, 40), value, dtype=dtype)
    x[1, ::2] = 0.0
    found = quantize(quantize_groups_variant, x, 40)
    assert_same(found, reference.quantize_groups(x, 40))
    assert found[1].isfinite().all()
    assert (1 / found[1]).isfinite().all()


def test_error_is_at_most_half_a_step_and_zero_is_exact() -> None:
    x = rows(192)
    x[:, 17] = 0.0
    codes, scale, sums = reference.quantize_groups(x, 64)
    step = scale.repeat_interleave(64, dim=1)
    assert ((codes * step.double() - x).abs() <= step / 2 * (1 + 1e-5)).all()
    assert (codes[:, 17] == 0).all()
    assert codes.abs().amax() == 127
    assert torch.equal(sums, codes.int().view(9, 3, 64).sum(dim=2, dtype=torch.int32))


def test_a_group_of_the_input_divides_that_of_the_weight() -> None:
    sizes = [32, 64, 96, 128, 256, 576, 1536, 4100, 8, 136]
    assert [layouts.input_group_w4a8(size) for size in sizes] == [32, 64, 96, 128, 128, 96, 128, None, 8, 8]
