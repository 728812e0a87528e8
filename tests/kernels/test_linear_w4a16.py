"""Every variant of linear_w4a16: as good as float32 sums in torch, and the same bits however the work is cut."""

from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu as torch_gelu

from bitwright.kernels import native, reference
from tests.kernels.wna8 import assert_gelu_is_as_good_as_in_torch, assert_only_the_asked_are_written, multiplied

EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True, slots=True)
class Problem:
    """Rows; codes of a weight, its scales, its zero points, minima or levels, or none of them; a bias."""

    x_MK: Tensor
    weight_NK: Tensor
    scale_NG: Tensor
    bias_N: Tensor
    bits: int
    group: int  # K values whose products are summed before the scale
    zero_NG: Tensor | None = None
    minimum_NG: Tensor | None = None
    levels: Tensor | None = None

    @classmethod
    def of(
        cls, m: int, n: int, k: int, group: int, per: int = 1, *, bits: int = 4, offset: str = "", bf16: bool = True
    ) -> "Problem":
        """offset: zero, minimum or levels, or nothing."""
        g = torch.Generator().manual_seed(m * 1_000_000 + n * 1000 + k + group)
        shape = (n, k // group // per)
        scale_NG = torch.rand(shape, generator=g) * 0.1 + 0.01
        scale_NG = scale_NG.bfloat16().float() if bf16 else scale_NG
        zero = torch.randint(0, 1 << bits, shape, dtype=torch.uint8, generator=g)
        levels = torch.randn(1 << bits, generator=g).bfloat16()
        return cls(
            torch.randn(m, k, generator=g), torch.randint(0, 1 << bits, (n, k), dtype=torch.uint8, generator=g),
            scale_NG, torch.randn(n, generator=g), bits, group, zero if offset == "zero" else None,
            -scale_NG.roll(1, dims=0) * 4 if offset == "minimum" else None, levels if offset == "levels" else None,
        )  # fmt: skip

    def wanted(self, *, gelu: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
        middle = 1 << self.bits - 1 if self.minimum_NG is None else 0
        zero = middle if self.zero_NG is None else self.zero_NG
        minimum = None if self.minimum_NG is None else self.minimum_NG.to(dtype)
        return reference.linear_w4a16(
            self.x_MK, self.weight_NK, self.scale_NG.to(dtype), zero, self.bias_N.to(dtype), minimum_NG=minimum,
            levels=self.levels, gelu=gelu,
        )  # fmt: skip

    def tolerance(self) -> float:
        """Sums of f32 in any order err by less, and so do torch's own."""
        magnitude = replace(self, x_MK=self.x_MK.abs(), zero_NG=None, minimum_NG=self.scale_NG * (2 << self.bits))
        return 8 * EPS * float(magnitude.wanted().nan_to_num().abs().max())

    def rows(self, rows: slice) -> "Problem":
        return replace(self, x_MK=self.x_MK[rows])

    def in_four_bits(self) -> "Problem":
        """The same codes, from the middle of 16 on; or the same, where that is not what they are relative to."""
        middle = self.minimum_NG is None and self.levels is None
        up = 8 - (1 << self.bits - 1) if middle else 0
        zero_NG = None if self.zero_NG is None else self.zero_NG + up
        levels = None if self.levels is None else self.levels.repeat(16 >> self.bits)
        return replace(self, weight_NK=self.weight_NK + up, zero_NG=zero_NG, levels=levels, bits=4)


def prepare(variant: str, x_MK: Tensor, group: int, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """Rows bfloat16 (M, K + 3), sums float32 (M, G + 1); NaN where the operator wrote nothing."""
    (m, k), module = x_MK.shape, native.load()
    out = torch.full((m * (k + 3) + 1,), torch.nan, dtype=torch.bfloat16)[1:].view(m, k + 3)
    sums = torch.full((m, k // group + 1), torch.nan)
    op = module.PrepareW4A16(
        x=x_MK.data_ptr(),
        bf16=x_MK.dtype == torch.bfloat16,
        x_stride=x_MK.stride(0),
        k=k,
        group=group,
        rows=out.data_ptr(),
        row_stride=k + 3,
        sum=sums.data_ptr(),
        group_stride=k // group + 1,
    )
    module.prepare_w4a16(variant, op, *rows.indices(m)[:2])
    return out, sums


def multiply(variant: str, p: Problem, **asked: Any) -> Tensor:
    """asked: as `multiplied` takes it."""
    x, sums = prepare(variant, p.x_MK, p.group)
    of_rows = {
        "rows": x.data_ptr(),
        "row_stride": x.stride(0),
        "sum_m": sums.data_ptr(),
        "group_stride": sums.stride(0),
        "levels": 0 if p.levels is None else p.levels.data_ptr(),
    }
    return multiplied("W4A16", variant, p, of_rows, m=len(x), group=p.group, **asked)


def random_problem(random: Random, bits: int, number: int) -> Problem:
    """Of any offset and type of scale, with one row to 70."""
    word = 8 if bits == 4 else 32
    group, per = word * random.randint(1, 128 // word), random.randint(1, 3)
    m, n = random.choice((1, 2, 3, random.randint(4, 9), random.randint(10, 70))), random.choice((1, 16, 17, 33, 50))
    k, offset = group * per * random.randint(1, 3), ("", "zero", "minimum", "levels")[number % 4]
    return Problem.of(m, n, k, group, per, bits=bits, offset=offset, bf16=number % 3 > 0)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_as_good_as_float32_sums_in_torch(linear_w4a16_variant: str, bits: int) -> None:
    """And of widened values the same bits as the definition; codes in their own bits give what they give in four."""
    random = Random(bits)
    for number in range(24):
        p = random_problem(random, bits, number)
        y = multiply(linear_w4a16_variant, p)
        assert (y - p.wanted()).abs().max() <= p.tolerance()
        if linear_w4a16_variant not in ("avx512bf16", "amx"):  # whose products are not fused
            assert torch.equal(y, multiply("scalar", p))
        assert torch.equal(y, multiply(linear_w4a16_variant, p.in_four_bits()))
        assert torch.equal(y.bfloat16(), multiply(linear_w4a16_variant, p, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("n", "k", "group", "per"), [(1, 8, 8, 1), (17, 24, 24, 1), (33, 576, 96, 6), (16, 1152, 64, 1)]
)
def test_odd_shapes(linear_w4a16_variant: str, n: int, k: int, group: int, per: int) -> None:
    for m, offset in ((1, "zero"), (5, ""), (9, "minimum"), (70, "levels")):
        p = Problem.of(m, n, k, group, per, offset=offset)
        assert (multiply(linear_w4a16_variant, p) - p.wanted()).abs().max() <= p.tolerance()


@pytest.mark.parametrize("offset", ["", "zero", "minimum"])
def test_a_row_does_not_depend_on_what_is_computed_with_it(linear_w4a16_variant: str, offset: str) -> None:
    p = Problem.of(40, 100, 160, 32, offset=offset)
    whole = multiply(linear_w4a16_variant, p)
    for count in range(1, 40):
        assert torch.equal(multiply(linear_w4a16_variant, p.rows(slice(count))), whole[:count])
    assert_only_the_asked_are_written(
        lambda rows, blocks: multiply(linear_w4a16_variant, p, rows=rows, blocks=blocks), whole
    )


def test_output_may_be_unaligned(linear_w4a16_variant: str) -> None:
    for m, dtype in ((1, torch.float32), (6, torch.bfloat16), (11, torch.float32)):
        p = Problem.of(m, 50, 96, 32)
        aligned = multiply(linear_w4a16_variant, p, dtype=dtype)
        assert torch.equal(multiply(linear_w4a16_variant, p, dtype=dtype, offset=3), aligned)


@pytest.mark.parametrize("offset", ["", "zero", "minimum"])
@pytest.mark.parametrize("m", [1, 6, 11])
def test_what_is_not_finite_stays_in_its_row(linear_w4a16_variant: str, m: int, offset: str) -> None:
    p = Problem.of(m, 50, 96, 32, offset=offset)
    want = multiply(linear_w4a16_variant, p)
    for value in (torch.nan, torch.inf):
        p.x_MK[m // 2, 40] = value
        y = multiply(linear_w4a16_variant, p)
        others = torch.arange(m) != m // 2
        assert torch.equal(y[others], want[others])
        assert not y[m // 2].isfinite().any()
        assert y[m // 2].isnan().all() or value == torch.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gelu_is_as_good_as_in_torch(linear_w4a16_variant: str, dtype: torch.dtype) -> None:
    for m in (1, 8, 11):
        p = Problem.of(m, 50, 96, 32)
        before, found = multiply(linear_w4a16_variant, p), multiply(linear_w4a16_variant, p, gelu=True, dtype=dtype)
        assert_gelu_is_as_good_as_in_torch(found, torch_gelu(before).to(dtype), torch_gelu(before.double()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_prepared_the_same_by_every_variant(linear_w4a16_variant: str, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(1)
    for k, group in ((8, 8), (72, 24), (576, 64), (256, 128)):
        x = (torch.randn(5, k + 5, generator=g) * torch.logspace(-38, 30, k + 5)).to(dtype)[:, 3 : k + 3]
        x[2, k // 2], x[3, 1] = torch.nan, torch.inf
        rows, sums = prepare(linear_w4a16_variant, x, group, slice(1, 4))
        runs = x[1:4].bfloat16().reshape(3, -1, 4)[..., [0, 2, 1, 3]].flatten(1)
        assert torch.equal(rows[1:4, :k].nan_to_num(7), runs.nan_to_num(7))
        want = prepare("scalar", x, group, slice(1, 4))[1]
        assert torch.equal(sums[1:4, :-1].nan_to_num(7), want[1:4, :-1].nan_to_num(7))
        exact = x[1].bfloat16().double().view(-1, group)
        assert ((sums[1, :-1] - exact.sum(dim=1)).abs() <= 8 * EPS * exact.abs().sum(dim=1)).all()
        for beyond in (rows[[0, 4]], rows[:, k:], sums[[0, 4]], sums[:, -1]):
            assert beyond.isnan().all()


def test_the_definition_is_the_product_of_what_the_codes_stand_for() -> None:
    for offset in ("", "zero", "minimum", "levels"):
        p = Problem.of(9, 31, 192, 32, 2, offset=offset)
        scale, zero = (x if x is None else x.double().repeat_interleave(64, dim=1) for x in (p.scale_NG, p.zero_NG))
        codes = p.weight_NK.double() if p.levels is None else p.levels.double()[p.weight_NK.int()]
        w = (codes - (zero if zero is not None else 0 if offset in ("minimum", "levels") else 8)) * scale
        if p.minimum_NG is not None:
            w = w + p.minimum_NG.double().repeat_interleave(64, dim=1)
        want = p.x_MK.bfloat16().double() @ w.T + p.bias_N
        torch.testing.assert_close(p.wanted().double(), want, rtol=1e-5, atol=1e-4)
