"""Every variant of an operator, called directly on chosen rows and columns, into outputs that are poisoned."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from bitwright.kernels import dispatch, layouts, native
from bitwright.kernels.input_grid import InputGrid
from bitwright.numerics.linear import StaticGrid
from bitwright.numerics.spec import QuantSpec

POISON_CODE, POISON_SUM = 77, -(2**31) + 5
NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}


def address(tensor: Tensor | None) -> int:
    """Of its first element; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


@dataclass(frozen=True, slots=True)
class Multiply:
    """`linear_w8a8` of one variant. Outputs are NaN, or POISON_SUM, wherever the kernel wrote nothing."""

    variant: str

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
        grid: InputGrid | None = None,
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
        colsum, scale, bias = (
            layouts.column_sums(weight_NK), layouts.pad_columns(scale_N), layouts.pad_columns(bias_N)
        )  # fmt: skip
        transform = [None if values is None else layouts.pad_columns(values) for values in (shift_N, multiplier_N)]
        stride = n + 3
        poison, kind = (POISON_CODE, torch.uint8) if grid else (torch.nan, dtype)
        if sums:
            poison, kind = POISON_SUM, torch.int32
        out = torch.full((offset + m * stride,), poison, dtype=kind)[offset:]
        columns = module.OutputGrid(
            shift=address(transform[0]),
            multiplier=address(transform[1]),
            scale=grid.scale if grid else 1.0,
            zero_point=grid.zero_point if grid else 0,
            code_min=grid.code_min if grid else 0,
        )
        op = module.LinearW8A8(
            codes=codes.data_ptr(),
            code_stride=codes.shape[1],
            scale_m=scale_M.data_ptr(),
            zero_m=zero_M.data_ptr(),
            weight=packed.data_ptr(),
            colsum=colsum.data_ptr(),
            scale_n=scale.data_ptr(),
            bias=bias.data_ptr(),
            y=out.data_ptr(),
            out_stride=stride,
            n=n,
            k_padded=k + -k % layouts.PAD_K,
            activation=module.Activation["gelu" if gelu else "none"],
            output=module.Output["sums" if sums else "codes" if grid else NAMES[dtype]],
            grid=columns if grid else None,
        )
        module.linear_w8a8(self.variant, op, *rows.indices(m)[:2], *blocks.indices(packed.shape[0])[:2])
        beyond = out.view(m, stride)[:, n:]
        assert (beyond.isnan() if kind.is_floating_point else beyond == poison).all(), "wrote past the last column"
        return out.view(m, stride)[:, :n]


@dataclass(frozen=True, slots=True)
class QuantizeRows:
    """`quantize_rows` of one variant: (codes, scale, zero_point) shaped like the reference's."""

    variant: str

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
        static = None if scale is None else StaticGrid(float(scale), 0 if zero_point is None else int(zero_point))
        grid = InputGrid.of(spec, static)
        shift, multiplier = (
            None if values is None else layouts.pad_inputs(values) for values in (shift_K, multiplier_K)
        )
        op = module.QuantizeRows(
            x=x_MK.data_ptr(),
            bf16=x_MK.dtype == torch.bfloat16,
            x_stride=x_MK.stride(0),
            k=k,
            shift=address(shift),
            multiplier=address(multiplier),
            codes=codes.data_ptr(),
            code_stride=stride,
            scale=scales.data_ptr(),
            zero_point=zeros.data_ptr(),
            mode=module.QuantizeMode[grid.mode],
            static_scale=grid.scale,
            static_zero_point=grid.zero_point,
            code_min=grid.code_min,
        )
        module.quantize_rows(self.variant, op, begin, m)
        padded = k + -k % 64
        assert (codes[begin:, k:padded] == zeros[begin:] + 128).all(), "the padding of a row is the code of 0"
        assert (codes[begin:, padded:] == POISON_CODE).all(), "wrote past the padding of a row"
        return (codes[:, :k].to(torch.int16) - 128).to(torch.int8), scales, zeros


