"""Every variant of an operator, called directly on chosen rows and columns, into outputs that are poisoned."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bitwright.kernels import cpu, dispatch, layouts, native
from bitwright.numerics.spec import QuantSpec

POISON_CODE, POISON_SUM = 77, -(2**31) + 5


@dataclass(frozen=True, slots=True)
class Multiply:
    """`multiply_w8a8` of one variant. Outputs are NaN, or POISON_SUM, wherever the kernel wrote nothing."""

    variant: int

    def __call__(
        self,
        codes_MK: Tensor,
        weight_NK: Tensor,
        scale_M: Tensor,
        zero_M: Tensor,
        scale_N: Tensor,
        bias_N: Tensor,
        *,
        sums: bool = False,
        gelu: bool = False,
        dtype: torch.dtype = torch.float32,
        grid: cpu.InputGrid | None = None,
        shift_N: Tensor | None = None,
        multiplier_N: Tensor | None = None,
        rows: slice = slice(None),
        blocks: slice = slice(None),
        offset: int = 0,
    ) -> Tensor:
        """(M, N) of dtype, or int32 sums of u8 codes, or with a static grid u8 codes, POISON_CODE if not written.
        offset: elements between an aligned address and the output's.
        """
        (m, k), n = codes_MK.shape, weight_NK.shape[0]
        module = native.load()
        packed = layouts.pack(weight_NK)
        codes = torch.full((m + -m % 16, module.code_stride(k)), POISON_CODE, dtype=torch.uint8)
        codes[:m, :k] = codes_MK
        columns = layouts.column_sums(weight_NK), layouts.pad_columns(scale_N), layouts.pad_columns(bias_N)
        stride = n + 3
        poison, kind = (POISON_CODE, torch.uint8) if grid else (torch.nan, dtype)
        if sums:
            poison, kind = POISON_SUM, torch.int32
        out = torch.full((offset + m * stride,), poison, dtype=kind)[offset:]
        transform = [layouts.pad_columns(values) for values in (shift_N, multiplier_N) if values is not None]
        addresses = [values.data_ptr() for values in transform] or [0, 0]
        row_begin, row_end, _ = rows.indices(m)
        block_begin, block_end, _ = blocks.indices(packed.shape[0])
        module.multiply_w8a8(
            self.variant,
            codes.data_ptr(),
            codes.shape[1],
            scale_M.data_ptr(),
            zero_M.data_ptr(),
            k,
            packed.data_ptr(),
            *(values.data_ptr() for values in columns),
            0 if sums else out.data_ptr(),
            out.data_ptr() if sums else 0,
            stride,
            n,
            gelu,
            dtype == torch.bfloat16,
            (*addresses, grid.scale, grid.zero_point, grid.code_min) if grid else None,
            row_begin,
            row_end,
            block_begin,
            block_end,
        )
        beyond = out.view(m, stride)[:, n:]
        assert (beyond.isnan() if kind.is_floating_point else beyond == poison).all(), "wrote past the last column"
        return out.view(m, stride)[:, :n]


@dataclass(frozen=True, slots=True)
class QuantizeRows:
    """`quantize_rows` of one instruction set: (codes, scale, zero_point) shaped like the reference's."""

    isa: str

    def __call__(
        self,
        x_MK: Tensor,
        spec: QuantSpec,
        scale: Tensor | None = None,
        zero_point: Tensor | None = None,
        begin: int = 0,
        *,
        shift_K: Tensor | None = None,
        multiplier_K: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        m, k = x_MK.shape
        module = native.load()
        stride = module.code_stride(k)
        codes = torch.full((m, stride), POISON_CODE, dtype=torch.uint8)
        scales, zeros = torch.full((m, 1), -7.0), torch.full((m, 1), 1000, dtype=torch.int32)
        grid = cpu.InputGrid.of(spec, scale, zero_point)
        transform = [layouts.pad_inputs(values) for values in (shift_K, multiplier_K) if values is not None]
        module.quantize_rows(
            dispatch.isa_index(self.isa),
            x_MK.data_ptr(),
            x_MK.dtype == torch.bfloat16,
            x_MK.stride(0),
            m,
            k,
            *([values.data_ptr() for values in transform] or (0, 0)),
            grid.mode,
            grid.scale,
            grid.zero_point,
            grid.code_min,
            codes.data_ptr(),
            stride,
            scales.data_ptr(),
            zeros.data_ptr(),
            begin,
        )
        padded = k + -k % 64
        assert (codes[begin:, k:padded] == zeros[begin:] + 128).all(), "the padding of a row is the code of 0"
        assert (codes[begin:, padded:] == POISON_CODE).all(), "wrote past the padding of a row"
        return (codes[:, :k].to(torch.int16) - 128).to(torch.int8), scales, zeros


@dataclass(frozen=True, slots=True)
class Attention:
    """`attention` of one variant on q, k, v (T, H, D), which become one buffer with NaN after the last token, or not.

    The output is NaN wherever the kernel wrote nothing; scratch is NaN before.
    """

    variant: int

    def __call__(
        self,
        q_THD: Tensor,
        k_THD: Tensor,
        v_THD: Tensor,
        scale: float,
        *,
        bias_HR: Tensor | None = None,
        bias_HQK: Tensor | None = None,
        window: int | None = None,
        heads: slice = slice(None),
        queries: slice = slice(None),
        offset: int = 0,
    ) -> Tensor:
        """(T, H, D) bfloat16. offset: elements between an aligned address and those of q, k, v and the output."""
        tokens, n_heads, size = q_THD.shape
        module = native.load()
        width = n_heads * size
        stride, out_stride = 3 * width + 8, width + 8
        buffer = torch.full((offset + (tokens + 1) * stride,), torch.nan, dtype=torch.bfloat16)
        rows = buffer[offset : offset + tokens * stride].view(tokens, stride)
        for part, x in enumerate((q_THD, k_THD, v_THD)):
            rows[:, part * width : (part + 1) * width] = x.reshape(tokens, width)
        out = torch.full((offset + tokens * out_stride,), torch.nan, dtype=torch.bfloat16)
        scratch = torch.full((module.attention_scratch_bytes(tokens, size) // 4 + 1024,), torch.nan)
        address = -(-scratch.data_ptr() // 64) * 64
        end = (address - scratch.data_ptr() + module.attention_scratch_bytes(tokens, size)) // 4
        if bias_HQK is not None:
            bias, bias_strides = bias_HQK.data_ptr(), bias_HQK.stride()[:2]
        elif bias_HR is not None:
            bias, bias_strides = bias_HR.data_ptr() + (tokens - 1) * bias_HR.element_size(), (bias_HR.stride(0), -1)
        else:
            bias, bias_strides = 0, (0, 0)
        q = rows.data_ptr()
        module.attention(
            self.variant,
            q,
            q + 2 * width,
            q + 4 * width,
            stride,
            out.data_ptr() + 2 * offset,
            out_stride,
            tokens,
            size,
            scale,
            bias,
            *bias_strides,
            -1 if window is None else window,
            address,
            *heads.indices(n_heads)[:2],
            *queries.indices(tokens)[:2],
        )
        assert scratch[end:].isnan().all(), "wrote past its scratch"
        written = out[offset:].view(tokens, out_stride)
        assert written[:, width:].isnan().all(), "wrote past the last head"
        return written[:, :width].reshape(tokens, n_heads, size)


W8A8 = ("scalar", "avx2", "avxvnni", "avx512vnni", "amx")
ATTENTION = ("scalar", "avx2", "avx512vnni", "avx512bf16", "amx")


def variant_index(name: str, names: tuple[str, ...], table: list[tuple[str, bool]]) -> int:
    """Of a variant in its operator's table; those that this machine lacks are skipped by name."""
    assert tuple(row for row, _ in table) == names
    index = names.index(name)
    if not table[index][1]:
        pytest.skip(f"this machine lacks {name}")
    return index


@pytest.fixture(params=ATTENTION)
def attention(request: pytest.FixtureRequest) -> Attention:
    """A variant of attention that this machine supports."""
    return Attention(variant_index(request.param, ATTENTION, native.load().attention_variants()))


@pytest.fixture(params=dispatch.ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """An instruction set that this machine supports; the others are skipped by name."""
    if not {row.name: row.supported for row in dispatch.isa_table()}[request.param]:
        pytest.skip(f"this machine lacks {request.param}")
    return str(request.param)


@pytest.fixture(params=W8A8)
def multiply(request: pytest.FixtureRequest) -> Multiply:
    """linear_w8a8 without the quantizer, by a variant that this machine supports."""
    return Multiply(variant_index(request.param, W8A8, native.load().w8a8_variants()))


@pytest.fixture
def multiply_scalar() -> Multiply:
    """The variant that the others must equal bit for bit."""
    return Multiply(W8A8.index("scalar"))


@pytest.fixture
def quantize(isa: str) -> QuantizeRows:
    """quantize_rows of one instruction set."""
    return QuantizeRows(isa)


@pytest.fixture
def problem() -> Callable[..., tuple[Tensor, ...]]:
    """make(m, n, k) -> codes_MK u8, weight_NK s8, scale_M, zero_M, scale_N, bias_N; same sizes, same numbers."""

    def make(m: int, n: int, k: int) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(m * 1_000_000 + n * 1000 + k)
        codes = torch.randint(0, 256, (m, k), dtype=torch.uint8, generator=g)
        weight = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=g)
        scale_m = torch.rand(m, generator=g) * 0.02 + 1e-3
        zero_m = torch.randint(-128, 128, (m,), dtype=torch.int32, generator=g)
        return codes, weight, scale_m, zero_m, torch.rand(n, generator=g) * 0.01, torch.randn(n, generator=g)

    return make
