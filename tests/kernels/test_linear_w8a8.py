"""Every variant of linear_w8a8 against its definition: integers exactly, floats as well as torch does."""

import pytest
import torch
from torch.nn.functional import gelu as torch_gelu

from bitwright.kernels import reference
from bitwright.kernels.input_grid import InputGrid
from bitwright.numerics.schemes import SCHEMES
from tests.kernels.conftest import POISON_CODE

SIZES = [1, 3, 15, 16, 17, 31, 64, 100, 385]
# Each size in each of the three places, the other two awkward as well.
SHAPES = sorted({(a, SIZES[i - 3], SIZES[i - 6]) for i, a in enumerate(SIZES)} | {(33, n, 65) for n in SIZES})
EPS = torch.finfo(torch.float32).eps


def exact(codes, weight, scale_m, zero_m, scale_n, bias):
    """float64, with the reference's integers."""
    sums = reference.integer_sums(codes.int() - 128, zero_m[:, None], weight)
    return sums.double() * (scale_m[:, None].double() * scale_n.double()) + bias.double()


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_integer_sums_are_exact(multiply, problem, m, n, k):
    codes, weight, *rest = problem(m, n, k)
    want = reference.integer_sums(codes.int(), torch.zeros(m, 1), weight)
    assert torch.equal(multiply(codes, weight, *rest, sums=True), want)


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
@pytest.mark.parametrize("gelu", [False, True])
def test_floats_are_as_good_as_the_definition(multiply, problem, m, n, k, gelu):
    codes, weight, scale_m, zero_m, scale_n, bias = numbers = problem(m, n, k)
    want = exact(*numbers)
    signed = (codes.int() - 128).to(torch.int8)
    torchs = reference.linear_w8a8(signed, scale_m[:, None], zero_m[:, None], weight, scale_n, bias, gelu=gelu)
    if gelu:
        want = torch_gelu(want)
    allowed = 2 * (torchs - want).abs().max() + EPS * want.abs().max()
    assert (multiply(*numbers, gelu=gelu) - want).abs().max() <= allowed


@pytest.mark.parametrize("gelu", [False, True])
def test_variants_agree_bit_by_bit(multiply, multiply_scalar, problem, gelu):
    numbers = problem(37, 71, 130)
    assert torch.equal(multiply(*numbers, gelu=gelu), multiply_scalar(*numbers, gelu=gelu))


@pytest.mark.parametrize("n", [3, 16, 71])
def test_bf16_output_is_float32_rounded_once(multiply, problem, n):
    codes, weight, scale_m, *rest = problem(37, n, 130)
    scale_m[5], scale_m[6], scale_m[7] = torch.nan, torch.inf, 1e-40
    want = multiply(codes, weight, scale_m, *rest)
    for offset in (0, 1):
        y = multiply(codes, weight, scale_m, *rest, dtype=torch.bfloat16, offset=offset)
        assert torch.equal(y.nan_to_num(7), want.bfloat16().nan_to_num(7))


@pytest.mark.parametrize("n", [3, 16, 71])
def test_a_gelu_in_bf16_errs_by_no_more_than_twice_its_rounding(multiply, problem, n):
    codes, weight, scale_m, *rest = problem(37, n, 130)
    scale_m[5], scale_m[6] = torch.nan, torch.inf
    want = multiply(codes, weight, scale_m, *rest, gelu=True)
    y = multiply(codes, weight, scale_m, *rest, gelu=True, dtype=torch.bfloat16).float()
    assert torch.equal(y.isnan(), want.isnan())
    finite = want.isfinite()
    assert ((y - want)[finite].abs() <= 2**-8 * want[finite].abs() + 1e-4).all()


@pytest.mark.parametrize("sums", [False, True])
def test_only_the_asked_rows_and_blocks_are_written(multiply, problem, sums):
    numbers = problem(70, 100, 40)
    whole = multiply(*numbers, sums=sums)
    part = multiply(*numbers, sums=sums, rows=slice(32, 68), blocks=slice(1, 4))
    assert torch.equal(part[32:68, 16:64], whole[32:68, 16:64])
    untouched = part[0, 0]
    outside = torch.ones(70, 100, dtype=torch.bool)
    outside[32:68, 16:64] = False
    poisoned = part.isnan() if not sums else part == untouched
    assert torch.equal(poisoned, outside)


@pytest.mark.parametrize("sums", [False, True])
def test_output_address_may_be_unaligned(multiply, problem, sums):
    numbers = problem(19, 50, 33)
    want = multiply(*numbers, sums=sums)
    assert all(torch.equal(multiply(*numbers, sums=sums, offset=offset), want) for offset in (1, 7))


