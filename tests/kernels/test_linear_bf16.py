"""Every variant of linear_bf16: as good as float32 sums in torch, and the same bytes however the work is cut."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu as torch_gelu

from bitwright.kernels import layouts, native, reference

M = [1, 2, 15, 17, 33, 100]
N = [1, 15, 17, 40, 384]
K = [1, 2, 31, 33, 64, 384, 1000]
# Each size in its place, the other two awkward as well.
CORNERS = {(M[i % len(M)], N[i % len(N)], k) for i, k in enumerate(K)}
SHAPES = sorted(CORNERS | {(m, 40, 33) for m in M} | {(33, n, 64) for n in N})
EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True, slots=True)
class Linear:
    """`linear_bf16` of one variant. Outputs are NaN wherever the kernel wrote nothing."""

    variant: str

    def __call__(
        self,
        x_MK: Tensor,
        weight_NK: Tensor,
        bias_N: Tensor,
        *,
        gelu: bool = False,
        dtype: torch.dtype = torch.float32,
        rows: slice = slice(None),
        blocks: slice = slice(None),
        offset: int = 0,
        x_stride: int | None = None,
    ) -> Tensor:
        """(M, N) of dtype. offset: elements between an aligned address and the operands'. x_stride: at least K32."""
        (m, k), n = x_MK.shape, weight_NK.shape[0]
        packed, bias = layouts.pack_bf16(weight_NK), layouts.pad_columns(bias_N)
        padded = k + -k % layouts.PAD_K_BF16
        x_stride = x_stride or padded
        height = m + -m % layouts.BLOCK
        x = torch.full((offset + height * x_stride,), torch.nan, dtype=torch.bfloat16)[offset:].view(height, x_stride)
        x[:m, :padded] = 3.0  # what the weight's padding is multiplied by must be finite, no more
        x[:m, :k] = x_MK
        stride = n + 3
        out = torch.full((offset + m * stride,), torch.nan, dtype=dtype)[offset:]
        module = native.load()
        op = module.LinearBf16(
            x=x.data_ptr(),
            x_stride=x_stride,
            weight=packed.data_ptr(),
            bias=bias.data_ptr(),
            y=out.data_ptr(),
            out_stride=stride,
            n=n,
            k_padded=padded,
            activation=module.Activation["gelu" if gelu else "none"],
            output=module.Output["bf16" if dtype == torch.bfloat16 else "f32"],
        )
        module.linear_bf16(self.variant, op, *rows.indices(m)[:2], *blocks.indices(packed.shape[0])[:2])
        assert out.view(m, stride)[:, n:].isnan().all(), "wrote past the last column"
        return out.view(m, stride)[:, :n]


@pytest.fixture
def linear(linear_bf16_variant):
    """The operator by one variant that this machine supports."""
    return Linear(linear_bf16_variant)


def problem(m, n, k):
    """x_MK, weight_NK bfloat16, bias_N float32; of one K, smaller problems are corners of larger ones."""
    g = torch.Generator().manual_seed(k)
    x, weight = torch.randn(128, k, generator=g).bfloat16(), torch.randn(384, k, generator=g).bfloat16()
    return x[:m], weight[:n], torch.randn(384, generator=g)[:n]


def exact(x, weight, bias):
    """float64 of the bf16 inputs."""
    return x.double() @ weight.double().T + bias.double()


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
@pytest.mark.parametrize("gelu", [False, True])
def test_as_good_as_float32_sums_in_torch(linear, m, n, k, gelu):
    largest = problem(128, 384, k)
    want = exact(*largest)
    if gelu:
        want = torch_gelu(want)
    torchs = (reference.linear_bf16(*largest, gelu=gelu) - want).abs().max()
    error = (linear(*problem(m, n, k), gelu=gelu) - want[:m, :n]).abs().max()
    assert error <= 2 * torchs + EPS * want.abs().max()


@pytest.mark.parametrize("n", [3, 16, 71])
def test_bf16_output_is_float32_rounded_once(linear, n):
    x, weight, bias = problem(37, n, 130)
    x[5], x[6], x[7] = torch.nan, torch.inf, 1e-38
    want = linear(x, weight, bias).bfloat16()
    for offset in (0, 1):
        y = linear(x, weight, bias, dtype=torch.bfloat16, offset=offset)
        assert torch.equal(y.nan_to_num(7), want.nan_to_num(7))
    assert want[5].isnan().all()
    assert want[:5].isfinite().all()


@pytest.mark.parametrize("n", [3, 16, 71])
def test_a_gelu_in_bf16_errs_by_no_more_than_twice_its_rounding(linear, n):
    x, weight, bias = problem(37, n, 130)
    x[5], x[6] = torch.nan, torch.inf
    want = linear(x, weight, bias, gelu=True)
    y = linear(x, weight, bias, gelu=True, dtype=torch.bfloat16).float()
    assert torch.equal(y.isnan(), want.isnan())
    finite = want.isfinite()
    assert ((y - want)[finite].abs() <= 2**-8 * want[finite].abs() + 1e-4).all()


@pytest.mark.parametrize("x_stride", [160, 163, 1024])
def test_rows_may_be_strided_and_unaligned(linear, x_stride):
    operands = problem(37, 50, 130)
    want = linear(*operands)
    for offset in (0, 1, 7):
        assert torch.equal(linear(*operands, x_stride=x_stride, offset=offset), want)


@pytest.mark.parametrize("k", [40, 1000])
def test_only_the_asked_rows_and_blocks_are_written(linear, k):
    operands = problem(100, 100, k)
    whole = linear(*operands)
    assert not whole.isnan().any()
    inside = torch.zeros(100, 100, dtype=torch.bool)
    for rows, blocks in ((slice(32, 68), slice(1, 4)), (slice(16, 17), slice(6, 7)), (slice(96, 100), slice(0, 5))):
        inside[:] = False
        inside[rows, 16 * blocks.start : 16 * blocks.stop] = True
        part = linear(*operands, rows=rows, blocks=blocks)
        assert torch.equal(part[inside], whole[inside])
        assert part[~inside].isnan().all()


@pytest.mark.parametrize("k", [33, 1000])
@pytest.mark.parametrize("gelu", [False, True])
def test_a_row_is_the_same_bytes_alone_and_among_others(linear, k, gelu):
    x, weight, bias = problem(64, 100, k)
    together = linear(x, weight, bias, gelu=gelu)
    for row in (0, 1, 17, 40, 63):
        assert torch.equal(linear(x[row : row + 1], weight, bias, gelu=gelu)[0], together[row])


@pytest.mark.parametrize("gelu", [False, True])
def test_variants_that_widen_agree_bit_by_bit(linear, gelu):
    if linear.variant in ("amx", "avx512bf16"):
        pytest.skip(f"{linear.variant} sums in another order")
    operands = problem(37, 71, 600)
    assert torch.equal(linear(*operands, gelu=gelu), Linear("scalar")(*operands, gelu=gelu))


def test_what_is_not_finite_stays_in_its_row(linear):
    x, weight, bias = problem(20, 20, 20)
    x[3, 5], x[7, 11] = torch.nan, torch.inf
    y = linear(x, weight, bias)
    assert y[3].isnan().all()
    assert y[7].isinf().all()
    assert y.isfinite().sum() == 18 * 20
