"""Linears: one operator for each way of holding a weight, and that weight as its kernel takes it.

Several linears of a model that read the same input and are held alike are one operator, side by side.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

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


class PackedW4A8(NamedTuple):
    """codes: `layouts.pack_wna8` of so many bits; of 4 they may be indices of levels, int8 (16,), or None.

    scale: `layouts.pack_groups` of the bits of bf16, uint16, or of float32; minimum: likewise, or None. zero: of uint8,
    or None for 2^(bits − 1), with minima for 0; of 1 bit 0 stands for −1. bias: float32,
    a value for each column, padded to whole blocks.

    group: inputs that share a scale of the input. per: such groups that share a scale of the weight.
    """

    codes: np.ndarray
    bits: int
    levels: np.ndarray | None
    scale: np.ndarray
    zero: np.ndarray | None
    minimum: np.ndarray | None
    bias: np.ndarray
    group: int
    per: int


Packed = PackedW8A8 | PackedBf16 | PackedWna16 | PackedW4A8


def _products(op: "Multiply", tokens: int) -> int:
    return 2 * (tokens if op.source.per == "token" else 1) * op.source.width * op.n


def _places(op: "Multiply", to: Binder) -> dict[str, Any]:
    """What the structs of all linears have."""
    return {
        "source": to.buffer(op.source),
        "out": to.buffer(op.out),
        "column": op.column,
        "n": op.n,
        "activation": to.native.Activation[op.activation],
    }


def _grouped(op: "MultiplyWna16 | MultiplyW4A8", to: Binder) -> dict[str, Any]:
    """What the structs of weights with scales for groups have."""
    weight = op.weight
    return {
        "codes": to.array(weight.codes),
        "scale": to.array(weight.scale),
        "zero": to.array(weight.zero),
        "k": op.source.width,
        "group": weight.group,
    }


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
            **_places(self, to),
            linears=self.linears,
            weight=to.array(self.weight.codes),
            colsum=to.array(self.weight.colsum),
            scale_n=to.array(self.weight.scale),
            bias=to.array(self.weight.bias),
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
            **_places(self, to),
            weight=to.array(self.weight.values),
            bias=to.array(self.weight.bias),
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
        weight = to.native.Wna16(levels=to.array(self.weight.levels), **_grouped(self, to))
        return to.native.MultiplyWna16(**_places(self, to), weight=weight, bias=to.array(self.weight.bias))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MultiplyW4A8:
    """groups -> f32 or bf16: codes of 1 to 4 bits × int8 by groups, then bias and GELU, into columns [column,
    column + n).

    linears: how many of the model it stands for. dtype: what the codes are, for people. added: whether the checkpoint
    leaves its inputs in 16 bits.
    """

    kind: ClassVar[str] = "linear"
    name: str
    dtype: str
    source: Buffer = field(metadata=READ)
    out: Buffer = field(metadata=WRITTEN)
    column: int
    n: int
    weight: PackedW4A8
    activation: Activation
    linears: int
    added: bool = True

    text = _shape
    operations = _products

    def bind(self, to: Binder) -> object:
        held = self.weight
        weight = to.native.Wna8(
            **_grouped(self, to),
            bits=held.bits,
            levels=to.array(held.levels),
            bf16_scale=held.scale.dtype == np.uint16,
            minimum=to.array(held.minimum),
            per=held.per,
        )
        return to.native.MultiplyW4A8(
            **_places(self, to),
            linears=self.linears,
            weight=weight,
            bias=to.array(self.weight.bias),
        )


Multiply = MultiplyW8A8 | MultiplyBf16 | MultiplyWna16 | MultiplyW4A8
