"""Linears: one operator for each way of holding a weight, and that weight as its kernel takes it.

Several linears of a model that read the same input and are held alike are one operator, side by side.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from bitwright.engine.ops.binder import Binder
from bitwright.engine.ops.buffers import READ, WRITTEN, Buffer
from bitwright.engine.ops.inputs import PaddedTransform, bind_input
from bitwright.kernels.input_grid import InputGrid

Activation = Literal["none", "gelu"]


class PackedW8A8(NamedTuple):
    """codes: `layouts.pack`. colsum, int32, scale, bias, float32: a value for each column, padded to whole blocks."""

    codes: np.ndarray
    colsum: np.ndarray
    scale: np.ndarray
    bias: np.ndarray


class PackedBf16(NamedTuple):
    """values: `layouts.pack_bf16`. bias: float32, a value for each column, padded to whole blocks."""

    values: np.ndarray
    bias: np.ndarray


class PackedWna16(NamedTuple):
    """codes: `layouts.pack_int4` of the indices of levels, float32 (16,); or `layouts.pack`, and levels None.

    scale, float32, and zero, int8 or None: `layouts.pack_groups`, one for each group of `group` inputs. bias: float32,
    a value for each column, padded to whole blocks.
    """

    codes: np.ndarray
    levels: np.ndarray | None
    scale: np.ndarray
    zero: np.ndarray | None
    bias: np.ndarray
    group: int


Packed = PackedW8A8 | PackedBf16 | PackedWna16


def _products(op: "Multiply", tokens: int) -> int:
    return 2 * (1 if op.source.per_sequence else tokens) * op.source.width * op.n


def _shape(op: "Multiply") -> str:
    return f"{op.source.width}→{op.n} {op.dtype}{f' {op.activation}' * (op.activation != 'none')}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MultiplyW8A8:
    """codes -> f32, bf16 or codes: int8 × int8, then bias and GELU, into columns [column, column + n) of out.

    grid, transform: of an `out` that holds codes; the grid is static. linears: how many of the model it stands for.
    """

    kind: ClassVar[str] = "linear"
    dtype: ClassVar[str] = "int8"
    name: str
    source: Buffer = field(metadata=READ)
    out: Buffer = field(metadata=WRITTEN)
    column: int
    n: int
    weight: PackedW8A8
    activation: Activation
    linears: int
    grid: InputGrid | None = None
    transform: PaddedTransform | None = None

    operations = _products

    def text(self) -> str:
        return f"{_shape(self)}{' static' * (self.grid is not None)}"

    def bind(self, to: Binder) -> object:
        return to.native.MultiplyW8A8(
            source=to.buffer(self.source),
            out=to.buffer(self.out),
            column=self.column,
            n=self.n,
            linears=self.linears,
            weight=to.array(self.weight.codes),
            colsum=to.array(self.weight.colsum),
            scale_n=to.array(self.weight.scale),
            bias=to.array(self.weight.bias),
            activation=to.native.Activation[self.activation],
            grid=bind_input(to, self.grid, self.transform),
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MultiplyBf16:
    """bf16 -> f32 or bf16: bf16 × bf16, then bias and GELU, into columns [column, column + n) of out."""

    kind: ClassVar[str] = "linear"
    dtype: ClassVar[str] = "bf16"
    name: str
    source: Buffer = field(metadata=READ)
    out: Buffer = field(metadata=WRITTEN)
    column: int
    n: int
    weight: PackedBf16
    activation: Activation

    text = _shape
    operations = _products

    def bind(self, to: Binder) -> object:
        return to.native.MultiplyBf16(
            source=to.buffer(self.source),
            out=to.buffer(self.out),
            column=self.column,
            n=self.n,
            weight=to.array(self.weight.values),
            bias=to.array(self.weight.bias),
            activation=to.native.Activation[self.activation],
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MultiplyWna16:
    """bf16 -> f32 or bf16: codes of 4 or 8 bits, bf16 on the way, × bf16, then bias and GELU, into columns
    [column, column + n) of out. dtype: what the codes are, for people."""

    kind: ClassVar[str] = "linear"
    name: str
    source: Buffer = field(metadata=READ)
    out: Buffer = field(metadata=WRITTEN)
    column: int
    n: int
    weight: PackedWna16
    activation: Activation
    dtype: str

    text = _shape
    operations = _products

    def bind(self, to: Binder) -> object:
        weight = to.native.Wna16(
            codes=to.array(self.weight.codes),
            levels=to.array(self.weight.levels),
            scale=to.array(self.weight.scale),
            zero=to.array(self.weight.zero),
            k=self.source.width,
            group=self.weight.group,
        )
        return to.native.MultiplyWna16(
            source=to.buffer(self.source),
            out=to.buffer(self.out),
            column=self.column,
            n=self.n,
            weight=weight,
            bias=to.array(self.weight.bias),
            activation=to.native.Activation[self.activation],
        )


Multiply = MultiplyW8A8 | MultiplyBf16 | MultiplyWna16
