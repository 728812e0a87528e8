"""What csrc binds: see the contract of each operator (csrc/*/contract.h) for shapes, alignment and arithmetic.

A contract's struct is built by keyword, all fields; an address is an integer, 0 for none. Rows and column blocks are
ranges: [begin, end).
"""

from enum import Enum

class Isa(Enum):
    amx = ...
    avx512vnni = ...
    avxvnni = ...
    avx2 = ...
    scalar = ...

class Activation(Enum):
    none = ...
    gelu = ...

class Output(Enum):
    f32 = ...
    bf16 = ...
    codes = ...
    sums = ...

class QuantizeMode(Enum):
    asymmetric = ...
    symmetric = ...
    static = ...

class Function(Enum):
    identity = ...
    relu = ...
    tanh = ...
    gelu_tanh = ...
    silu = ...
    relu2 = ...

class WordKind(Enum):
    f32 = ...
    bf16 = ...
    int8 = ...

class Per(Enum):
    token = ...
    sequence = ...
    output = ...

class CacheKind(Enum):
    int8 = ...
    int4 = ...
    bf16 = ...

class BufferKind(Enum):
    f32 = ...
    bf16 = ...
    codes = ...
    groups = ...

class PoolMode(Enum):
    cls = ...
    mean = ...
    max = ...
    mean_sqrt_len_tokens = ...
    weightedmean = ...
    lasttoken = ...

NO_WINDOW: int
NO_BUFFER: int
CACHE_BLOCK: int
CACHE_HOT_BLOCKS: int
CACHE_PART: int
MOST_TAPS: int

def isas() -> list[tuple[str, bool]]: ...  # best first
def cpu_features() -> list[tuple[str, bool]]: ...
def operators() -> list[str]: ...
def variants(operator: str, /) -> list[tuple[str, Isa, bool]]: ...  # best first
def chosen(operator: str, isa: Isa, /) -> str | None: ...
def kernel_calls() -> int: ...
def code_stride(k: int, /) -> int: ...
def scratch_bytes(m: int, k: int, /) -> int: ...
def attention_scratch_bytes(tokens: int, head_size: int, /) -> int: ...
def attention_int8_scratch_bytes(tokens: int, head_size: int, /) -> int: ...
def cache_head_bytes(kind: CacheKind, head_size: int, /) -> int: ...
def cache_rows_bytes(rows: int, width: int, /) -> int: ...
def partial_floats(head_size: int, /) -> int: ...
def gram_scratch_bytes(m: int, k: int, /) -> int: ...
def wna16_scratch_bytes(k: int, /) -> int: ...

class Attention:
    def __init__(
        self,
        *,
        q: int,
        k: int,
        v: int,
        stride: int,
        out: int,
        out_stride: int,
        tokens: int,
        head_size: int,
        scale: float,
        bias: int,
        bias_stride: int,
        bias_query_step: int,
        window: int,
    ) -> None: ...

class CacheLayer:
    def __init__(
        self, *, kind: CacheKind, blocks: int, block_stride: int, head_stride: int, head_size: int
    ) -> None: ...

class AppendCached:
    def __init__(
        self, *, cache: CacheLayer, table: int, table_stride: int, past: int, k: int, v: int, stride: int
    ) -> None: ...

class AttendCached:
    def __init__(
        self,
        *,
        cache: CacheLayer,
        table: int,
        table_stride: int,
        past: int,
        rows: int,
        q: int,
        q_stride: int,
        out: int,
        out_stride: int,
        heads_per_kv: int,
        scale: float,
        softcap: float,
        causal: bool,
        window: int,
        sinks: int,
    ) -> None: ...

class ConvolveRow:
    def __init__(
        self, *, b: int, c: int, x: int, weight: int, weight_stride: int, bias: int, product: int, y: int
    ) -> None: ...

class EmbedRow:
    def __init__(
        self,
        *,
        word: int,
        kind: WordKind,
        scale: float,
        position: int,
        type: int,
        factor: float,
    ) -> None: ...

class Gram:
    def __init__(
        self,
        *,
        x: int,
        bf16: bool,
        x_stride: int,
        m: int,
        k: int,
        packed: int,
        low: int,
        high: int,
        sum: int,
        sum_abs: int,
        gram: int,
    ) -> None: ...

class LinearBf16:
    def __init__(
        self,
        *,
        x: int,
        x_stride: int,
        weight: int,
        bias: int,
        y: int,
        out_stride: int,
        n: int,
        k_padded: int,
        activation: Activation,
        output: Output,
    ) -> None: ...

class OutputGrid:
    def __init__(
        self,
        *,
        shift: int,
        multiplier: int,
        scale: float,
        zero_point: int,
        code_min: int,
    ) -> None: ...

class LinearW8A8:
    def __init__(
        self,
        *,
        codes: int,
        code_stride: int,
        scale_m: int,
        zero_m: int,
        weight: int,
        colsum: int,
        scale_n: int,
        bias: int,
        y: int,
        out_stride: int,
        n: int,
        k_padded: int,
        activation: Activation,
        output: Output,
        grid: OutputGrid | None,
    ) -> None: ...

class QuantizeLinearW8A8:
    def __init__(
        self,
        *,
        x: int,
        bf16: bool,
        x_stride: int,
        m: int,
        k: int,
        shift: int,
        multiplier: int,
        mode: QuantizeMode,
        static_scale: float,
        static_zero_point: int,
        code_min: int,
        weight: int,
        colsum: int,
        scale_n: int,
        bias: int,
        y: int,
        n: int,
        activation: Activation,
        scratch: int,
    ) -> None: ...

class Wna8:
    def __init__(
        self,
        *,
        codes: int,
        bits: int,
        levels: int,
        scale: int,
        bf16_scale: bool,
        zero: int,
        minimum: int,
        k: int,
        group: int,
        per: int,
    ) -> None: ...

class PrepareW4A16:
    def __init__(
        self,
        *,
        x: int,
        bf16: bool,
        x_stride: int,
        k: int,
        group: int,
        rows: int,
        row_stride: int,
        sum: int,
        group_stride: int,
    ) -> None: ...

class LinearW4A16:
    def __init__(
        self,
        *,
        rows: int,
        row_stride: int,
        sum_m: int,
        group_stride: int,
        weight: Wna8,
        levels: int,
        bias: int,
        y: int,
        out_stride: int,
        n: int,
        activation: Activation,
        output: Output,
    ) -> None: ...

class LinearW4A8:
    def __init__(
        self,
        *,
        codes: int,
        code_stride: int,
        scale_m: int,
        sum_m: int,
        group_stride: int,
        weight: Wna8,
        bias: int,
        y: int,
        out_stride: int,
        n: int,
        activation: Activation,
        output: Output,
    ) -> None: ...

class Wna16:
    def __init__(
        self,
        *,
        codes: int,
        levels: int,
        scale: int,
        zero: int,
        k: int,
        group: int,
    ) -> None: ...

class LinearWna16:
    def __init__(
        self,
        *,
        linear: LinearBf16,
        weight: Wna16,
    ) -> None: ...

class Norm:
    def __init__(
        self,
        *,
        x: int,
        residual: int,
        sum: int,
        y: int,
        weight: int,
        bias: int,
        stride: int,
        n: int,
        eps: float,
        centred: bool,
    ) -> None: ...

class QuantizeGroups:
    def __init__(
        self,
        *,
        x: int,
        bf16: bool,
        x_stride: int,
        k: int,
        group: int,
        by_row: bool,
        shift: int,
        multiplier: int,
        codes: int,
        code_stride: int,
        scale: int,
        sum: int,
        group_stride: int,
    ) -> None: ...

class QuantizeRows:
    def __init__(
        self,
        *,
        x: int,
        bf16: bool,
        x_stride: int,
        k: int,
        shift: int,
        multiplier: int,
        codes: int,
        code_stride: int,
        scale: int,
        zero_point: int,
        mode: QuantizeMode,
        static_scale: float,
        static_zero_point: int,
        code_min: int,
    ) -> None: ...

