def isas() -> list[tuple[str, bool]]: ...
def cpu_features() -> list[tuple[str, bool]]: ...
def kernel_calls() -> int: ...
def max_threads() -> int: ...
def code_stride(k: int, /) -> int: ...
def scratch_bytes(m: int, k: int, /) -> int: ...
def quantize_rows(
    isa: int,
    x: int,
    x_stride: int,
    m: int,
    k: int,
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
    x_stride: int,
    m: int,
    k: int,
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
    isa: int,
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
    row_begin: int,
    row_end: int,
    block_begin: int,
    block_end: int,
    /,
) -> None: ...
def peak_int8_gops(isa: int, repeats: int, /) -> float: ...
