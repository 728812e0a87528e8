"""A program under construction: what a builder says in the words of a model becomes fused operators.

A builder speaks of values: "the linears q, k and v of x", "the norm of x + y". What a linear reads (codes on some grid,
bf16) is derived from a value once, by the norm that makes it where there is one, else by an operator of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bitwright.engine.disentangled import Tables
from bitwright.engine.fusion import fuse_codes
from bitwright.engine.linears import Linear, grid_of, group_of, join, multiplied, operator_of
from bitwright.engine.packing import Packed, pack, pack_heads
from bitwright.engine.program import Buffer, Grid, Kind, Op, Program, check, same_grid
from bitwright.engine.weights import Weights
from bitwright.errors import CheckpointError, EngineError
from bitwright.kernels.layouts import MAX_K

# Activations by their names in config.json -> the function.
_FUNCTIONS = {"gelu": "gelu", "relu": "relu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu",
             "swish": "silu", "tanh": "tanh"}  # fmt: skip
_MODES = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


@dataclass(slots=True, eq=False)
class Value:
    """Float rows, and what was derived from them. maker: the norm whose last output they are."""

    buffer: Buffer
    maker: Op | None = None
    codes: list[tuple[Grid, Buffer]] = field(default_factory=list)
    bf16: list[tuple[Grid | None, Buffer]] = field(default_factory=list)


class Lowering:
    """Operators in order, and their buffers."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self._most_tokens = 1 << 31  # that position tables have rows for
        self._packed: dict[str, Packed] = {}  # a block that runs twice has its weights once
        self._ops: list[Op] = []
        self._buffers: list[Buffer] = []

    def embed(self, words: str, positions: str | None, types: str | None, first_position: int = 0) -> Value:
        """The sum of a token's embeddings; None where a model has none of a kind."""
        table, scale = self.weights.table(words)
        width = table.shape[1]
        out = self._buffer("f32", width)
        position_rows = self.weights.rows(positions, width) if positions else None
        if position_rows is not None:
            self._most_tokens = len(position_rows) - first_position
        self._add(
            Op(
                "embed", words.removesuffix(".weight"), (), (out,), {"first_position": first_position},
                {
                    "words": table, "word_scale": scale,
                    "positions": position_rows,
                    "types": self.weights.rows(types, width) if types else None,
                },
            )
        )  # fmt: skip
        return Value(out)

    def norm(self, name: str, x: Value, residual: Value | None = None, *, eps: float) -> Value:
        """The layer norm of x + residual."""
        return self._norm(name, x, residual, None, eps)

    def norm_of_sum(self, name: str, x: Value, residual: Value, *, eps: float) -> tuple[Value, Value]:
        """x + residual, and its layer norm."""
        kept = self._buffer("f32", x.buffer.width, per_sequence=x.buffer.per_sequence)
        return Value(kept), self._norm(name, x, residual, kept, eps)

    def qkv(self, names: Sequence[str], x: Value) -> Value:
        """Queries, keys and values of as many values each, side by side.

        Raises:
            CheckpointError: one has another number of values than the first.
        """
        layers = [self.weights.linear(name) for name in names]
        for name, layer in zip(names, layers, strict=True):
            if layer.shape[0] != layers[0].shape[0]:
                raise CheckpointError(
                    f"{self.weights.directory}: {name} has {layer.shape[0]} rows; {layers[0].shape[0]}, as "
                    f"{names[0]} has, are expected"
                )
        return self._side_by_side(names, layers, x, "bf16", None)

    def linears(self, names: Sequence[str], x: Value, *, out: Kind, activation: str | None = None) -> Value:
        """The outputs of linears that read x, side by side, through an activation. out: how they are kept."""
        return self._side_by_side(names, [self.weights.linear(name) for name in names], x, out, activation)

    def _side_by_side(
        self, names: Sequence[str], layers: Sequence[Linear], x: Value, out: Kind, activation: str | None
    ) -> Value:
        target = self._buffer(out, sum(layer.shape[0] for layer in layers), per_sequence=x.buffer.per_sequence)
        column, function = 0, function_of(activation) if activation else None
        for run in _alike(layers):
            group, label = [layers[i] for i in run], ", ".join(names[i] for i in run)
            self._linear(label, group, x, target, column, gelu=function == "gelu")
            column += sum(layer.shape[0] for layer in group)
        if function not in (None, "gelu"):
            self._add(Op("activate", f"{names[0]}: {function}", (target,), (target,), {"function": function}))
        return Value(target)

    def gated(self, name: str, x: Value, activation: str) -> Value:
        """f(a) · b of a linear whose outputs are a, then b."""
        layer, function = self.weights.linear(name), function_of(activation)
        if function != "gelu":
            raise EngineError(f"{name}: a gate through {activation!r} has no operator")
        half = layer.shape[0] // 2
        both = self._buffer("bf16", 2 * half)
        self._linear(f"{name}: activated half", [layer.rows(0, half)], x, both, 0, gelu=True)
        self._linear(f"{name}: other half", [layer.rows(half, 2 * half)], x, both, half, gelu=False)
        self._ops[-1].settings["linears"] = 0  # one linear of the model, not two
        out = self._buffer("bf16", half)
        self._add(Op("gate", name, (both,), (out,)))
        return Value(out)

    def rotate(self, name: str, qkv: Value, heads: int, cos_TF: np.ndarray, sin_TF: np.ndarray) -> Value:
        """q and k rotated by position (Su et al. 2021, 2104.09864): of each head the first half of the values with the
        second. cos_TF, sin_TF: of the angles, float32, a row for each position, half a head size wide."""
        size = qkv.buffer.width // 3 // heads
        if cos_TF.shape[1] * 2 != size:
            raise CheckpointError(f"{name}: heads of {size} values, and {cos_TF.shape[1]} angles for each")
        settings = {"heads": 2 * heads, "head_size": size}
        tables: dict[str, np.ndarray | None] = {"cos": cos_TF, "sin": sin_TF}
        self._add(Op("rotate", name, (qkv.buffer,), (qkv.buffer,), settings, tables))
        return qkv

    def attention(
        self, name: str, qkv: Value, heads: int, *, window: int | None = None, bias_HD: np.ndarray | None = None,
        terms: int = 1,
    ) -> Value:  # fmt: skip
        """Attention over rows of q, k and v.

        window: how far a token sees on either side. bias_HD: float32 (heads, 2 · T − 1), added by distance key − query.
        terms: of a score, which is divided by √(head size · terms).
        """
        size = _head_size(name, qkv, heads)
        settings = {"heads": heads, "head_size": size, "scale": (size * terms) ** -0.5, "window": window}
        out = self._buffer("bf16", heads * size)
        self._add(Op("attention", name, (qkv.buffer,), (out,), settings, {"bias": bias_HD}))
        return Value(out)

    def disentangled(self, name: str, qkv: Value, heads: int, tables: Tables) -> Value:
        """Attention over rows of q, k and v, with the products of queries, keys, or both with tables of positions."""
        size = _head_size(name, qkv, heads)
        made = {"keys": tables.keys_PN, "queries": tables.queries_PN}
        scale = (size * (1 + sum(table is not None for table in made.values()))) ** -0.5
        weights: dict[str, np.ndarray | None] = {"row": tables.row_R}
        for kind, table_PN in made.items():
            if table_PN is not None and table_PN.shape[1] != heads * size:
                raise CheckpointError(f"{name}: positions of {table_PN.shape[1]} values for {heads} heads of {size}")
            weights[kind] = None if table_PN is None else pack_heads(table_PN * np.float32(scale), heads)
        settings = {"heads": heads, "head_size": size, "scale": scale, "folded": tables.folded}
        out = self._buffer("bf16", heads * size)
        self._add(Op("attention", name, (qkv.buffer,), (out,), settings, weights))
        return Value(out)

    def pool(self, x: Value, modes: Sequence[str], *, normalize: bool) -> Value:
        """One row for each sequence: by each mode, side by side; to unit length if asked."""
        width = x.buffer.width
        unknown = [mode for mode in modes if mode not in _MODES]
        if unknown:
            raise EngineError(f"pooling by {unknown[0]!r} has no operator; there are {', '.join(_MODES)}")
        out = self._buffer("f32", width * len(modes), per_sequence=True)
        for number, mode in enumerate(modes):
            self._add(Op("pool", mode, (x.buffer,), (out,), {"mode": _MODES.index(mode), "column": number * width}))
        if normalize:
            self._add(Op("normalize", "unit length", (out,), (out,)))
        return Value(out)

    def check_tokens(self, max_tokens: int) -> None:
        """Raises:
        CheckpointError: the table of positions has fewer rows.
        """
        if not 1 <= max_tokens <= self._most_tokens:
            raise CheckpointError(
                f"{self.weights.directory}: config.json speaks of {max_tokens} tokens, the table of positions has "
                f"{self._most_tokens} rows for them"
            )

    def finish(self, output: Value, *, max_tokens: int, types: int = 1) -> Program:
        """The program that returns this value."""
        self.check_tokens(max_tokens)
        words = self._ops[0].weights["words"]
        assert words is not None
        ops, buffers, out = fuse_codes(self._ops, self._buffers, output.buffer)
        program = Program(ops, buffers, out, max_tokens, len(words), types)
        check(program)
        return program

    def _norm(self, name: str, x: Value, residual: Value | None, kept: Buffer | None, eps: float) -> Value:
        width = x.buffer.width
        if residual is not None and residual.buffer.width != width:
            raise CheckpointError(f"{name}: {width} values are added to {residual.buffer.width}")
        out = self._buffer("f32", x.buffer.width, per_sequence=x.buffer.per_sequence)
        op = Op(
            "norm", name, (x.buffer, residual.buffer if residual else None), (out, None, kept),
            {"eps": eps, "grid": None},
            {
                "weight": self.weights.vector(f"{name}.weight", width),
                "bias": self.weights.vector(f"{name}.bias", width) if f"{name}.bias" in self.weights else None,
            },
        )  # fmt: skip
        self._add(op)
        return Value(out, op)

    def _linear(self, name: str, group: list[Linear], x: Value, out: Buffer, column: int, *, gelu: bool) -> None:
        """Linears that are alike, into columns [column, …) of out."""
        k = group[0].shape[1]
        if k != x.buffer.width or k > MAX_K or column % 16:
            raise EngineError(
                f"{name}: K = {k} of an input of {x.buffer.width} values, at column {column}; there are operators for "
                f"K up to {MAX_K} of as many, at multiples of 16"
            )
        first, n = group[0], sum(layer.shape[0] for layer in group)
        settings = {
            "operator": operator_of(first), "dtype": multiplied(first), "column": column, "n": n, "linears": len(group),
            "gelu": gelu, "grid": None,
            "group": group_of(first),
        }  # fmt: skip
        grid = grid_of(first)
        if settings["operator"] == "linear_w8a8":
            assert grid is not None
            source = self._codes(x, grid, name)
        else:
            source = self._bf16(x, grid, name)
        if name not in self._packed:
            self._packed[name] = pack(group)
        self._add(Op("linear", name, (source,), (out,), settings, self._packed[name]))

    def _codes(self, x: Value, grid: Grid, reader: str) -> Buffer:
        """x on a grid, for a linear: by the norm that makes it, if that quantizes nothing yet."""
        for known, buffer in x.codes:
            if same_grid(known, grid):
                return buffer
        out = self._buffer("codes", x.buffer.width, per_sequence=x.buffer.per_sequence)
        maker = x.maker
        if maker is not None and maker.writes[1] is None:
            maker.writes = (maker.writes[0], out, maker.writes[2])
            maker.settings["grid"] = grid
        else:
            self._add(Op("quantize", f"{reader.split(', ')[0]}: input", (x.buffer,), (out,), {"grid": grid}))
        x.codes.append((grid, out))
        return out

    def _bf16(self, x: Value, grid: Grid | None, reader: str) -> Buffer:
        """x in bf16, transformed and rounded as a grid says."""
        if grid is None and x.buffer.kind == "bf16":
            return x.buffer
        for known, buffer in x.bf16:
            if same_grid(known, grid):
                return buffer
        out = self._buffer("bf16", x.buffer.width, per_sequence=x.buffer.per_sequence)
        self._add(Op("round", f"{reader.split(', ')[0]}: input", (x.buffer,), (out,), {"grid": grid}))
        x.bf16.append((grid, out))
        return out

    def _buffer(self, kind: Kind, width: int, *, per_sequence: bool = False) -> Buffer:
        self._buffers.append(Buffer(len(self._buffers), kind, width, per_sequence))
        return self._buffers[-1]

    def _add(self, op: Op) -> None:
        self._ops.append(op)


def function_of(activation: str) -> str:
    """What the operators call an activation of config.json.

    Raises:
        EngineError: there is no operator for it.
    """
    if activation not in _FUNCTIONS:
        raise EngineError(f"activation {activation!r} has no operator; there are {', '.join(sorted(_FUNCTIONS))}")
    return _FUNCTIONS[activation]


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