def attention(
    variant: str,
    op: Attention,
    head_begin: int,
    head_end: int,
    query_begin: int,
    query_end: int,
    scratch: int,
    /,
) -> None: ...
def attention_int8(
    variant: str,
    op: Attention,
    head_begin: int,
    head_end: int,
    query_begin: int,
    query_end: int,
    scratch: int,
    /,
) -> None: ...
def append_cached(
    variant: str, op: AppendCached, token_begin: int, token_end: int, head_begin: int, head_end: int, /
) -> None: ...
def attend_cached(
    variant: str, op: AttendCached, head: int, line_begin: int, line_end: int, part: int, partials: int, /
) -> None: ...
def merge_cached(
    variant: str,
    op: AttendCached,
    head: int,
    line_begin: int,
    line_end: int,
    parts: int,
    partials: int,
    part_stride: int,
    /,
) -> None: ...
def quantize_groups(variant: str, op: QuantizeGroups, row_begin: int, row_end: int, /) -> None: ...
def quantize_rows(variant: str, op: QuantizeRows, row_begin: int, row_end: int, /) -> None: ...
def register_torch(libtorch_cpu: str, isa: Isa, /) -> None: ...
def quantize_linear_w8a8(isa: Isa, threads: int, op: QuantizeLinearW8A8, /) -> None: ...
def linear_w8a8(
    variant: str, op: LinearW8A8, row_begin: int, row_end: int, block_begin: int, block_end: int, /
) -> None: ...
def linear_w4a8(
    variant: str, op: LinearW4A8, row_begin: int, row_end: int, block_begin: int, block_end: int, /
) -> None: ...
def prepare_w4a16(variant: str, op: PrepareW4A16, row_begin: int, row_end: int, /) -> None: ...
def linear_w4a16(
    variant: str, op: LinearW4A16, row_begin: int, row_end: int, block_begin: int, block_end: int, /
) -> None: ...
def linear_bf16(
    variant: str, op: LinearBf16, row_begin: int, row_end: int, block_begin: int, block_end: int, /
) -> None: ...
def unpack_wna16(variant: str, weight: Wna16, block: int, count: int, panel: int, /) -> None: ...
def linear_wna16(
    isa: Isa, op: LinearWna16, row_begin: int, row_end: int, block_begin: int, block_end: int, scratch: int, /
) -> None: ...
def add_gram(isa: Isa, threads: int, op: Gram, /) -> None: ...
def norm(variant: str, op: Norm, row_begin: int, row_end: int, /) -> None: ...
def embed_row(variant: str, row: EmbedRow, y: int, n: int, /) -> None: ...
def round_row(variant: str, x: int, y: int, n: int, /) -> None: ...
def activate_row(variant: str, x: int, bf16: bool, function: Function, n: int, /) -> None: ...
def gate_row(variant: str, a: int, b: int, function: Function, y: int, n: int, /) -> None: ...
def rotate_row(variant: str, x: int, heads: int, head_size: int, size: int, cos: int, sin: int, /) -> None: ...
def convolve_row(variant: str, row: ConvolveRow, before: list[int], n: int, /) -> None: ...
def peak_int8_gops(isa: Isa, repeats: int, /) -> float: ...
def set_processors(count: int, /) -> None: ...
def row_bytes(kind: BufferKind, width: int, group: int, /) -> int: ...

class Buffer:
    def __init__(self, *, kind: BufferKind, width: int, offset: int, per: Per, group: int) -> None: ...

class InputGrid:
    def __init__(
        self, *, shift: int, multiplier: int, mode: QuantizeMode, static_scale: float, static_zero_point: int,
        code_min: int,
    ) -> None: ...  # fmt: skip

class Embed:
    def __init__(
        self, *, words: int, kind: WordKind, word_scale: int, positions: int, first_position: int, padding: int,
        types: int, factor: float, out: int,
    ) -> None: ...  # fmt: skip