@dataclass(frozen=True, slots=True)
class Attention:
    """`attention` or `attention_int8` of one variant on q, k, v (T, H, D), which
    become one buffer with NaN after the last token, or not.

    The output is NaN wherever the kernel wrote nothing; scratch is NaN before.
    """

    variant: str
    operator: str = "attention"

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
        scratch_bytes = getattr(module, f"{self.operator}_scratch_bytes")(tokens, size)
        scratch = torch.full((scratch_bytes // 4 + 1024,), torch.nan)
        aligned = -(-scratch.data_ptr() // 64) * 64
        end = (aligned - scratch.data_ptr() + scratch_bytes) // 4
        if bias_HQK is not None:
            bias, bias_strides = bias_HQK.data_ptr(), bias_HQK.stride()[:2]
        elif bias_HR is not None:
            bias, bias_strides = bias_HR.data_ptr() + (tokens - 1) * bias_HR.element_size(), (bias_HR.stride(0), -1)
        else:
            bias, bias_strides = 0, (0, 0)
        op = module.Attention(
            q=rows.data_ptr(),
            k=rows.data_ptr() + 2 * width,
            v=rows.data_ptr() + 4 * width,
            stride=stride,
            out=out.data_ptr() + 2 * offset,
            out_stride=out_stride,
            tokens=tokens,
            head_size=size,
            scale=scale,
            bias=bias,
            bias_stride=bias_strides[0],
            bias_query_step=bias_strides[1],
            window=module.NO_WINDOW if window is None else window,
        )
        run = getattr(module, self.operator)
        run(self.variant, op, *heads.indices(n_heads)[:2], *queries.indices(tokens)[:2], aligned)
        assert scratch[end:].isnan().all(), "wrote past its scratch"
        written = out[offset:].view(tokens, out_stride)
        assert written[:, width:].isnan().all(), "wrote past the last head"
        return written[:, :width].reshape(tokens, n_heads, size)


@dataclass(slots=True)
class Cached:
    """A cache of one layer and its sequence, and `attention_cached` of one variant over it.

    Blocks lie in the order of a permuted table, each between bytes that are NaN as numbers, as is whatever no token
    wrote. `append` and `attend` may be cut in any way.
    """

    variant: str
    kind: str
    heads: int
    size: int
    blocks: int = 32
    past: int = 0
    memory: Tensor = field(init=False)
    table: Tensor = field(init=False)

    def __post_init__(self) -> None:
        forms = 3 if self.kind == "int4" else 1
        self.memory = torch.full((forms * self.blocks * self._block_bytes + 64,), 255, dtype=torch.uint8)
        self.table = torch.randperm(forms * self.blocks, generator=torch.Generator().manual_seed(0)).int()

    @property
    def _block_bytes(self) -> int:
        module = native.load()
        return 64 + int(self.heads * module.cache_head_bytes(module.CacheKind[self.kind], self.size))

    def _layer(self) -> Any:
        module = native.load()
        return module.CacheLayer(
            kind=module.CacheKind[self.kind],
            blocks=-(-self.memory.data_ptr() // 64) * 64,
            block_stride=self._block_bytes,
            head_stride=module.cache_head_bytes(module.CacheKind[self.kind], self.size),
            head_size=self.size,
        )

    def append(self, k_TGD: Tensor, v_TGD: Tensor, *, heads: slice = slice(None)) -> None:
        """Both bfloat16; become one buffer with NaN after each row."""
        tokens, n_heads, size = k_TGD.shape
        module, width = native.load(), n_heads * size
        rows = torch.full((tokens, 2 * width + 8), torch.nan, dtype=torch.bfloat16)
        rows[:, :width], rows[:, width : 2 * width] = k_TGD.reshape(tokens, -1), v_TGD.reshape(tokens, -1)
        op = module.AppendCached(
            cache=self._layer(),
            table=self.table.data_ptr(),
            table_stride=self.blocks,
            past=self.past,
            k=rows.data_ptr(),
            v=rows.data_ptr() + 2 * width,
            stride=2 * width + 8,
        )
        module.append_cached(self.variant, op, 0, tokens, *heads.indices(n_heads)[:2])
        self.past += tokens

    def attend(
        self,
        q_THD: Tensor,
        scale: float,
        *,
        softcap: float | None = None,
        window: int | None = None,
        causal: bool = True,
        sinks_H: Tensor | None = None,
        lines: int = 10**6,
    ) -> Tensor:
        """Of the last T tokens appended: (T, H, D) bfloat16, NaN wherever nothing was written. lines: of one call."""
        tokens, n_heads, size = q_THD.shape
        module, width = native.load(), n_heads * size
        rows = torch.full((tokens, width + 8), torch.nan, dtype=torch.bfloat16)
        rows[:, :width] = q_THD.reshape(tokens, width)
        out = torch.full((tokens, width + 8), torch.nan, dtype=torch.bfloat16)
        group, past = n_heads // self.heads, self.past - tokens
        op = module.AttendCached(
            cache=self._layer(),
            table=self.table.data_ptr(),
            table_stride=self.blocks,
            past=past,
            rows=tokens,
            q=rows.data_ptr(),
            q_stride=width + 8,
            out=out.data_ptr(),
            out_stride=width + 8,
            heads_per_kv=group,
            scale=scale,
            softcap=softcap or 0.0,
            causal=causal,
            window=window or 0,
            sinks=address(sinks_H),
        )
        parts = range(
            (max(past + 1 - window, 0) if window else 0) // module.CACHE_PART, -(-self.past // module.CACHE_PART)
        )
        floats, all_lines = module.partial_floats(size), tokens * group
        partials = torch.empty(len(parts) * all_lines * floats + 32)
        for head in range(self.heads):
            partials.fill_(torch.nan)
            aligned = -(-partials.data_ptr() // 64) * 64
            for begin in range(0, all_lines, lines):
                end, at = min(begin + lines, all_lines), aligned + begin * floats * 4
                for i, part in enumerate(parts):
                    module.attend_cached(self.variant, op, head, begin, end, part, at + i * all_lines * floats * 4)
                module.merge_cached(self.variant, op, head, begin, end, len(parts), at, all_lines * floats)
        assert out[:, width:].isnan().all(), "wrote past the last head"
        return out[:, :width].reshape(tokens, n_heads, size)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """An argument `<operator>_variant` is every variant in the operator's table; what this machine lacks is skipped."""
    for operator in dispatch.operators():
        argument = f"{operator}_variant"
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, [_or_skipped(row) for row in dispatch.variants(operator)])


def _or_skipped(row: dispatch.VariantRow) -> Any:
    lacking = () if row.supported else (pytest.mark.skip(reason=f"this machine lacks {row.name}"),)
    return pytest.param(row.name, id=row.name, marks=lacking)


@pytest.fixture
def attention(attention_variant: str) -> Attention:
    """A variant of attention that this machine supports."""
    return Attention(attention_variant)


@pytest.fixture
def attention_int8(attention_int8_variant: str) -> Attention:
    """A variant of attention in integers that this machine supports."""
    return Attention(attention_int8_variant, "attention_int8")


@pytest.fixture(params=dispatch.ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """An instruction set that this machine supports; the others are skipped by name."""
    if not {row.name: row.supported for row in dispatch.isa_table()}[request.param]:
        pytest.skip(f"this machine lacks {request.param}")
    return str(request.param)


@pytest.fixture
def multiply(linear_w8a8_variant: str) -> Multiply:
    """linear_w8a8 without the quantizer, by a variant that this machine supports."""
    return Multiply(linear_w8a8_variant)


@pytest.fixture
def multiply_scalar() -> Multiply:
    """The variant that the others must equal bit for bit."""
    return Multiply("scalar")


@pytest.fixture
def quantize(quantize_rows_variant: str) -> QuantizeRows:
    """quantize_rows by a variant that this machine supports."""
    return QuantizeRows(quantize_rows_variant)


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
