"""Operators that multiply no matrices: embeddings, norms, codes, activations, pooling."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from bitwright.engine.ops.binder import Binder
from bitwright.engine.ops.buffers import IN_PLACE, READ, WRITTEN, Buffer
from bitwright.engine.ops.inputs import PaddedTransform, bind_input
from bitwright.kernels.input_grid import InputGrid

Function = Literal[
    "identity", "relu", "tanh", "gelu_tanh", "silu", "relu2"
]  # the names of the native module's Function
# The names of the native module's PoolMode, which are those of sentence-transformers.
PoolMode = Literal["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


def plain(op: object) -> str:
    """The text of an operator whose kind and buffers say it all."""
    return ""


def uncounted(op: object, tokens: int) -> int:
    """The count of an operator that is none of the products: what it computes is not counted."""
    return 0


def _rounding(out: Buffer, grid: InputGrid | None) -> str:
    """How rows become those of `out`, in readable form."""
    if out.kind == "groups":
        return f"int8 g{out.group}{' by row' * (grid is not None)}"
    return "" if grid is None else grid.mode


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Embed:
    """-> f32: word + position + type embedding of each token.

    words_VH: float32, bf16 as its bits, or int8 with word_scale_V, float32. positions_TH: float32, or None; a text's
    first token has the row first_position. padding: an id that takes no place, and has the row before; None: none does.
    types_SH: float32, or None. factor: of the word.
    """

    kind: ClassVar[str] = "embed"
    name: str
    out: Buffer = field(metadata=WRITTEN)
    words_VH: np.ndarray
    word_scale_V: np.ndarray | None
    positions_TH: np.ndarray | None
    first_position: int
    padding: int | None
    types_SH: np.ndarray | None
    factor: float = 1.0

    text = plain
    operations = uncounted

    def bind(self, to: Binder) -> object:
        stored = "bf16" if self.words_VH.dtype == np.uint16 else "f32"
        return to.native.Embed(
            words=to.array(self.words_VH, natural=True),
            kind=to.native.WordKind[stored if self.word_scale_V is None else "int8"],
            word_scale=to.array(self.word_scale_V, natural=True),
            positions=to.array(self.positions_TH, natural=True),
            first_position=self.first_position,
            padding=-1 if self.padding is None else self.padding,
            types=to.array(self.types_SH, natural=True),
            factor=self.factor,
            out=to.buffer(self.out),
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class NormRows:
    """f32 or bf16 [f32] -> f32 [codes] [f32]: the norm of x + residual, its quantized rows, and the sum itself.

    weight_H, bias_H: float32; the bias may be None. centred: a layer norm; else RMSNorm, which takes no mean off.
    residual_after: y is the norm of x, plus the residual. grid, transform: of the codes, which may be by groups; those
    need no grid, or the symmetric one of a row.
    """

    kind: ClassVar[str] = "norm"
    name: str
    x: Buffer = field(metadata=READ)
    residual: Buffer | None = field(metadata=READ)
    y: Buffer = field(metadata=WRITTEN)
    codes: Buffer | None = field(metadata=WRITTEN)
    sum: Buffer | None = field(metadata=WRITTEN)
    weight_H: np.ndarray
    bias_H: np.ndarray | None
    eps: float
    centred: bool = True
    residual_after: bool = False
    grid: InputGrid | None = None
    transform: PaddedTransform | None = None

    operations = uncounted

    def text(self) -> str:
        return "" if self.codes is None else _rounding(self.codes, self.grid)

    def bind(self, to: Binder) -> object:
        return to.native.NormRows(
            x=to.buffer(self.x),
            residual=to.buffer(self.residual),
            sum=to.buffer(self.sum),
            y=to.buffer(self.y),
            codes=to.buffer(self.codes),
            weight=to.array(self.weight_H),
            bias=to.array(self.bias_H),
            eps=self.eps,
            centred=self.centred,
            residual_after=self.residual_after,
            grid=bind_input(to, self.grid, self.transform),
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class NormColumns:
    """bf16, in place: the RMSNorm of as many columns as there are weights, from `column` on.

    weight_N: float32.
    """

    kind: ClassVar[str] = "norm"
    name: str
    rows: Buffer = field(metadata=IN_PLACE)
    column: int
    weight_N: np.ndarray
    eps: float

    operations = uncounted

    def text(self) -> str:
        return f"[{self.column}, {self.column + len(self.weight_N)})"

    def bind(self, to: Binder) -> object:
        return to.native.NormColumns(
            rows=to.buffer(self.rows),
            column=self.column,
            n=len(self.weight_N),
            weight=to.array(self.weight_N),
            eps=self.eps,
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Quantize:
    """f32 or bf16 -> codes or groups: rows, transformed if asked, become 8-bit codes, on a grid or by groups."""

    kind: ClassVar[str] = "quantize"
    name: str
    source: Buffer = field(metadata=READ)
    out: Buffer = field(metadata=WRITTEN)
    grid: InputGrid | None
    transform: PaddedTransform | None

    operations = uncounted

    def text(self) -> str:
        return _rounding(self.out, self.grid)

    def bind(self, to: Binder) -> object:
        grid = bind_input(to, self.grid, self.transform)
        return to.native.Quantize(source=to.buffer(self.source), out=to.buffer(self.out), grid=grid)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Round:
    """f32 or bf16 -> bf16: rows through a transform, to their places on a grid, both, or only to bf16."""

    kind: ClassVar[str] = "round"
    name: str
    source: Buffer = field(metadata=READ)
    out: Buffer = field(metadata=WRITTEN)
    grid: InputGrid | None
    transform: PaddedTransform | None

    operations = uncounted

    def text(self) -> str:
        alone = "" if self.transform is None else "transform"
        return alone if self.grid is None else self.grid.mode

    def bind(self, to: Binder) -> object:
        return to.native.Round(
            source=to.buffer(self.source),
            out=to.buffer(self.out),
            on_grid=self.grid is not None,
            grid=bind_input(to, self.grid, self.transform),
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Activate:
    """f32 or bf16, in place: an elementwise function."""

    kind: ClassVar[str] = "activate"
    name: str
    rows: Buffer = field(metadata=IN_PLACE)
    function: Function

    operations = uncounted

    def text(self) -> str:
        return self.function

    def bind(self, to: Binder) -> object:
        return to.native.Activate(rows=to.buffer(self.rows), function=to.native.Function[self.function])


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Gate:
    """bf16 -> f32, bf16, codes or groups: f(a) · b of a row's halves a and b. grid, transform: of codes."""

    kind: ClassVar[str] = "gate"
    name: str
    source: Buffer = field(metadata=READ)
    out: Buffer = field(metadata=WRITTEN)
    function: Function = "identity"
    grid: InputGrid | None = None
    transform: PaddedTransform | None = None

    operations = uncounted

    def text(self) -> str:
        function = "" if self.function == "identity" else self.function
        return f"{function} {_rounding(self.out, self.grid)}".strip()

    def bind(self, to: Binder) -> object:
        return to.native.Gate(
            source=to.buffer(self.source),
            out=to.buffer(self.out),
            function=to.native.Function[self.function],
            grid=bind_input(to, self.grid, self.transform),
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Add:
    """f32, in place: rows plus those of another buffer."""

    kind: ClassVar[str] = "add"
    name: str
    rows: Buffer = field(metadata=IN_PLACE)
    source: Buffer = field(metadata=READ)

    operations = uncounted

    def text(self) -> str:
        return f"{self.rows.width} columns"

    def bind(self, to: Binder) -> object:
        return to.native.Add(rows=to.buffer(self.rows), source=to.buffer(self.source))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Softcap:
    """f32, in place: cap · tanh(x / cap)."""

    kind: ClassVar[str] = "softcap"
    name: str
    rows: Buffer = field(metadata=IN_PLACE)
    cap: float

    operations = uncounted

    def text(self) -> str:
        return f"{self.cap:g}"

    def bind(self, to: Binder) -> object:
        return to.native.Softcap(rows=to.buffer(self.rows), cap=self.cap)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Select:
    """f32 -> f32, per output: the rows of the tokens whose output is wanted."""

    kind: ClassVar[str] = "select"
    name: str
    source: Buffer = field(metadata=READ)
    out: Buffer = field(metadata=WRITTEN)

    text = plain
    operations = uncounted

    def bind(self, to: Binder) -> object:
        return to.native.Select(source=to.buffer(self.source), out=to.buffer(self.out))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Repeat:
    """f32 -> f32, or bf16 -> bf16: each row twice, side by side."""

    kind: ClassVar[str] = "repeat"
    name: str
    source: Buffer = field(metadata=READ)
    out: Buffer = field(metadata=WRITTEN)

    text = plain
    operations = uncounted

    def bind(self, to: Binder) -> object:
        return to.native.Repeat(source=to.buffer(self.source), out=to.buffer(self.out))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Pool:
    """f32 -> f32, per sequence: one row of its tokens' rows, into the columns from `column` on."""

    kind: ClassVar[str] = "pool"
    name: str
    source: Buffer = field(metadata=READ)
    out: Buffer = field(metadata=WRITTEN)
    mode: PoolMode
    column: int

    text = plain
    operations = uncounted

    def bind(self, to: Binder) -> object:
        mode = to.native.PoolMode[self.mode]
        return to.native.Pool(source=to.buffer(self.source), out=to.buffer(self.out), mode=mode, column=self.column)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Normalize:
    """f32, in place: rows to unit length."""

    kind: ClassVar[str] = "normalize"
    name: str
    rows: Buffer = field(metadata=IN_PLACE)

    text = plain
    operations = uncounted

    def bind(self, to: Binder) -> object:
        return to.native.Normalize(rows=to.buffer(self.rows))
