"""`Program`: a model as a list of operators (`engine/ops`) over buffers, with a static memory plan. Builders write it,
one native call runs it.

A buffer has a row for each token, for each sequence, or for each token whose output is wanted. Buffers that are never
alive together share memory.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from bitwright.engine.cache_layout import CacheLayer, ConvolutionLayer
from bitwright.engine.ops import Attend, AttendDisentangled, MultiplyW4A8, Op
from bitwright.engine.ops.buffers import Buffer, reads, writes
from bitwright.errors import ModelError


class Program(NamedTuple):
    """What the executor runs.

    output: the buffer that a run returns. max_tokens: of a sequence. vocabulary: token ids below it exist. types: token
    types below it exist. layers: of the cache of a program with state, else none. passing: what a program without state
    holds of keys and values, in one layer at a time; None where its attention is that of encoders.
    """

    ops: tuple[Op, ...]
    buffers: tuple[Buffer, ...]
    output: Buffer
    max_tokens: int
    vocabulary: int
    types: int = 1
    layers: tuple[CacheLayer | ConvolutionLayer, ...] = ()
    passing: CacheLayer | None = None

    @property
    def folded(self) -> int:
        """Runs of int8 linears that a forward of the model has and the program does not: their result is a constant."""
        return sum(op.folded for op in self.ops if isinstance(op, AttendDisentangled))

    @property
    def added(self) -> int:
        """Runs of integer linears that the program has, and whose inputs a forward of the model leaves in 16 bits."""
        return sum(op.linears for op in self.ops if isinstance(op, MultiplyW4A8) and op.added)

    @property
    def int8_attention(self) -> tuple[bool, ...]:
        """Of each operator of attention, in their order, whether it computes in int8."""
        return tuple(op.integer for op in self.ops if isinstance(op, Attend | AttendDisentangled))

    def text(self) -> str:
        """The operators, a line each, by the block that they belong to; then the buffers."""
        from textwrap import wrap  # a program runs without it

        lines, before = [], None
        for number, op in enumerate(self.ops):
            block, name = _split(op.name)
            if block != before and block:
                lines.append(block)
            before = block
            places = f"{_names(reads(op))} → {_names(writes(op))}"
            lines.append(f"{number:>4} {op.kind:<10}{places:<15} {op.text():<18} {name}".rstrip())
        buffers = ", ".join(f"{_name(b)} {b.kind}[{b.width}]" for b in self.buffers)
        per = "a row per token (t), sequence (s) or wanted output (o)"
        return "\n".join([*lines, *wrap(f"buffers, {per}: {buffers}", 80)])


def place_buffers(
    ops: Sequence[Op], buffers: Sequence[Buffer], output: Buffer, row_bytes: Mapping[int, int]
) -> tuple[list[int], int]:
    """Offsets of the buffers in the arena, and its size, all in bytes per row: first fit, in the order of first use.

    row_bytes: of each buffer.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {output.number: len(ops)}
    for step, op in enumerate(ops):
        for buffer in (*reads(op), *writes(op)):
            first.setdefault(buffer.number, step)
            last[buffer.number] = max(last.get(buffer.number, 0), step)
    offsets, size = [0] * len(buffers), 0
    placed: list[Buffer] = []
    for buffer in sorted(buffers, key=lambda b: (first[b.number], -row_bytes[b.number])):
        index = buffer.number
        alive = [b.number for b in placed if first[b.number] <= last[index] and first[index] <= last[b.number]]
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
        for buffer in reads(op):
            if buffer.number not in written:
                raise ModelError(f"{op.name}: {op.kind} reads {_name(buffer)}, which nothing has written")
        written |= {buffer.number for buffer in writes(op)}
    if program.output.number not in written or program.output.kind != "f32":
        raise ModelError(f"the output {_name(program.output)} is not f32, or nothing writes it")


def _name(buffer: Buffer) -> str:
    return f"{buffer.per[0]}{buffer.number}"


def _names(buffers: Iterable[Buffer]) -> str:
    return " ".join(map(_name, buffers)) or "-"


def _split(name: str) -> tuple[str, str]:
    """(block, the rest) of an operator's name, which may be that of several linears: "a.0.b.c, a.0.b.d" is "a.0" and
    "b.c, d"."""
    first, *others = name.split(", ")
    found = re.match(r"(.*?\.\d+)(?:\.|$)(.*)", first)
    block, rest = (found[1], found[2]) if found else ("", first)
    return block, ", ".join([rest, *(other.rpartition(".")[2] for other in others)])