class NormRows:
    def __init__(
        self, *, x: int, residual: int, sum: int, y: int, codes: int, weight: int, bias: int, eps: float,
        centred: bool, residual_after: bool, grid: InputGrid | None,
    ) -> None: ...  # fmt: skip

class NormColumns:
    def __init__(self, *, rows: int, column: int, n: int, weight: int, eps: float) -> None: ...

class Quantize:
    def __init__(self, *, source: int, out: int, grid: InputGrid) -> None: ...

class Round:
    def __init__(self, *, source: int, out: int, on_grid: bool, grid: InputGrid | None) -> None: ...

class MultiplyW8A8:
    def __init__(
        self, *, source: int, out: int, column: int, n: int, linears: int, weight: int, colsum: int, scale_n: int,
        bias: int, activation: Activation, grid: InputGrid | None,
    ) -> None: ...  # fmt: skip

class MultiplyBf16:
    def __init__(
        self, *, source: int, out: int, column: int, n: int, weight: int, bias: int, activation: Activation
    ) -> None: ...

class MultiplyW4A8:
    def __init__(
        self, *, source: int, out: int, column: int, n: int, linears: int, weight: Wna8, bias: int,
        activation: Activation,
    ) -> None: ...  # fmt: skip

class MultiplyWna16:
    def __init__(
        self, *, source: int, out: int, column: int, n: int, weight: Wna16, bias: int, activation: Activation
    ) -> None: ...

class Attend:
    def __init__(
        self, *, source: int, out: int, heads: int, head_size: int, scale: float, bias: int, bias_stride: int,
        window: int, integer: bool,
    ) -> None: ...  # fmt: skip

class AttendDisentangled:
    def __init__(
        self, *, source: int, out: int, heads: int, head_size: int, scale: float, key_table: int, query_table: int,
        table_rows: int, row: int, integer: bool,
    ) -> None: ...  # fmt: skip

class Pool:
    def __init__(self, *, source: int, out: int, mode: PoolMode, column: int) -> None: ...

class Normalize:
    def __init__(self, *, rows: int) -> None: ...

class Activate:
    def __init__(self, *, rows: int, function: Function) -> None: ...

class Rotate:
    def __init__(self, *, rows: int, heads: int, head_size: int, cos: int, sin: int) -> None: ...

class Gate:
    def __init__(self, *, source: int, out: int, function: Function, grid: InputGrid | None) -> None: ...

class Add:
    def __init__(self, *, rows: int, source: int) -> None: ...

class Softcap:
    def __init__(self, *, rows: int, cap: float) -> None: ...

class AttendPast:
    def __init__(
        self, *, source: int, out: int, heads: int, kv_heads: int, head_size: int, scale: float, softcap: float,
        window: int, causal: bool, sinks: int, kind: CacheKind, layer: int, q_weight: int, k_weight: int, eps: float,
        rotary: int, interleaved: bool, cos: int, sin: int,
    ) -> None: ...  # fmt: skip

class ConvolvePast:
    def __init__(self, *, source: int, out: int, taps: int, rows: int, layer: int, weight: int, bias: int) -> None: ...

class Select:
    def __init__(self, *, source: int, out: int) -> None: ...

class Repeat:
    def __init__(self, *, source: int, out: int) -> None: ...

class Batch:
    def __init__(
        self, *, ids: int, types: int, starts: int, sequences: int, past: int, outputs: int, output_count: int,
        cache: int, block_count: int, tables: int, table_stride: int,
    ) -> None: ...  # fmt: skip

class Program:
    def __init__(self, isa: Isa, buffers: list[Buffer], arena_row: int, out: int, group_tokens: int) -> None: ...
    def add(
        self,
        op: Embed
        | NormRows
        | NormColumns
        | Quantize
        | Round
        | MultiplyW8A8
        | MultiplyBf16
        | MultiplyWna16
        | Attend
        | AttendDisentangled
        | Pool
        | Normalize
        | Activate
        | Gate
        | Rotate
        | Add,
        /,
    ) -> None: ...
    def run(self, batch: Batch, threads: int, out: int, seconds: int) -> bool: ...
    @property
    def memory(self) -> int: ...
