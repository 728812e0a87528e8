"""The operators of a program: a frozen record each, which holds its buffers, numbers and constants, and knows

    kind, text()          what it is and what it does on the way, as `bitwright inspect --program` prints them
    operations(tokens)    multiplications and additions for one sequence of this many tokens; 0 where they do not count
    bind(to)              the struct of the same name that the native module runs (csrc/engine/program.h)

    record                kind       reads          writes                what
    Embed                 embed      -              f32                   word + position + type embedding of a token
    NormRows              norm       f32 [f32]      f32 [codes] [f32]     layer norm of a sum, and its quantized rows
    NormColumns           norm       bf16           in place              RMSNorm of some columns of a row
    Quantize              quantize   f32 or bf16    codes or groups       rows -> 8-bit codes, by rows or by groups
    Round                 round      f32 or bf16    bf16                  rows through a transform, to a grid, to bf16
    MultiplyW8A8          linear     codes          f32, bf16 or codes    int8 x int8; codes on a static grid
    MultiplyBf16          linear     bf16           f32 or bf16           bf16 x bf16
    MultiplyW4A8          linear     groups         f32 or bf16           1 to 4 bits × int8, by groups of K
    MultiplyWna16         linear     bf16           f32 or bf16           codes of other grids, in 4 or 8 bits, x bf16
    Attend                attention  bf16           bf16                  softmax(q kᵀ + bias) v of each head
    AttendDisentangled    attention  bf16           bf16                  the same, with what DeBERTa knows of positions
    AttendPast            attention  bf16           bf16                  the same of new tokens, over a cache
    ConvolvePast          convolve   bf16           bf16                  a gated convolution over time, with a cache
    Rotate                rotate     bf16           in place              q and k by position
    Gate                  gate       bf16           bf16, codes, groups   f(a) · b of a row's halves a, b
    Repeat                repeat     f32 or bf16    the same              each row twice, side by side
    Select                select     f32            f32, per output       the rows whose output is wanted
    Add                   add        f32, f32       in place              the sum of rows
    Softcap               softcap    f32            in place              cap · tanh(x / cap)
    Activate              activate   f32 or bf16    in place              an elementwise function
    Pool                  pool       f32            f32, per sequence     one row for each sequence
    Normalize             normalize  f32            in place              rows to unit length

A linear adds its bias and may apply GELU.
"""

from bitwright.engine.ops.attend import Attend, AttendDisentangled, AttendPast, Rotate
from bitwright.engine.ops.convolve import ConvolvePast
from bitwright.engine.ops.multiply import Multiply, MultiplyBf16, MultiplyW4A8, MultiplyW8A8, MultiplyWna16
from bitwright.engine.ops.rows import (
    Activate,
    Add,
    Embed,
    Gate,
    Normalize,
    NormColumns,
    NormRows,
    Pool,
    Quantize,
    Repeat,
    Round,
    Select,
    Softcap,
)

__all__ = [
    "Activate",
    "Add",
    "Attend",
    "AttendDisentangled",
    "AttendPast",
    "ConvolvePast",
    "Embed",
    "Gate",
    "Multiply",
    "MultiplyBf16",
    "MultiplyW4A8",
    "MultiplyW8A8",
    "MultiplyWna16",
    "NormColumns",
    "NormRows",
    "Normalize",
    "Op",
    "Pool",
    "Quantize",
    "Repeat",
    "Rotate",
    "Round",
    "Select",
    "Softcap",
]

Op = (
    Embed | NormRows | NormColumns | Quantize | Round | MultiplyW8A8 | MultiplyBf16 | MultiplyW4A8 | MultiplyWna16
    | Attend | AttendDisentangled | AttendPast | ConvolvePast | Rotate | Gate | Select | Repeat | Activate | Add
    | Softcap | Pool | Normalize
)  # fmt: skip
