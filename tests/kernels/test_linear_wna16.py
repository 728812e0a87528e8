"""Every variant of linear_wna16: the reference's panel bit by bit, and then what linear_bf16 makes of that weight."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu as torch_gelu

from bitwright.kernels import dispatch, layouts, native, reference
from bitwright.numerics.codebooks import codebook_of
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec

EPS = torch.finfo(torch.float32).eps
INT4, INT8 = QuantSpec(bits=4), QuantSpec(full_range=True)
# (N, K, group size): all N and K that the layouts pad differently; None is a row.
SHAPES = [
    (1, 1, None), (15, 2, None), (16, 7, None), (17, 8, None), (33, 31, None), (40, 33, None), (71, 385, None),
    (16, 8, 8), (17, 24, 8), (40, 96, 32), (48, 160, 32), (33, 192, 64), (100, 384, 128), (16, 100, 100),
]  # fmt: skip
GRIDS = {
    "int4": INT4,
    "int4 asymmetric": replace(INT4, symmetric=False),
    "int8": INT8,
    "int8 asymmetric": QuantSpec(symmetric=False),
    "int3": QuantSpec(bits=3),
    "int2 asymmetric": QuantSpec(bits=2, symmetric=False),
    "nf4": QuantSpec(bits=4, grid="nf4"),
    "apot": QuantSpec(bits=4, grid="apot"),
    "kmeans": QuantSpec(bits=4, grid="kmeans"),
    "binary": QuantSpec(bits=1, grid="binary"),
}


def weight(n: int, k: int, spec: QuantSpec) -> QTensor:
    """Random codes of the whole range, scales over many octaves, zero points."""
    g = torch.Generator().manual_seed(n * 1000 + k)
    groups = 1 if spec.group_size is None else k // spec.group_size
    codes = torch.randint(spec.code_min, spec.code_max + 1, (n, k), dtype=torch.int8, generator=g)
    scale = torch.randn(n, groups, generator=g).mul(3).exp() * 0.01
    zero = torch.randint(spec.code_min, spec.code_max + 1, (n, groups), dtype=torch.int8, generator=g)
    levels = torch.randn(spec.code_max + 1, generator=g).sort().values if spec.grid == "kmeans" else None
    return QTensor(codes, scale, None if spec.symmetric else zero, spec, levels)


def exact(q: QTensor) -> Tensor:
    return reference.dequantize(q.codes_NK, q.scale_NG, q.zero_point_NG, q.spec, q.codebook, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Packed:
    """What the operator takes of a weight. levels is None for 8 bits."""

    codes: Tensor
    levels: Tensor | None
    scale: Tensor
    zero: Tensor | None
    k: int
    group: int

    @classmethod
    def of(cls, q: QTensor) -> "Packed":
        k = q.shape[1]
        levels = None
        codes = layouts.pack(q.codes_NK)
        if q.spec.bits < 8:
            offset = 0 if q.spec.has_codebook else 8
            known = torch.arange(-8.0, 8.0) if offset else q.codebook
            known = codebook_of(q.spec) if known is None else known
            levels = torch.full((16,), 1e30)  # beyond the last level: of no code
            levels[: len(known)] = known
            codes = layouts.pack_int4((q.codes_NK + offset).to(torch.uint8))
        zero = None if q.zero_point_NG is None else layouts.pack_groups(q.zero_point_NG)
        return cls(codes, levels, layouts.pack_groups(q.scale_NG), zero, k, q.spec.group_size or k)

    def contract(self) -> Any:
        """As the native functions take it."""
        codes, levels, scale, zero = (
            0 if t is None else t.data_ptr() for t in (self.codes, self.levels, self.scale, self.zero)
        )
        return native.load().Wna16(codes=codes, levels=levels, scale=scale, zero=zero, k=self.k, group=self.group)


def unpack(variant: str, q: QTensor, block: int = 0, count: int | None = None) -> Tensor:
    """The panel of some blocks of columns: bfloat16 (count, K/2, 16, 2)."""
    n, k = q.shape
    packed, blocks = Packed.of(q), -(-n // 16)
    count = blocks if count is None else count
    height = count * 16 * (k + -k % 32)
    panel = torch.full((height + 64,), torch.nan, dtype=torch.bfloat16)
    native.load().unpack_wna16(variant, packed.contract(), block, count, panel.data_ptr())
    assert panel[height:].isnan().all(), "wrote past the panel"
    return panel[:height].view(count, -1, 16, 2)


def product(x: Tensor, weight: int, bias: Tensor, y: Tensor, n: int, *, gelu: bool) -> Any:
    """The contract of linear_bf16: x [M, K32], y [M, at least n]; weight: an address, 0 for one that is left out."""
    module = native.load()
    return module.LinearBf16(
        x=x.data_ptr(),
        x_stride=x.stride(0),
        weight=weight,
        bias=bias.data_ptr(),
        y=y.data_ptr(),
        out_stride=y.stride(0),
        n=n,
        k_padded=x.shape[1],
        activation=module.Activation["gelu" if gelu else "none"],
        output=module.Output["bf16" if y.dtype == torch.bfloat16 else "f32"],
    )


def multiply(
    isa: str,
    x_MK: Tensor,
    q: QTensor,
    bias_N: Tensor,
    *,
    gelu: bool = False,
    dtype: torch.dtype = torch.float32,
    rows: slice = slice(None),
    blocks: slice = slice(None),
) -> Tensor:
    """(M, N) of dtype; NaN wherever the operator wrote nothing."""
    (m, k), n = x_MK.shape, q.shape[0]
    module, packed, bias = native.load(), Packed.of(q), layouts.pad_columns(bias_N)
    padded, height = k + -k % 32, m + -m % 16
    x = torch.full((height, padded), 3.0, dtype=torch.bfloat16)  # what lies beyond K must be finite, no more
    x[:m, :k] = x_MK
    y = torch.full((m, n + 3), torch.nan, dtype=dtype)
    bytes_ = module.wna16_scratch_bytes(k)
    scratch = torch.full((bytes_ + 128,), 0xFF, dtype=torch.uint8)  # NaN in bf16
    aligned = -scratch.data_ptr() % 64
    op = module.LinearWna16(linear=product(x, 0, bias, y, n, gelu=gelu), weight=packed.contract())
    ranges = *rows.indices(m)[:2], *blocks.indices(-(-n // 16))[:2]
    module.linear_wna16(dispatch.native_isa(isa), op, *ranges, scratch.data_ptr() + aligned)
    assert y[:, n:].isnan().all(), "wrote past the last column"
    assert (scratch[aligned + bytes_ :] == 0xFF).all(), "wrote past its scratch"
    return y[:, :n]


def problem(m: int, n: int, k: int, spec: QuantSpec = INT4) -> tuple[Tensor, QTensor, Tensor]:
    """x_MK bfloat16, a weight with scales of one size, bias_N float32; of one K and spec, smaller problems are corners
    of larger ones."""
    g = torch.Generator().manual_seed(k)
    x, bias = torch.randn(128, k, generator=g).bfloat16(), torch.randn(1000, generator=g)
    q = weight(1000, k, spec)
    scale = torch.rand(q.scale_NG.shape, generator=g) * 0.1 + 0.05
    zero = None if q.zero_point_NG is None else q.zero_point_NG[:n]
    return x[:m], QTensor(q.codes_NK[:n], scale[:n], zero, spec, q.codebook), bias[:n]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("n", "k", "group"), SHAPES)
def test_the_panel_is_the_reference_bit_by_bit(
    linear_wna16_variant: str, grid: str, n: int, k: int, group: int | None
) -> None:
    q = weight(n, k, replace(GRIDS[grid], group_size=group))
    panel = unpack(linear_wna16_variant, q)
    assert torch.equal(layouts.unpack_bf16(panel, n, k), exact(q))
    assert not layouts.unpack_bf16(panel, -(-n // 16) * 16, k + -k % 32)[:, k:].any(), "zero beyond K"
    assert not layouts.unpack_bf16(panel, -(-n // 16) * 16, k)[n:].any(), "zero beyond N"


def test_the_panel_begins_at_any_block(linear_wna16_variant: str) -> None:
    q = weight(100, 96, QuantSpec(bits=4, symmetric=False, group_size=32))
    whole = unpack(linear_wna16_variant, q)
    for block, count in ((0, 1), (3, 2), (6, 1)):
        assert torch.equal(unpack(linear_wna16_variant, q, block, count), whole[block : block + count])


def test_halves_go_to_even_and_scales_may_be_extreme(linear_wna16_variant: str) -> None:
    scale = torch.tensor([2**-120, 1e-30, 1.0 + 2**-8, 3.0 + 2**-7, 1.5e37]).repeat_interleave(16)[:, None]
    codes = torch.arange(-8, 8, dtype=torch.int8).repeat(80, 2)
    q = QTensor(codes, scale, None, INT4)
    assert torch.equal(layouts.unpack_bf16(unpack(linear_wna16_variant, q), 80, 32), exact(q))


@pytest.mark.parametrize("grid", ["int4", "int4 asymmetric", "int8", "nf4"])
@pytest.mark.parametrize(
    ("m", "n", "k", "group"), [(1, 17, 33, None), (17, 100, 384, 128), (33, 40, 96, 32), (100, 384, 320, 64)]
)
@pytest.mark.parametrize("gelu", [False, True])
def test_as_good_as_float32_sums_in_torch(
    isa: str, grid: str, m: int, n: int, k: int, group: int | None, gelu: bool
) -> None:
    x, q, bias = problem(128, 384, k, replace(GRIDS[grid], group_size=group))
    want = x.double() @ exact(q).double().T + bias.double()
    want = torch_gelu(want) if gelu else want
    torchs = (reference.linear_wna16(x, q, bias, gelu=gelu) - want).abs().max()
    error = (multiply(isa, *problem(m, n, k, q.spec), gelu=gelu) - want[:m, :n]).abs().max()
    assert error <= 2 * torchs + EPS * want.abs().max()


def linear_bf16(isa: str, x_MK: Tensor, w_NK: Tensor, bias_N: Tensor, *, gelu: bool, dtype: torch.dtype) -> Tensor:
    """That operator, whose M, K are whole blocks here."""
    m, n = len(x_MK), len(w_NK)
    weight, bias, y = layouts.pack_bf16(w_NK), layouts.pad_columns(bias_N), torch.empty(m, n, dtype=dtype)
    op = product(x_MK, weight.data_ptr(), bias, y, n, gelu=gelu)
    native.load().linear_bf16(dispatch.chosen("linear_bf16", isa), op, 0, m, 0, -(-n // 16))
    return y


@pytest.mark.parametrize("n", [3, 71, 1000])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_that_of_linear_bf16(isa: str, n: int, gelu: bool, dtype: torch.dtype) -> None:
    """Bit by bit, also where there are several panels: a thousand columns of 1024 values."""
    assert native.load().wna16_scratch_bytes(1024) < 1000 * 1024
    x, q, bias = problem(48, n, 1024, replace(INT4, group_size=64))
    want = linear_bf16(isa, x, exact(q), bias, gelu=gelu, dtype=dtype)
    assert torch.equal(multiply(isa, x, q, bias, gelu=gelu, dtype=dtype), want)


def test_only_the_asked_rows_and_blocks_are_written(isa: str) -> None:
    operands = problem(100, 1000, 1024, replace(INT4, group_size=32))
    whole = multiply(isa, *operands)
    inside = torch.zeros(100, 1000, dtype=torch.bool)
    for rows, blocks in ((slice(32, 68), slice(1, 40)), (slice(16, 17), slice(62, 63)), (slice(96, 100), slice(0, 5))):
        inside[:] = False
        inside[rows, 16 * blocks.start : 16 * blocks.stop] = True
        part = multiply(isa, *operands, rows=rows, blocks=blocks)
        assert torch.equal(part[inside], whole[inside])
        assert part[~inside].isnan().all()
