def isas() -> list[tuple[str, bool]]: ...
def cpu_features() -> list[tuple[str, bool]]: ...
def kernel_calls() -> int: ...
def max_threads() -> int: ...
def code_stride(k: int, /) -> int: ...
def scratch_bytes(m: int, k: int, /) -> int: ...
def w8a8_variants() -> list[tuple[str, bool]]: ...
def attention_variants() -> list[tuple[str, bool]]: ...
def attention_scratch_bytes(tokens: int, head_size: int, /) -> int: ...
def attention(
    variant: int,
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
    scratch: int,
    head_begin: int,
    head_end: int,
    query_begin: int,
    query_end: int,
    /,
) -> None: ...
def quantize_rows(
    isa: int,
    x: int,
    bf16: bool,
    x_stride: int,
    m: int,
    k: int,
    shift: int,
    multiplier: int,
    mode: int,
    static_scale: float,
    static_zero_point: int,
    code_min: int,
    codes: int,
    code_stride: int,
    scale: int,
    zero_point: int,
    row_begin: int,
    /,
) -> None: ...
def linear_w8a8(
    isa: int,
    threads: int,
    x: int,
    bf16: bool,
    x_stride: int,
    m: int,
    k: int,
    shift: int,
    multiplier: int,
    mode: int,
    static_scale: float,
    static_zero_point: int,
    code_min: int,
    scratch: int,
    weight: int,
    colsum: int,
    scale_n: int,
    bias: int,
    y: int,
    n: int,
    gelu: bool,
    /,
) -> None: ...
def multiply_w8a8(
    variant: int,
    codes: int,
    code_stride: int,
    scale_m: int,
    zero_m: int,
    k: int,
    weight: int,
    colsum: int,
    scale_n: int,
    bias: int,
    y: int,
    sums: int,
    out_stride: int,
    n: int,
    gelu: bool,
    bf16: bool,
    grid: tuple[int, int, float, int, int] | None,
    row_begin: int,
    row_end: int,
    block_begin: int,
    block_end: int,
    /,
) -> None: ...
def linear_bf16(
    isa: int,
    widen: bool,
    x: int,
    x_stride: int,
    k: int,
    weight: int,
    bias: int,
    y: int,
    out_stride: int,
    n: int,
    gelu: bool,
    bf16: bool,
    row_begin: int,
    row_end: int,
    block_begin: int,
    block_end: int,
    /,
) -> None: ...
def wna16_scratch_bytes(k: int, /) -> int: ...
def unpack_wna16(
    isa: int,
    codes: int,
    levels: int,
    scale: int,
    zero: int,
    k: int,
    group: int,
    block: int,
    count: int,
    panel: int,
    /,
) -> None: ...
def linear_wna16(
    isa: int,
    x: int,
    x_stride: int,
    k: int,
    codes: int,
    levels: int,
    scale: int,
    zero: int,
    group: int,
    bias: int,
    y: int,
    out_stride: int,
    n: int,
    gelu: bool,
    bf16: bool,
    scratch: int,
    row_begin: int,
    row_end: int,
    block_begin: int,
    block_end: int,
    /,
) -> None: ...
def gram_scratch_bytes(m: int, k: int, /) -> int: ...
def has_gram(isa: int, /) -> bool: ...
def add_gram(
    isa: int,
    threads: int,
    x: int,
    bf16: bool,
    x_stride: int,
    m: int,
    k: int,
    scratch: int,
    low: int,
    high: int,
    sum: int,
    sum_abs: int,
    gram: int,
    /,
) -> None: ...
def norm(
    isa: int,
    x: int,
    residual: int,
    sum: int,
    y: int,
    weight: int,
    bias: int,
    stride: int,
    n: int,
    eps: float,
    row_begin: int,
    row_end: int,
    /,
) -> None: ...
def embed_row(isa: int, word: int, kind: int, scale: float, position: int, type: int, y: int, n: int, /) -> None: ...
def round_row(isa: int, x: int, y: int, n: int, /) -> None: ...
def activate_row(isa: int, x: int, bf16: bool, function: int, n: int, /) -> None: ...
def gate_row(isa: int, a: int, b: int, y: int, n: int, /) -> None: ...
def rotate_row(isa: int, x: int, heads: int, head_size: int, cos: int, sin: int, /) -> None: ...
def peak_int8_gops(isa: int, repeats: int, /) -> float: ...
def row_bytes(kind: int, width: int, /) -> int: ...

_Grid = tuple[int, int, int, float, int, int]

class Program:
    def __init__(
        self, isa: int, buffers: list[tuple[int, int, int, bool]], arena_row: int, out: int, group_tokens: int, /
    ) -> None: ...
    def embed(
        self, words: int, word_scale: int, bf16: bool, positions: int, first: int, types: int, out: int, /
    ) -> None: ...
    def norm(
        self, x: int, residual: int, sum: int, y: int, codes: int, weight: int, bias: int, eps: float, grid: _Grid, /
    ) -> None: ...
    def quantize(self, source: int, out: int, grid: _Grid, /) -> None: ...
    def round(self, source: int, out: int, on_grid: bool, grid: _Grid, /) -> None: ...
    def linear_w8a8(
        self, source: int, out: int, column: int, n: int, linears: int, weight: int, colsum: int, scale: int,
        bias: int, gelu: bool, grid: _Grid, /,
    ) -> None: ...  # fmt: skip
    def linear_bf16(
        self, source: int, out: int, column: int, n: int, weight: int, bias: int, gelu: bool, /
    ) -> None: ...
    def linear_wna16(
        self, source: int, out: int, column: int, n: int, group: int, codes: int, levels: int, scale: int, zero: int,
        bias: int, gelu: bool, /,
    ) -> None: ...  # fmt: skip
    def attention(
        self, source: int, out: int, heads: int, head_size: int, scale: float, bias: int, bias_stride: int,
        window: int, /,
    ) -> None: ...  # fmt: skip
    def attention_disentangled(
        self, source: int, out: int, heads: int, head_size: int, scale: float, key_table: int, query_table: int,
        table_rows: int, row: int, /,
    ) -> None: ...  # fmt: skip
    def pool(self, source: int, out: int, mode: int, column: int, /) -> None: ...
    def normalize(self, rows: int, /) -> None: ...
    def activate(self, rows: int, function: int, /) -> None: ...
    def rotate(self, rows: int, heads: int, head_size: int, cos: int, sin: int, /) -> None: ...
    def gate(self, source: int, out: int, /) -> None: ...
    def run(
        self, ids: int, types: int, starts: int, sequences: int, threads: int, out: int, seconds: int, /
    ) -> bool: ...
    @property
    def memory(self) -> int: ...
