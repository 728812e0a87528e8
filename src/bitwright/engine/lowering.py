"""Builds a program: turns a builder's description of a model into fused operators.

A builder speaks of values: "the linears q, k and v of x", "the norm of x + y". What a linear reads (codes on some grid,
bf16) is derived from a value once, by the norm that makes it where there is one, else by an operator of its own.

One file although long: one class, whose methods each describe one kind of value and share the buffers that it derives.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from bitwright.engine import ops
from bitwright.engine.cache_layout import CacheLayer, ConvolutionLayer
from bitwright.engine.disentangled import Tables
from bitwright.engine.fusion import fuse_codes
from bitwright.engine.halves import in_halves
from bitwright.engine.linears import Inputs, Linear, Operand, join, multiplied, operand_of
from bitwright.engine.memory import Memory
from bitwright.engine.ops.buffers import Buffer, BufferKind, Per
from bitwright.engine.ops.multiply import Activation, Packed, PackedBf16, PackedW4A8, PackedW8A8
from bitwright.engine.ops.rows import Function, PoolMode
from bitwright.engine.packing import Convert, pack, pack_heads
from bitwright.engine.program import Program, check
from bitwright.engine.weights import Weights
from bitwright.errors import CheckpointError, EngineError, named
from bitwright.kernels.layouts import BLOCK, MAX_K
from bitwright.numerics.linear import QuantizedLinear

MOST_TAPS = 8  # of a convolution, as in csrc/engine/program.h
# Activations by their names in config.json -> the function; a linear computes "gelu" itself.
_FUNCTIONS: dict[str, Function | Literal["gelu"]] = {
    "gelu": "gelu", "relu": "relu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu",
    "swish": "silu", "tanh": "tanh", "relu2": "relu2",
}  # fmt: skip
_POOL_MODES: dict[str, PoolMode] = {mode: mode for mode in get_args(PoolMode)}


class HeadShape(NamedTuple):
    """heads: of queries. kv_heads: of keys and of values. size: values of a head."""

    heads: int
    kv_heads: int
    size: int


@dataclass(slots=True, eq=False)
class Value:
    """Rows, and the buffers of what was derived from them for linears. norm: of rows that a norm makes, its place among
    the operators."""

    buffer: Buffer
    norm: int | None = None
    derived: list[tuple[Operand, Buffer]] = field(default_factory=list)


class Lowering:
    """Operators in order, and their buffers. inputs: of linears of at most 4 bits, see `operator_of`."""

    def __init__(self, weights: Weights, inputs: Inputs = "bf16") -> None:
        self.weights, self._inputs = weights, inputs
        self._most_tokens = 1 << 31  # that position tables have rows for
        self._latest: tuple[Linear, Linear] | None = None  # asked for twice, now and then
        self._memory = Memory()
        self._packed: dict[str, Packed] = {}  # a block that runs twice has its weights once
        self._ops: list[ops.Op] = []
        self._buffers: list[Buffer] = []

    def embed(
        self, words: str, positions: str | None = None, types: str | None = None, first_position: int = 0,
        factor: float = 1.0,
    ) -> Value:  # fmt: skip
        """The sum of a token's embeddings; None where a model has none of a kind. factor: of the word."""
        table, scale = self.weights.table(words)
        width = table.shape[1]
        out = self._buffer("f32", width)
        position_rows = self.weights.rows(positions, width) if positions else None
        if position_rows is not None:
            self._most_tokens = len(position_rows) - first_position
        self._add(
            ops.Embed(
                words.removesuffix(".weight"),
                out=out,
                words_VH=table,
                word_scale_V=scale,
                positions_TH=position_rows,
                first_position=first_position,
                padding=first_position - 1 if first_position else None,  # where positions begin after padding's
                types_SH=self.weights.rows(types, width) if types else None,
                factor=factor,
            )
        )
        return Value(out)

    def norm(
        self, name: str, x: Value, residual: Value | None = None, *, eps: float, centred: bool = True,
        plus: float = 0.0, factor: float = 1.0,
    ) -> Value:  # fmt: skip
        """The layer norm of x + residual, or, not centred, its RMSNorm, times a factor. plus: what is added to the
        weight."""
        return self._norm(name, x, residual, None, self._affine(name, x, plus, factor), eps, centred=centred)

    def norm_of_sum(
        self, name: str, x: Value, residual: Value, *, eps: float, centred: bool = True, plus: float = 0.0,
        factor: float = 1.0,
    ) -> tuple[Value, Value]:  # fmt: skip
        """x + residual, and its norm times a factor."""
        kept = self._buffer("f32", x.buffer.width, x.buffer.per)
        affine = self._affine(name, x, plus, factor)
        return Value(kept), self._norm(name, x, residual, kept, affine, eps, centred=centred)

    def norm_and_sum(
        self, name: str, x: Value, residual: Value, *, eps: float, centred: bool = True, plus: float = 0.0
    ) -> Value:
        """The norm of x, plus the residual."""
        return self._norm(name, x, residual, None, self._affine(name, x, plus), eps, centred=centred, after=True)

    def rms_norm_columns(self, name: str, rows: Value, column: int, width: int, *, eps: float) -> int:
        """The RMSNorm of so many columns of rows from `column` on, in place. Returns the column after them."""
        self._add(ops.NormColumns(name, rows.buffer, column, self.weights.vector(f"{name}.weight", width), eps))
        return column + width

    def qkv(self, names: Sequence[str], x: Value) -> Value:
        """Queries, keys and values of as many values each, side by side.

        Raises:
            CheckpointError: one has another number of values than the first.
        """
        layers = [self._held(name) for name in names]
        for name, layer in zip(names, layers, strict=True):
            if layer.shape[0] != layers[0].shape[0]:
                raise CheckpointError(
                    f"{self.weights.directory}: {name} has {layer.shape[0]} rows, but {names[0]} has "
                    f"{layers[0].shape[0]}; both must be equal"
                )
        return self._side_by_side(names, layers, x, "bf16", None)

    def linears(self, names: Sequence[str], x: Value, *, out: BufferKind, activation: str | None = None) -> Value:
        """The outputs of linears that read x, side by side, through an activation. out: how they are kept."""
        return self._side_by_side(names, [self._held(name) for name in names], x, out, activation)

    def _side_by_side(
        self, names: Sequence[str], layers: Sequence[Linear], x: Value, out: BufferKind, activation: str | None
    ) -> Value:
        target = self._buffer(out, sum(layer.shape[0] for layer in layers), x.buffer.per)
        column, function = 0, function_of(activation) if activation else None
        for run in _alike(layers):
            group, label = [layers[i] for i in run], ", ".join(names[i] for i in run)
            self._linear(label, group, x, target, column, activation="gelu" if function == "gelu" else "none")
            column += sum(layer.shape[0] for layer in group)
        if function is not None and function != "gelu":
            self._add(ops.Activate(f"{names[0]}: {function}", target, function))
        return Value(target)

    def gated(self, names: Sequence[str], x: Value, activation: str, reader: str | None) -> Value:
        """f(a) · b of the linears that give a and b, or of one that gives a, then b. reader: the linear that alone
        reads it; None where a norm does."""
        layers, function = [self._held(name) for name in names], function_of(activation)
        half, whole = sum(layer.shape[0] for layer in layers) // 2, len(layers) == 1
        parts = [layers[0].rows(0, half), layers[0].rows(half, 2 * half)] if whole else layers
        both = self._buffer("bf16", 2 * half)
        if function != "gelu" and join(*parts):
            self._linear(", ".join(names), layers if whole else parts, x, both, 0, activation="none")
        else:
            labels = [f"{names[0]}: activated half", f"{names[0]}: other half"] if whole else names
            self._linear(labels[0], parts[:1], x, both, 0, activation="gelu" if function == "gelu" else "none")
            count = 0 if whole else 1  # one of the model, not two
            self._linear(labels[1], parts[1:], x, both, half, activation="none", linears=count)
        wanted = Operand("f32") if reader is None else self._gate_operand(self._held(reader), half)
        out = self._buffer(wanted.kind, half, group=wanted.group)
        applied = "identity" if function == "gelu" else function
        self._add(ops.Gate(", ".join(names), both, out, applied, wanted.grid, wanted.transform))
        return Value(out, derived=[] if wanted.kind in ("f32", "bf16") else [(wanted, out)])

    def _gate_operand(self, reader: Linear, width: int) -> Operand:
        """What a gate of so many values writes for the linear that reads it: bf16 where a transform or a grid changes
        it afterwards, or where it is repeated."""
        wanted = operand_of(reader, self._inputs)
        return Operand("bf16") if wanted.kind == "bf16" or reader.shape[1] == 2 * width else wanted

    def rotate(self, name: str, qkv: Value, heads: int, cos_TF: np.ndarray, sin_TF: np.ndarray) -> Value:
        """q and k rotated by position (Su et al. 2021, 2104.09864): of each head the first half of the values with the
        second. cos_TF, sin_TF: of the angles, float32, a row for each position, half a head size wide."""
        size = qkv.buffer.width // 3 // heads
        if cos_TF.shape[1] * 2 != size:
            raise CheckpointError(f"{name}: there are heads of {size} values, but {cos_TF.shape[1]} angles for each")
        self._add(ops.Rotate(name, qkv.buffer, 2 * heads, size, cos_TF, sin_TF))
        return qkv

    def attention(
        self, name: str, qkv: Value, heads: int, *, window: int | None = None, bias_HD: np.ndarray | None = None,
        terms: int = 1, integer: bool = False,
    ) -> Value:  # fmt: skip
        """Attention over rows of q, k and v.

        window: how far a token sees on either side. bias_HD: float32 (heads, 2 · T − 1), added by distance key − query.
        terms: of a score, which is divided by √(head size · terms). integer: see `ops.Attend`.
        """
        size = _head_size(name, qkv, heads)
        out = self._buffer("bf16", heads * size)
        self._add(ops.Attend(name, qkv.buffer, out, heads, size, (size * terms) ** -0.5, window, bias_HD, integer))
        return Value(out)

    def disentangled(self, name: str, qkv: Value, heads: int, tables: Tables, *, integer: bool = False) -> Value:
        """Attention over rows of q, k and v, with the products of queries, keys, or both with tables of positions."""
        size = _head_size(name, qkv, heads)
        scale = (size * (1 + sum(table is not None for table in (tables.keys_PN, tables.queries_PN)))) ** -0.5

        def packed(table_PN: np.ndarray | None) -> np.ndarray | None:
            if table_PN is None:
                return None
            if table_PN.shape[1] != heads * size:
                raise CheckpointError(f"{name}: positions of {table_PN.shape[1]} values for {heads} heads of {size}")
            return pack_heads(table_PN * np.float32(scale), heads, self._memory)

        keys, queries = packed(tables.keys_PN), packed(tables.queries_PN)
        out = self._buffer("bf16", heads * size)
        self._add(
            ops.AttendDisentangled(
                name, qkv.buffer, out, heads, size, scale, keys, queries, tables.row_R, tables.folded, integer
            )
        )
        return Value(out)

    def rotate_queries(
        self, name: str, qkv: Value, shape: HeadShape, cos_TF: np.ndarray, sin_TF: np.ndarray
    ) -> None:  # fmt: skip
        """Queries alone, rotated in place by position, as `rotate` does it; so many values at once as there are angles
        for, which must divide the size of a head."""
        at_once = 2 * cos_TF.shape[1]
        self._add(ops.Rotate(name, qkv.buffer, shape.heads * (shape.size // at_once), at_once, cos_TF, sin_TF))

    def attention_cached(self, name: str, qkv: Value, shape: HeadShape, *, layer: int, **how: Any) -> Value:
        """Attention of new tokens over a cache, see `ops.AttendPast`, which has what `how` says."""
        heads, kv_heads, size = shape
        if qkv.buffer.width != (heads + 2 * kv_heads) * size or heads % kv_heads or size % 16 or size > 256:
            raise EngineError(
                f"{name}: {qkv.buffer.width} values of q, k and v, with {heads} heads of {size} and {kv_heads} of "
                "keys; the operator takes head sizes that are multiples of 16, up to 256"
            )
        out = self._buffer("bf16", heads * size)
        self._add(ops.AttendPast(name, qkv.buffer, out, heads, kv_heads, size, layer=layer, **how))
        return Value(out)

    def convolution_cached(self, name: str, gates: Value, shape: ConvolutionLayer, *, layer: int) -> Value:
        """A gated convolution of new tokens over a cache, see `ops.ConvolvePast`. name: of its weight."""
        weights, (width, taps) = self.weights, shape
        weight = weights.floats(f"{name}.weight")
        if weight.shape != (width, 1, taps) or gates.buffer.width != 3 * width:
            raise CheckpointError(
                f"{weights.directory}: {name}.weight has the shape {list(weight.shape)}, and reads "
                f"{gates.buffer.width} / 3 values; ({width}, 1, {taps}) and {width} are expected"
            )
        if taps > MOST_TAPS:
            raise EngineError(f"{name}: a convolution over {taps} tokens; the operator takes up to {MOST_TAPS}")
        weight_LH = np.ascontiguousarray(weight[:, 0].T)
        bias_H = weights.vector(f"{name}.bias", width) if f"{name}.bias" in weights else None
        out = self._buffer("bf16", width)
        self._add(ops.ConvolvePast(name, gates.buffer, out, weight_LH, bias_H, layer))
        return Value(out)

    def wanted(self, x: Value) -> Value:
        """The rows of the tokens whose output is wanted."""
        out = self._buffer("f32", x.buffer.width, "output")
        self._add(ops.Select("wanted tokens", x.buffer, out))
        return Value(out)

    def head(self, name: str, linear: Linear, x: Value, *, convert: Convert | None = None) -> Value:
        """The outputs of one linear in float32. convert: makes of some of its rows those that the engine holds, if not
        the checkpoint says how they are held."""
        held = convert or partial(in_halves, inputs=self._inputs)
        out = self._buffer("f32", linear.shape[0], x.buffer.per)
        with named(name):
            self._packed[name] = pack([linear], self._memory, self._inputs, held)
        first = held(linear.rows(0, min(BLOCK, linear.shape[0])))
        self._linear(name, [first], x, out, 0, activation="none", linears=int(convert is None), n=linear.shape[0])
        return Value(out)

    def add(self, name: str, x: Value, y: Value) -> Value:
        """x + y, in place of x."""
        self._add(ops.Add(name, x.buffer, y.buffer))
        return x

    def softcap(self, name: str, x: Value, cap: float) -> Value:
        """cap · tanh(x / cap), in place."""
        self._add(ops.Softcap(name, x.buffer, cap))
        return x

    def pool(self, x: Value, modes: Sequence[str], *, normalize: bool) -> Value:
        """One row for each sequence: by each mode, side by side; to unit length if asked."""
        width = x.buffer.width
        unknown = [mode for mode in modes if mode not in _POOL_MODES]
        if unknown:
            raise EngineError(
                f"the engine has no operator for pooling by {unknown[0]!r}; it has {', '.join(_POOL_MODES)}"
            )
        out = self._buffer("f32", width * len(modes), "sequence")
        for number, mode in enumerate(modes):
            self._add(ops.Pool(mode, x.buffer, out, _POOL_MODES[mode], number * width))
        if normalize:
            self._add(ops.Normalize("unit length", out))
        return Value(out)

    def check_tokens(self, max_tokens: int) -> None:
        """Raises:
        CheckpointError: the table of positions has fewer rows.
        """
        if not 1 <= max_tokens <= self._most_tokens:
            raise CheckpointError(
                f"{self.weights.directory}: config.json allows {max_tokens} tokens, but the position table has rows "
                f"for only {self._most_tokens}"
            )

    def finish(
        self, output: Value, *, max_tokens: int, types: int = 1, layers: Sequence[CacheLayer | ConvolutionLayer] = (),
        passing: CacheLayer | None = None,
    ) -> Program:  # fmt: skip
        """The program that returns this value. layers, passing: as `Program` has them."""
        self.check_tokens(max_tokens)
        embed = self._ops[0]
        assert isinstance(embed, ops.Embed)
        fused, buffers, out = fuse_codes(self._ops, self._buffers, output.buffer)
        program = Program(fused, buffers, out, max_tokens, len(embed.words_VH), types, tuple(layers), passing)
        check(program)
        self.weights.drop_pages()
        return program

    def _affine(self, name: str, x: Value, plus: float, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray | None]:
        """Weight and bias of a norm of x: (weight + plus) · factor, and the bias times the factor."""
        width = x.buffer.width
        weight_H = (self.weights.vector(f"{name}.weight", width) + np.float32(plus)) * np.float32(factor)
        if f"{name}.bias" not in self.weights:
            return weight_H, None
        return weight_H, self.weights.vector(f"{name}.bias", width) * np.float32(factor)

    def _norm(
        self, name: str, x: Value, residual: Value | None, kept: Buffer | None,
        affine: tuple[np.ndarray, np.ndarray | None], eps: float, *, centred: bool, after: bool = False,
    ) -> Value:  # fmt: skip
        """The norm of x + residual, or, after, of x, to which the residual is added. kept: where x + residual stays."""
        width = x.buffer.width
        if residual is not None and residual.buffer.width != width:
            raise CheckpointError(f"{name}: {width} values are added to {residual.buffer.width}; both must be equal")
        out = self._buffer("f32", width, x.buffer.per)
        weight_H, bias_H = affine
        self._add(
            ops.NormRows(
                name,
                x=x.buffer,
                residual=residual.buffer if residual else None,
                y=out,
                codes=None,
                sum=kept,
                weight_H=weight_H,
                bias_H=bias_H,
                eps=eps,
                centred=centred,
                residual_after=after,
            )
        )
        return Value(out, norm=len(self._ops) - 1)

    def _linear(
        self, name: str, group: list[Linear], x: Value, out: Buffer, column: int, *, activation: Activation,
        linears: int | None = None, n: int | None = None,
    ) -> None:  # fmt: skip
        """Linears that are alike, into columns [column, …) of out. linears: of the model, by default all of them. n:
        their outputs, where the group has only the first of them, and they are packed."""
        k = group[0].shape[1]
        if k == 2 * x.buffer.width and x.buffer.kind in ("f32", "bf16"):  # it is held in halves
            twice = self._buffer(x.buffer.kind, k, x.buffer.per)
            self._add(ops.Repeat(_input_of(name), x.buffer, twice))
            x = Value(twice)
        if k != x.buffer.width or k > MAX_K or column % 16:
            raise EngineError(
                f"{name}: K = {k} of an input of {x.buffer.width} values, at column {column}; there are operators for "
                f"K up to {MAX_K} of as many, at multiples of 16"
            )
        first, n = group[0], n or sum(layer.shape[0] for layer in group)
        if name not in self._packed:
            with named(name):
                self._packed[name] = pack(group, self._memory, self._inputs)
        weight, count = self._packed[name], len(group) if linears is None else linears
        source = self._operand(x, operand_of(first, self._inputs), name)
        if isinstance(weight, PackedW8A8):
            self._add(ops.MultiplyW8A8(name, source, out, column, n, weight, activation, count))
        elif isinstance(weight, PackedBf16):
            self._add(ops.MultiplyBf16(name, source, out, column, n, weight, activation))
        elif isinstance(weight, PackedW4A8):
            dtype = multiplied(first, self._inputs)
            added = isinstance(first, QuantizedLinear) and first.input_spec is None
            self._add(ops.MultiplyW4A8(name, dtype, source, out, column, n, weight, activation, count, added))
        else:
            self._add(ops.MultiplyWna16(name, source, out, column, n, weight, activation, multiplied(first)))

    def _held(self, name: str) -> Linear:
        """A linear of the checkpoint as its operator takes it."""
        stored = self.weights.linear(name)
        if self._latest is None or self._latest[0] is not stored:
            self._latest = stored, in_halves(stored, self._inputs)
        return self._latest[1]

    def _operand(self, x: Value, wanted: Operand, reader: str) -> Buffer:
        """x as a linear reads it: codes by the norm that makes it, if that quantizes nothing yet."""
        if wanted == Operand("bf16") and x.buffer.kind == "bf16":
            return x.buffer
        for known, buffer in x.derived:
            if known == wanted:
                return buffer
        if x.buffer.kind not in ("f32", "bf16"):
            raise EngineError(f"{reader}: it reads {wanted.kind}, but its input is kept as {x.buffer.kind} only")
        out = self._buffer(wanted.kind, x.buffer.width, x.buffer.per, wanted.group)
        norm = None if x.norm is None else self._ops[x.norm]
        name, grid, transform = _input_of(reader), wanted.grid, wanted.transform
        if wanted.kind == "bf16":
            self._add(ops.Round(name, x.buffer, out, grid, transform))
        elif x.norm is not None and isinstance(norm, ops.NormRows) and norm.codes is None:
            self._ops[x.norm] = replace(norm, codes=out, grid=grid, transform=transform)
        else:
            self._add(ops.Quantize(name, x.buffer, out, grid, transform))
        x.derived.append((wanted, out))
        return out

    def _buffer(self, kind: BufferKind, width: int, per: Per = "token", group: int = 0) -> Buffer:
        self._buffers.append(Buffer(len(self._buffers), kind, width, per, group))
        return self._buffers[-1]

    def _add(self, op: ops.Op) -> None:
        self._ops.append(op)


def function_of(activation: str) -> Function | Literal["gelu"]:
    """The operators' name for an activation of config.json.

    Raises:
        EngineError: there is no operator for it.
    """
    if activation not in _FUNCTIONS:
        raise EngineError(
            f"the engine has no operator for the activation {activation!r}; it has {', '.join(sorted(_FUNCTIONS))}"
        )
    return _FUNCTIONS[activation]


def _input_of(reader: str) -> str:
    """The name of what makes the input of linears, after the first of them."""
    return f"{reader.split(', ')[0]}: input"


def _head_size(name: str, qkv: Value, heads: int) -> int:
    """Values of a head of q, k or v.

    Raises:
        EngineError: there is no operator for it.
    """
    size = qkv.buffer.width // 3 // heads
    if 3 * heads * size != qkv.buffer.width or not size or size % 8 or size > 256:
        raise EngineError(
            f"{name}: {heads} heads of {qkv.buffer.width} / 3 values; the operator takes head sizes that are "
            "multiples of 8, up to 256"
        )
    return size


def _alike(layers: Sequence[Linear]) -> list[list[int]]:
    """Neighbours that one operator can compute."""
    runs: list[list[int]] = []
    for i, layer in enumerate(layers):
        if runs and join(layer, layers[runs[-1][0]]):
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs
