"""A program bound to native code: operators by number, weights by address."""

from collections.abc import Sequence
from itertools import chain
from operator import index
from struct import error as StructError
from struct import pack
from typing import TYPE_CHECKING

import numpy as np

from bitwright.engine.packing import aligned
from bitwright.engine.program import KINDS, NOT_ROUNDED, Buffer, Grid, Op, Program, place_buffers
from bitwright.errors import InputError
from bitwright.kernels import native
from bitwright.kernels.layouts import BLOCK

if TYPE_CHECKING:
    from bitwright.kernels._native import Isa

_FUNCTIONS = ("relu", "tanh", "gelu_tanh", "silu")  # as in csrc/rows/contract.h
_NO_WINDOW = 2**64 - 1
_MOST_THREADS = 1 << 16  # asked for; the pool has fewer
_L2_BYTES = 1 << 20  # of a group's buffers
_LEAST_GROUP = 128  # tokens: fewer would read the weights too often
_LEAST_UNPACKING_GROUP = 256  # where each group unpacks the weights too, which takes as long as some 50 tokens with AMX


class Executor:
    """Runs one program. Any number of threads may call `run` at once."""

    def __init__(self, program: Program, isa: "Isa", *, group_tokens: int | None = None) -> None:
        """group_tokens: sequences are taken in groups of this many tokens; by default as many as keep within L2."""
        module = native.load()
        row_bytes = {b.index: module.row_bytes(KINDS.index(b.kind), b.width) for b in program.buffers}
        offsets, size = place_buffers(program.ops, program.buffers, program.output, row_bytes)
        self.program = program
        unpacks = any(op.settings.get("operator") == "linear_wna16" for op in program.ops)
        least = _LEAST_UNPACKING_GROUP if unpacks else _LEAST_GROUP
        self.group_tokens = group_tokens or max(least, _L2_BYTES // size // 32 * 32)
        self._kept: dict[tuple[int, bool], tuple[np.ndarray, np.ndarray]] = {}  # a constant, and what native code reads
        self._native = module.Program(
            isa,
            [
                (KINDS.index(b.kind), b.width, offset, b.per_sequence)
                for b, offset in zip(program.buffers, offsets, strict=True)
            ],
            size,
            program.output.index,
            self.group_tokens,
        )
        for op in program.ops:
            _ADD[op.kind](self, op)

    @property
    def memory(self) -> int:
        """Bytes of buffers that are held now."""
        return int(self._native.memory)

    def run(
        self, sequences: Sequence[Sequence[int]], threads: int, seconds: np.ndarray | None = None, *,
        types: Sequence[Sequence[int]] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """The program's output for token ids: float32 (sequences, width), or (all tokens, width).

        seconds: float64 (ops,), gets the time of each operator added. types: of the tokens; by default all of type 0.

        Raises:
            InputError: an empty sequence, one that is too long, an id that is no token, a type that the model does not
                have, or not one for each token; threads < 1.
            MemoryError: the system has none for it. Later calls are as before.
        """
        lengths, ids = _packed(sequences, "token id")
        if types is None:
            return self.run_packed(ids, lengths, threads, seconds)
        type_lengths, packed = _packed(types, "token type")
        if len(type_lengths) != len(lengths):
            raise InputError(f"token types of {len(type_lengths)} sequences for {len(lengths)}")
        if not np.array_equal(type_lengths, lengths):
            i = int((type_lengths != lengths).argmax())
            raise InputError(f"sequence {i} has {lengths[i]} tokens and {type_lengths[i]} token types")
        return self.run_packed(ids, lengths, threads, seconds, types=packed)

    def run_packed(
        self, ids: np.ndarray, lengths: np.ndarray, threads: int, seconds: np.ndarray | None = None, *,
        types: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        """As `run`, of sequences laid end to end: integers (all tokens,) and (sequences,); types as ids."""
        threads = min(check_count("threads", threads), _MOST_THREADS)
        lengths, starts = _integers(lengths, "lengths"), np.zeros(len(lengths) + 1, np.int64)
        self._check_lengths(lengths)
        np.cumsum(lengths, out=starts[1:])
        if ids.shape != (starts[-1],):
            raise InputError(f"{ids.shape} token ids for sequences of {starts[-1]} tokens in all")
        if types is not None and types.shape != ids.shape:
            raise InputError(f"{types.shape} token types for {ids.shape} token ids")
        if seconds is not None and not (
            seconds.dtype == np.float64 and seconds.shape == (len(self.program.ops),) and seconds.flags.carray
        ):
            raise InputError(f"seconds is {seconds.dtype} {seconds.shape}, not float64 ({len(self.program.ops)},)")
        ids = _below(ids, self.program.vocabulary, "token id")
        types = None if types is None else _below(types, self.program.types, "token type")
        output = self.program.output
        out = np.empty((len(lengths) if output.per_sequence else len(ids), output.width), np.float32)
        done = self._native.run(
            ids.ctypes.data, 0 if types is None else types.ctypes.data, starts.ctypes.data, len(lengths), threads,
            out.ctypes.data, 0 if seconds is None else seconds.ctypes.data,
        )  # fmt: skip
        if not done:
            raise MemoryError(
                f"no memory for the buffers of {len(ids)} tokens in {len(lengths)} sequences on {threads} threads; "
                "fewer threads and shorter sequences need less"
            )
        return out

    def _check_lengths(self, lengths: np.ndarray) -> None:
        above = (lengths - 1).view(np.uint64)  # what is below 1 is very large
        if len(above) and above.max() >= self.program.max_tokens:
            worst = int(above.argmax())
            limit = self.program.max_tokens
            raise InputError(f"sequence {worst} has {lengths[worst]} tokens; this model takes 1 to {limit}")

    def _address(self, values: np.ndarray | None, *, natural: bool = False) -> int:
        """Of a constant, contiguous and at a multiple of 64 bytes; copied, but once, only where it is not.

        natural: the alignment of its elements is enough, as for the operators in csrc/rows: so a table of words stays
        where the file is mapped.
        """
        if values is None:
            return 0
        key = (id(values), natural)
        if key not in self._kept:
            fits = values.flags.aligned if natural else values.ctypes.data % 64 == 0
            self._kept[key] = (values, values if fits and values.flags.c_contiguous else aligned(values))
        return int(self._kept[key][1].ctypes.data)

    def _grid(self, grid: Grid | None) -> tuple[int, int, int, float, int, int]:
        if grid is None:
            return (0, 0, 0, 1.0, 0, -128)
        shift, multiplier = self._address(grid.shift_K), self._address(grid.multiplier_K)
        mode = 0 if grid.mode == NOT_ROUNDED else grid.mode
        return (shift, multiplier, mode, grid.scale, grid.zero_point, grid.code_min)

    def _embed(self, op: Op) -> None:
        words = op.weights["words"]
        assert words is not None
        table, scale, positions, types = (
            self._address(op.weights[name], natural=True) for name in ("words", "word_scale", "positions", "types")
        )
        self._native.embed(
            table, scale, words.dtype == np.uint16, positions, op.settings["first_position"], types,
            _index(op.writes[0]),
        )  # fmt: skip

    def _norm(self, op: Op) -> None:
        (x, residual), (y, codes, kept) = op.reads, op.writes
        self._native.norm(
            _index(x), _index(residual), _index(kept), _index(y), _index(codes), self._address(op.weights["weight"]),
            self._address(op.weights["bias"]), op.settings["eps"], self._grid(op.settings["grid"]),
        )  # fmt: skip

    def _quantize(self, op: Op) -> None:
        self._native.quantize(_index(op.reads[0]), _index(op.writes[0]), self._grid(op.settings["grid"]))

    def _round(self, op: Op) -> None:
        grid = op.settings["grid"]
        on_grid = grid is not None and grid.mode != NOT_ROUNDED
        self._native.round(_index(op.reads[0]), _index(op.writes[0]), on_grid, self._grid(grid))

    def _linear(self, op: Op) -> None:
        settings = op.settings
        place = (_index(op.reads[0]), _index(op.writes[0]), settings["column"], settings["n"])
        weights = [self._address(values) for values in op.weights.values()]
        activation = native.load().Activation["gelu" if settings["gelu"] else "none"]
        match settings["operator"]:
            case "linear_w8a8":
                grid = self._grid(settings["grid"])
                self._native.linear_w8a8(*place, settings["linears"], *weights, activation, grid)
            case "linear_wna16":
                self._native.linear_wna16(*place, settings["group"], *weights, activation)
            case _:
                self._native.linear_bf16(*place, *weights, activation)

    def _attention(self, op: Op) -> None:
        settings = op.settings
        place = (_index(op.reads[0]), _index(op.writes[0]), settings["heads"], settings["head_size"], settings["scale"])
        if "row" in op.weights:
            self._disentangled(op, place)
            return
        bias_HD = op.weights["bias"]
        stride, middle = (0, 0) if bias_HD is None else (bias_HD.shape[1], bias_HD.shape[1] // 2)
        window = _NO_WINDOW if settings["window"] is None else settings["window"]
        address = self._address(bias_HD)
        self._native.attention(*place, address + 4 * middle, stride, window)

    def _disentangled(self, op: Op, place: tuple[int, int, int, int, float]) -> None:
        tables, row = (op.weights["keys"], op.weights["queries"]), op.weights["row"]
        assert row is not None
        blocks = next(table.shape[1] for table in tables if table is not None)
        addresses = [self._address(table) for table in tables]
        self._native.attention_disentangled(
            *place, *addresses, blocks * BLOCK, self._address(row) + row.itemsize * (len(row) // 2)
        )

    def _pool(self, op: Op) -> None:
        self._native.pool(_index(op.reads[0]), _index(op.writes[0]), op.settings["mode"], op.settings["column"])

    def _normalize(self, op: Op) -> None:
        self._native.normalize(_index(op.reads[0]))

    def _activate(self, op: Op) -> None:
        self._native.activate(_index(op.reads[0]), _FUNCTIONS.index(op.settings["function"]))

    def _rotate(self, op: Op) -> None:
        tables = [self._address(op.weights[name], natural=True) for name in ("cos", "sin")]
        self._native.rotate(_index(op.reads[0]), op.settings["heads"], op.settings["head_size"], *tables)

    def _gate(self, op: Op) -> None:
        self._native.gate(_index(op.reads[0]), _index(op.writes[0]))


_ADD = {
    "embed": Executor._embed, "norm": Executor._norm, "quantize": Executor._quantize, "round": Executor._round,
    "linear": Executor._linear, "attention": Executor._attention, "pool": Executor._pool,
    "normalize": Executor._normalize, "activate": Executor._activate, "gate": Executor._gate,
    "rotate": Executor._rotate,
}  # fmt: skip


def check_count(what: str, value: int) -> int:
    """A number of something, at least 1.

    Raises:
        InputError: it is none.
    """
    try:
        count = index(value)
    except TypeError:
        raise InputError(f"{what} = {value!r}: not a whole number") from None
    if count < 1:
        raise InputError(f"{what} = {count}: at least 1")
    return count


def _packed(sequences: Sequence[Sequence[int]], what: str) -> tuple[np.ndarray, np.ndarray]:
    """Lengths, and all numbers end to end, int64."""
    try:
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        values = list(chain.from_iterable(sequences))
        # Unlike numpy, struct makes whole numbers of nothing else; and it is faster.
        return lengths, np.frombuffer(pack(f"{len(values)}q", *values), np.int64)
    except (TypeError, StructError) as error:
        raise InputError(f"a sequence holds something other than a {what} ({error})") from None


def _integers(values: np.ndarray, what: str) -> np.ndarray:
    """int64, contiguous."""
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise InputError(f"{what} are {values.dtype} {values.shape}; integers in one dimension are taken")
    return np.ascontiguousarray(values, np.int64)


def _below(values: np.ndarray, end: int, what: str) -> np.ndarray:
    """int32 from 0 to end - 1."""
    unsigned = _integers(values, f"{what}s").view(np.uint64)  # what is below 0 is very large
    if len(unsigned) and unsigned.max() >= end:
        wrong = int(values[unsigned >= end][0])
        raise InputError(f"{what} {wrong}: this model has 0 to {end - 1}")
    return unsigned.astype(np.int32)


def _index(buffer: Buffer | None) -> int:
    return -1 if buffer is None else buffer.index
