"""`Program`: a model as a list of operators over buffers, with a static memory plan. Builders write it, one native call
runs it.

    op          reads          writes                what
    embed       -              f32                   word + position + type embedding of each token
    norm        f32 [f32]      f32 [f32] [codes]     layer norm of a sum, and its quantized rows
    quantize    f32 or bf16    codes                 rows -> 8-bit codes with a scale and a zero point
    round       f32 or bf16    bf16                  rows through an input transform, or to a grid, or only to bf16
    linear      codes          f32, bf16 or codes    int8 x int8, then bias and GELU; codes on a static grid
    linear      bf16           f32 or bf16           bf16 x bf16, then bias and GELU; weights of other grids, held in
                                                     4 or 8 bits, become bf16 on the way
    attention   bf16           bf16                  softmax(q kᵀ + bias) v of each head; a row holds q, k and v
    rotate      bf16           in place              q and k by position
    gate        bf16           bf16                  the product of a row's halves
    activate    f32 or bf16    in place              an elementwise function
    pool        f32            f32, per sequence     one row for each sequence
    normalize   f32            in place              rows to unit length

A buffer has a row for each token, or for each sequence. Buffers that are never alive together share memory.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any, Literal

import numpy as np

from bitwright.errors import ModelError

Kind = Literal["f32", "bf16", "codes"]
KINDS: tuple[Kind, ...] = ("f32", "bf16", "codes")  # as in csrc/engine/program.h
NOT_ROUNDED = -1


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """How float rows become codes (`quantize_rows/contract.h`).

    mode: 0 asymmetric, 1 symmetric, both dynamic per row; 2 static, with this scale and zero point; NOT_ROUNDED, the
    transform alone. code_min: -128, or -127 on a symmetric grid. shift_K, multiplier_K: the transform, both or neither,
    float32, padded to a multiple of 64.
    """

    mode: int
    scale: float = 1.0
    zero_point: int = 0
    code_min: int = -128
    shift_K: np.ndarray | None = None
    multiplier_K: np.ndarray | None = None


def same_grid(a: Grid | None, b: Grid | None) -> bool:
    """Whether both make the same of a row."""
    if a is None or b is None:
        return a is b
    numbers = ("mode", "scale", "zero_point", "code_min")
    return (
        all(getattr(a, name) == getattr(b, name) for name in numbers)
        and same_values(a.shift_K, b.shift_K)
        and same_values(a.multiplier_K, b.multiplier_K)
    )


def same_values(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    """Whether both are left out, or equal."""
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


@dataclass(frozen=True, slots=True)
class Buffer:
    """Rows of `width` values each, one row per token or per sequence."""

    index: int
    kind: Kind
    width: int
    per_sequence: bool = False


@dataclass(slots=True, eq=False)
class Op:
    """One operator. reads, writes: buffers; None where an optional one is left out. settings: numbers and grids, as the
    native side takes them. weights: constants, by their role."""

    kind: str
    name: str
    reads: tuple[Buffer | None, ...]
    writes: tuple[Buffer | None, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, np.ndarray | None] = field(default_factory=dict)

    def operations(self, tokens: int) -> int:
        """Multiplications and additions for one sequence of this many tokens; 0 where they do not count."""
        if self.kind == "linear":
            source = self.reads[0]
            assert source is not None
            return 2 * (1 if source.per_sequence else tokens) * source.width * int(self.settings["n"])
        if self.kind == "attention":
            products = 2 * tokens  # with keys, of values with weights; then with the rows of tables in use
            row = self.weights.get("row")
            if row is not None:
                used = int(row[len(row) // 2 + tokens - 1] - row[len(row) // 2 - tokens + 1]) + 1
                products += used * sum(self.weights[kind] is not None for kind in ("keys", "queries"))
            return 2 * tokens * products * int(self.settings["heads"]) * int(self.settings["head_size"])
        return 0


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """What the executor runs.

    output: the buffer that a run returns. max_tokens: of a sequence. vocabulary: token ids below it exist. types: token
    types below it exist.
    """

    ops: tuple[Op, ...]
    buffers: tuple[Buffer, ...]
    output: Buffer
    max_tokens: int
    vocabulary: int
    types: int = 1

    @property
    def folded(self) -> int:
        """Runs of int8 linears that a forward of the model has and the program does not: their result is a constant."""
        return sum(op.settings.get("folded", 0) for op in self.ops)

    def text(self) -> str:
        """The operators, a line each, by the block that they belong to; then the buffers."""
        lines, before = [], None
        for number, op in enumerate(self.ops):
            block, name = _split(op.name)
            if block != before and block:
                lines.append(block)
            before = block
            places = f"{_names(op.reads)} → {_names(op.writes)}"
            lines.append(f"{number:>4} {op.kind:<10}{places:<15} {_what(op):<18} {name}".rstrip())
        buffers = ", ".join(f"{_name(b)} {b.kind}[{b.width}]" for b in self.buffers)
        per = "a row per token (t) or per sequence (s)"
        return "\n".join([*lines, *wrap(f"buffers, {per}: {buffers}", 80)])


def place_buffers(
    ops: Sequence[Op], buffers: Sequence[Buffer], output: Buffer, row_bytes: Mapping[int, int]
) -> tuple[list[int], int]:
    """Offsets of the buffers in the arena, and its size, all in bytes per row: first fit, in the order of first use.

    row_bytes: of each buffer.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {output.index: len(ops)}
    for number, op in enumerate(ops):
        for buffer in _present((*op.reads, *op.writes)):
            first.setdefault(buffer.index, number)
            last[buffer.index] = max(last.get(buffer.index, 0), number)
    offsets, size = [0] * len(buffers), 0
    placed: list[Buffer] = []
    for buffer in sorted(buffers, key=lambda b: (first[b.index], -row_bytes[b.index])):
        index = buffer.index
        alive = [b.index for b in placed if first[b.index] <= last[index] and first[index] <= last[b.index]]
        offset = 0
        for begin, end in sorted((offsets[other], offsets[other] + row_bytes[other]) for other in alive):
            if offset + row_bytes[index] <= begin:
                break
            offset = max(offset, end)
        offsets[index] = offset
        size = max(size, offset + row_bytes[index])
        placed.append(buffer)
    return offsets, size