@pytest.mark.parametrize("weight_code", [-128, 127])
@pytest.mark.parametrize("k", [64, 4096, 65793])
def test_largest_sums_neither_saturate_nor_overflow(multiply, weight_code, k):
    m, n = 2, 17
    codes = torch.full((m, k), 255, dtype=torch.uint8)
    weight = torch.full((n, k), weight_code, dtype=torch.int8)
    ones = torch.ones(max(m, n))
    zero = torch.full((m,), -128, dtype=torch.int32)
    sums = multiply(codes, weight, ones, zero, ones[:n], ones[:n], sums=True)
    assert (sums == 255 * weight_code * k).all()
    y = multiply(codes, weight, ones, zero, ones[:n], torch.zeros(n))
    assert (y == torch.tensor(255 * weight_code * k, dtype=torch.int32).float()).all()


def gelu_of(multiply, x):
    """GELU alone: no product reaches the output, the bias does."""
    n = len(x)
    numbers = torch.full((1, 1), 128, dtype=torch.uint8), torch.zeros(n, 1, dtype=torch.int8)
    return multiply(*numbers, torch.ones(1), torch.zeros(1, dtype=torch.int32), torch.ones(n), x, gelu=True)[0]


def test_gelu_is_closer_than_torchs(multiply):
    x = torch.linspace(-12, 12, 40_001)
    want = torch_gelu(x.double())
    error, torchs = ((y - want).abs() for y in (gelu_of(multiply, x), torch_gelu(x)))
    assert error.max() < torchs.max()
    tail = x < -3  # where 1 + erf cancels
    assert error[tail].max() < torchs[tail].max()


def test_gelu_of_the_extremes(multiply):
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 3e38, -3e38, 1e-40])
    y = gelu_of(multiply, x)
    assert torch.equal(y[[0, 3, 4, 5]], x[[0, 3, 4, 5]])
    assert y[2].isnan()
    assert (y[[1, 6]].abs() < 1e-10).all()
    assert y[7] <= x[7]


def test_row_with_scale_nan_gives_nan_and_no_other_row_does(multiply, problem):
    codes, weight, scale_m, *rest = problem(20, 20, 20)
    scale_m[7] = torch.nan
    y = multiply(codes, weight, scale_m, *rest)
    assert y[7].isnan().all()
    assert y.isnan().sum() == 20


GRIDS = [InputGrid("static", 0.031, -11, -128), InputGrid("static", 0.2, 0, -127)]


def quantized(y, grid, shift, multiplier):
    """Codes + 128 of float32 values by the definition of the quantizer."""
    spec = SCHEMES["w8a8_static" if grid.code_min == -128 else "w8a8_static_symmetric"].input
    given = torch.tensor([grid.scale]), torch.tensor([grid.zero_point], dtype=torch.int8)
    codes, *_ = reference.quantize_rows(y, spec, *given, shift_K=shift, multiplier_K=multiplier)
    return codes.int() + 128


def transform(n):
    g = torch.Generator().manual_seed(n)
    return {"shift_N": torch.randn(n, generator=g), "multiplier_N": torch.rand(n, generator=g) * 3 + 0.01}


@pytest.mark.parametrize("n", [3, 16, 71])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("transformed", [False, True])
def test_codes_are_those_of_the_float_output(multiply, problem, n, grid, transformed):
    numbers = problem(37, n, 130)
    by = transform(n) if transformed else {}
    want = quantized(multiply(*numbers), grid, by.get("shift_N"), by.get("multiplier_N"))
    assert len(want.unique()) > 50, "a test of more than clipping"
    for offset in (0, 5):
        assert torch.equal(multiply(*numbers, grid=grid, **by, offset=offset).int(), want)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("transformed", [False, True])
def test_codes_after_a_gelu_are_seldom_a_neighbour(multiply, problem, grid, transformed):
    numbers = problem(37, 71, 130)
    by = transform(71) if transformed else {}
    want = quantized(multiply(*numbers, gelu=True), grid, by.get("shift_N"), by.get("multiplier_N"))
    assert len(want.unique()) > 50
    off = (multiply(*numbers, grid=grid, gelu=True, **by).int() - want).abs()
    assert off.max() <= 1
    assert off.float().mean() < 0.03


def test_codes_are_clipped_whatever_the_value(multiply):
    x = torch.tensor([torch.inf, 3e38, 1e9, 127.4, 0.5, 1.5, -0.0, -127.6, -1e9, -3e38, -torch.inf, 2.5])
    n = len(x)
    numbers = torch.full((1, 1), 128, dtype=torch.uint8), torch.zeros(n, 1, dtype=torch.int8)
    rest = torch.ones(1), torch.zeros(1, dtype=torch.int32), torch.ones(n), x
    codes = multiply(*numbers, *rest, grid=InputGrid("static", 1.0, 0, -127))[0].int() - 128
    assert codes.tolist() == [127, 127, 127, 127, 0, 2, 0, -127, -127, -127, -127, 2]


def test_only_the_asked_codes_are_written(multiply, problem):
    numbers, grid = problem(70, 100, 40), GRIDS[0]
    whole = multiply(*numbers, grid=grid)
    part = multiply(*numbers, grid=grid, rows=slice(32, 68), blocks=slice(1, 4))
    assert torch.equal(part[32:68, 16:64], whole[32:68, 16:64])
    part[32:68, 16:64] = POISON_CODE
    assert (part == POISON_CODE).all()
