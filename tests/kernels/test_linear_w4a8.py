"""Every variant of linear_w4a8 equals the reference bit by bit, whatever rows and columns are computed at once."""

from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu as torch_gelu

from bitwright.kernels import native, reference
from tests.kernels.wna8 import assert_gelu_is_as_good_as_in_torch, assert_only_the_asked_are_written, multiplied

# (M, N, K, group of the input, such groups that share a scale of the weight)
SHAPES = [
    (1, 1, 8, 8, 1), (2, 15, 40, 40, 1), (3, 17, 40, 8, 5), (4, 33, 96, 32, 1), (5, 33, 96, 96, 1), (6, 48, 192, 64, 3),
    (7, 31, 576, 64, 1), (8, 47, 576, 96, 6), (9, 20, 1536, 128, 12), (13, 40, 2048, 32, 4), (17, 16, 5632, 128, 2),
    (20, 65, 288, 72, 2), (40, 50, 256, 32, 1),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Problem:
    """Codes of rows with their scales and sums; codes of a weight, its scales, its zero points or None; a bias."""

    codes_MK: Tensor
    scale_MG: Tensor
    sum_MG: Tensor
    weight_NK: Tensor
    scale_NG: Tensor
    zero_NG: Tensor | None
    bias_N: Tensor
    bits: int
    minimum_NG: Tensor | None = None
    levels: Tensor | None = None

    @classmethod
    def of(
        cls, m: int, n: int, k: int, group: int, per: int = 1, *, bits: int = 4, symmetric: bool = True,
        bf16: bool = True,
    ) -> "Problem":  # fmt: skip
        g = torch.Generator().manual_seed(m * 1_000_000 + n * 1000 + k + group)
        codes, scale, sums = reference.quantize_groups(torch.randn(m, k, generator=g), group)
        shape = (n, k // group // per)
        scale_NG = torch.rand(shape, generator=g) * 0.1 + 0.01
        zero = torch.randint(0, 1 << bits, shape, dtype=torch.uint8, generator=g)
        weight = torch.randint(0, 1 << bits, (n, k), dtype=torch.uint8, generator=g)
        return cls(
            codes, scale, sums, weight, scale_NG.bfloat16().float() if bf16 else scale_NG, None if symmetric else zero,
            torch.randn(n, generator=g), bits,
        )  # fmt: skip

    def wanted(self, *, gelu: bool = False) -> Tensor:
        middle = 1 << self.bits - 1 if self.minimum_NG is None and self.levels is None else 0
        if self.bits == 1:  # which stands for −1 or 1
            return self.in_four_bits().wanted(gelu=gelu)
        return reference.linear_w4a8(
            self.codes_MK, self.scale_MG, self.weight_NK if self.levels is None else self.levels[self.weight_NK.int()],
            self.scale_NG, middle if self.zero_NG is None else self.zero_NG, self.bias_N, minimum_NG=self.minimum_NG,
            gelu=gelu,
        )  # fmt: skip

    def rows(self, count: int) -> "Problem":
        """The same, of the first rows alone."""
        return replace(self, codes_MK=self.codes_MK[:count], scale_MG=self.scale_MG[:count], sum_MG=self.sum_MG[:count])

    def with_minima(self) -> "Problem":
        """Minima for zero points, as wide as the scales are."""
        minimum_NG = -self.scale_NG.roll(1, dims=0) * 4
        return replace(self, zero_NG=None, minimum_NG=minimum_NG)

    def with_levels(self, levels: Tensor) -> "Problem":
        """Codes that index levels, int8 (16,)."""
        return replace(self, zero_NG=None, minimum_NG=None, levels=levels)

    def in_four_bits(self) -> "Problem":
        """The same codes, from the middle of 16 on."""
        if self.bits == 1:
            return replace(self, weight_NK=2 * self.weight_NK + 7, bits=4)
        up = 8 - (1 << self.bits - 1)
        zero_NG = None if self.zero_NG is None else self.zero_NG + up
        return replace(self, weight_NK=self.weight_NK + up, zero_NG=zero_NG, bits=4)


def multiply(variant: str, p: Problem, *, offset: int = 0, **asked: Any) -> Tensor:
    """asked: as `multiplied` takes it. offset: of the codes of rows, too."""
    (m, k), module, groups = p.codes_MK.shape, native.load(), p.scale_MG.shape[1]
    codes = torch.full((m, module.code_stride(k) + offset), 77, dtype=torch.int8)
    codes[:, offset : offset + k] = p.codes_MK
    scale_m, sum_m = torch.full((m, groups + 1), torch.nan), torch.full((m, groups + 1), 2**30, dtype=torch.int32)
    scale_m[:, :groups], sum_m[:, :groups] = p.scale_MG, p.sum_MG
    of_rows = {
        "codes": codes.data_ptr() + offset,
        "code_stride": codes.stride(0),
        "scale_m": scale_m.data_ptr(),
        "sum_m": sum_m.data_ptr(),
        "group_stride": groups + 1,
    }
    return multiplied(
        "W4A8", variant, p, of_rows, m=m, group=k // groups, levels=p.levels, offset=offset, **asked
    )  # fmt: skip


@pytest.mark.parametrize(("m", "n", "k", "group", "per"), SHAPES)
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "f32"])
def test_variant_equals_definition(
    linear_w4a8_variant: str, m: int, n: int, k: int, group: int, per: int, symmetric: bool, bf16: bool
) -> None:
    p = Problem.of(m, n, k, group, per, symmetric=symmetric, bf16=bf16)
    assert torch.equal(multiply(linear_w4a8_variant, p), p.wanted())
    assert torch.equal(multiply(linear_w4a8_variant, p, dtype=torch.bfloat16), p.wanted().bfloat16())


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_codes_in_their_own_bits_give_what_they_give_in_four(linear_w4a8_variant: str, bits: int) -> None:
    random = Random(bits)
    for number in range(24):
        m, n, group, per = random.randint(1, 20), random.randint(1, 70), 32 * random.randint(1, 4), random.randint(1, 3)
        k, symmetric, bf16 = group * per * random.randint(1, 3), number % 2 == 0 or bits == 1, number % 3 > 0
        p = Problem.of(m, n, k, group, per, bits=bits, symmetric=symmetric, bf16=bf16)
        y = multiply(linear_w4a8_variant, p)
        assert torch.equal(y, multiply(linear_w4a8_variant, p.in_four_bits()))
        assert torch.equal(y, p.wanted())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_minima_are_added_to_each_group(linear_w4a8_variant: str, bits: int) -> None:
    random = Random(bits)
    for number in range(16):
        m, n, group, per = random.randint(1, 20), random.randint(1, 70), 32 * random.randint(1, 4), random.randint(1, 3)
        k = group * per * random.randint(1, 3)
        p = Problem.of(m, n, k, group, per, bits=bits, bf16=number % 3 > 0).with_minima()
        y = multiply(linear_w4a8_variant, p)
        assert torch.equal(y, p.wanted())
        first = random.randint(0, m - 1)
        assert torch.equal(multiply(linear_w4a8_variant, p, rows=slice(first, m))[first:], y[first:])