def check(program: Program) -> None:
    """Raises:
    ModelError: an operator reads what none has written, or shapes or kinds do not fit.
    """
    written: set[int] = set()
    for op in program.ops:
        for buffer in _present(op.reads):
            if buffer.index not in written:
                raise ModelError(f"{op.name}: {op.kind} reads {_name(buffer)}, which nothing has written")
        written |= {buffer.index for buffer in _present(op.writes)}
    if program.output.index not in written or program.output.kind != "f32":
        raise ModelError(f"the output {_name(program.output)} is not f32, or nothing writes it")


def _present(buffers: Iterable[Buffer | None]) -> list[Buffer]:
    return [buffer for buffer in buffers if buffer is not None]


def _name(buffer: Buffer) -> str:
    return f"{'s' if buffer.per_sequence else 't'}{buffer.index}"


def _names(buffers: Iterable[Buffer | None]) -> str:
    return " ".join(_name(buffer) for buffer in _present(buffers)) or "-"


def _split(name: str) -> tuple[str, str]:
    """(block, the rest) of an operator's name, which may be that of several linears: "a.0.b.c, a.0.b.d" is "a.0" and
    "b.c, d"."""
    first, *others = name.split(", ")
    found = re.match(r"(.*?\.\d+)(?:\.|$)(.*)", first)
    block, rest = (found[1], found[2]) if found else ("", first)
    return block, ", ".join([rest, *(other.rpartition(".")[2] for other in others)])


def _what(op: Op) -> str:
    """The shape of an operator and what it does on the way."""
    settings = op.settings
    if op.kind == "linear":
        source = op.reads[0]
        assert source is not None
        codes = " static" * (settings["grid"] is not None)
        return f"{source.width}→{settings['n']} {settings['dtype']}{' gelu' * settings['gelu']}{codes}"
    if op.kind == "attention":
        shape, found = f"{settings['heads']} × {settings['head_size']}", op.weights.get
        window = "" if settings.get("window") is None else f" ±{settings['window']}"
        tables = " c2p" * (found("keys") is not None) + " p2c" * (found("queries") is not None)
        return f"{shape}{window}{' biased' * (found('bias') is not None)}{tables}"
    if op.kind in ("norm", "quantize", "round") and settings["grid"] is not None:
        return {0: "asymmetric", 1: "symmetric", 2: "static", NOT_ROUNDED: "transform"}[settings["grid"].mode]
    return str(settings.get("function", ""))