def test_codes_index_levels(linear_w4a8_variant: str) -> None:
    """Of any order and sign, up to the largest; in a table at any address."""
    random, g = Random(7), torch.Generator().manual_seed(7)
    for number in range(24):
        m, n, group, per = random.randint(1, 20), random.randint(1, 70), 8 * random.randint(1, 16), random.randint(1, 3)
        levels = torch.randint(-128, 128, (17,), dtype=torch.int8, generator=g)[number % 2 :][:16]
        p = Problem.of(m, n, group * per * random.randint(1, 3), group, per, bf16=number % 3 > 0).with_levels(levels)
        y = multiply(linear_w4a8_variant, p)
        assert torch.equal(y, p.wanted())
        first = random.randint(0, m - 1)
        assert torch.equal(multiply(linear_w4a8_variant, p, rows=slice(first, m))[first:], y[first:])
    whole = Problem.of(40, 72, 96, 32)
    levels = torch.arange(-8, 8, dtype=torch.int8)
    assert torch.equal(multiply(linear_w4a8_variant, whole.with_levels(levels)), whole.wanted())


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_a_row_does_not_depend_on_how_many_there_are(linear_w4a8_variant: str, symmetric: bool) -> None:
    p = Problem.of(40, 72, 96, 32, symmetric=symmetric)
    want = p.wanted()
    for count in range(1, 41):
        assert torch.equal(multiply(linear_w4a8_variant, p.rows(count)), want[:count])


@pytest.mark.parametrize("gelu", [True, False])
def test_subnormals_do_not_depend_on_how_many_rows_there_are(linear_w4a8_variant: str, gelu: bool) -> None:
    """Some instructions make 0 of them."""
    p = Problem.of(40, 72, 96, 32)
    p.scale_NG.mul_(1e-38)
    p.bias_N.mul_(0)
    alone = multiply(linear_w4a8_variant, p.rows(1), gelu=gelu, dtype=torch.bfloat16)
    assert alone.count_nonzero() > 36
    assert torch.equal(multiply(linear_w4a8_variant, p, gelu=gelu, dtype=torch.bfloat16)[:1], alone)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_largest_codes_do_not_overflow(linear_w4a8_variant: str, symmetric: bool, bits: int) -> None:
    """128 products of 127 and the largest code, of either sign, and with the largest zero point."""
    p = Problem.of(4, 16, 256, 128, bits=bits, symmetric=symmetric)
    if p.zero_NG is not None:
        p.zero_NG[::2] = 128
    p.codes_MK[:] = torch.tensor([[127], [-127], [127], [0]], dtype=torch.int8)
    p.codes_MK[2, ::2] = -127
    p.sum_MG[:] = p.codes_MK.int().view(4, 2, 128).sum(dim=2)
    p.weight_NK[:8], p.weight_NK[8:] = (1 << bits) - 1, 0
    assert torch.equal(multiply(linear_w4a8_variant, p), p.wanted())
    if bits == 4:
        p = p.with_levels(torch.tensor([-128, *range(1, 15), 127], dtype=torch.int8))
        assert torch.equal(multiply(linear_w4a8_variant, p), p.wanted())


def test_only_the_asked_rows_and_blocks_are_written(linear_w4a8_variant: str) -> None:
    p = Problem.of(40, 100, 96, 32)
    assert_only_the_asked_are_written(
        lambda rows, blocks: multiply(linear_w4a8_variant, p, rows=rows, blocks=blocks), p.wanted()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("m", [1, 6, 11])
def test_rows_and_output_may_be_unaligned(linear_w4a8_variant: str, m: int, dtype: torch.dtype) -> None:
    p = Problem.of(m, 50, 96, 32)
    assert torch.equal(multiply(linear_w4a8_variant, p, dtype=dtype, offset=3), p.wanted().to(dtype))


@pytest.mark.parametrize("m", [1, 6, 11])
def test_a_group_that_was_not_finite_makes_its_row_nan(linear_w4a8_variant: str, m: int) -> None:
    p = Problem.of(m, 50, 96, 32)
    p.scale_MG[m // 2, 1], p.codes_MK[m // 2, 32:64], p.sum_MG[m // 2, 1] = torch.nan, 0, 0
    y = multiply(linear_w4a8_variant, p)
    assert y[m // 2].isnan().all()
    assert y.isnan().sum() == 50


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("m", [1, 8, 11])
def test_gelu_is_as_good_as_in_torch(linear_w4a8_variant: str, m: int, dtype: torch.dtype) -> None:
    p = Problem.of(m, 50, 96, 32)
    want = torch_gelu(p.wanted().double())
    found = multiply(linear_w4a8_variant, p, gelu=True, dtype=dtype)
    assert_gelu_is_as_good_as_in_torch(found, p.wanted(gelu=True).to(dtype), want)


def test_the_definition_is_the_product_of_what_the_codes_stand_for() -> None:
    p = Problem.of(9, 31, 192, 32, 2, symmetric=False)
    a = p.codes_MK * p.scale_MG.double().repeat_interleave(32, dim=1)
    zero = p.zero_NG.double().repeat_interleave(64, dim=1)
    w = (p.weight_NK - zero) * p.scale_NG.double().repeat_interleave(64, dim=1)
    torch.testing.assert_close(p.wanted().double(), a @ w.T + p.bias_N, rtol=1e-5, atol=1e-4)
    p = p.with_minima()
    w = (p.weight_NK * p.scale_NG.double().repeat_interleave(64, dim=1)) + p.minimum_NG.repeat_interleave(64, dim=1)
    torch.testing.assert_close(p.wanted().double(), a @ w.T + p.bias_N, rtol=1e-5, atol=1e-4)
