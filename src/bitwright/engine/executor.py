"""A program bound to native code: buffers by number, weights by address."""

from collections.abc import Iterator, Sequence
from itertools import chain
from operator import index
from struct import error as StructError
from struct import pack
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bitwright.engine.cache_layout import CacheKind, CacheLayout
from bitwright.engine.memory import ALIGNMENT, begun_at
from bitwright.engine.ops.binder import Binder
from bitwright.engine.program import Program, place_buffers
from bitwright.errors import InputError
from bitwright.kernels import native

if TYPE_CHECKING:
    from bitwright.kernels._native import Isa

_MOST_THREADS = 1 << 16  # asked for; the pool has fewer
_L2_BYTES = 1 << 20  # of a group's buffers
# Tokens. Fewer read the weights too often: 128 took 3 to 5 % more time for 8 × 128 tokens without AMX, although the
# buffers of 256 tokens of BERT-base are 6 MB. Where a group unpacks the weights, that takes as long as some 50 tokens.
_LEAST_GROUP = 256


# Fields of the native module's Batch that some programs do without.
_OF_STEPS = ("types", "past", "outputs", "output_count", "cache", "block_count", "tables", "table_stride")


class Step(NamedTuple):
    """New tokens of some sequences, laid end to end.

    ids: int32 (tokens,). lengths: int64 (sequences,), new tokens of each, at least one. past: int32 (sequences,),
    what the cache holds of each. tables: int32 (forms, sequences, …), its blocks in order, enough for the new
    tokens too, in each of the layout's forms; any number where a step reads none. outputs: int32, ascending, which
    of the tokens' outputs are wanted. cache: uint8, block_count times a layout's bytes, at a multiple of 64.
    """

    ids: np.ndarray
    lengths: np.ndarray
    past: np.ndarray
    tables: np.ndarray
    outputs: np.ndarray
    cache: np.ndarray
    block_count: int


class Executor:
    """Runs one program. Any number of threads may call `run` at once."""

    def __init__(
        self, program: Program, isa: "Isa", *, group_tokens: int | None = None, cache_kind: CacheKind = "int8"
    ) -> None:
        """group_tokens: sequences are taken in groups of this many tokens; by default 256, or as
        many as keep within L2. cache_kind: how a program with state holds keys and values."""
        module = native.load()
        row_bytes = {b.number: module.row_bytes(module.BufferKind[b.kind], b.width, b.group) for b in program.buffers}
        offsets, size = place_buffers(program.ops, program.buffers, program.output, row_bytes)
        self.cache = CacheLayout.of(program.layers, cache_kind, module) if program.layers else None
        self._passing = CacheLayout.of([program.passing], "bf16", module) if program.passing else None
        self._rooms: list[np.ndarray] = []  # for what `_passing` describes, of calls that are over
        self.program, self.binder = program, Binder(module, self.cache or self._passing)
        self.group_tokens = group_tokens or max(_LEAST_GROUP, _L2_BYTES // size // 32 * 32)
        buffers = [
            module.Buffer(
                kind=module.BufferKind[b.kind], width=b.width, offset=offset, per=module.Per[b.per], group=b.group
            )
            for b, offset in zip(program.buffers, offsets, strict=True)
        ]
        self._native = module.Program(
            isa=isa, buffers=buffers, arena_row=size, out=program.output.number, group_tokens=self.group_tokens
        )
        for op in program.ops:
            self._native.add(op.bind(self.binder))

    @property
    def memory(self) -> int:
        """Bytes of buffers that are held now."""
        return int(self._native.memory) + sum(room.nbytes for room in list(self._rooms))

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
        ids = _below(ids, self.program.vocabulary, "token id", starts)
        types = None if types is None else _below(types, self.program.types, "token type", starts)
        output = self.program.output
        out = np.empty((len(lengths) if output.per == "sequence" else len(ids), output.width), np.float32)
        if self._passing is not None:
            self._run_passing(self._passing, ids, starts, out, threads, seconds)
        else:
            self._run(ids, starts, out, threads, seconds, types=0 if types is None else types.ctypes.data)
        return out

    def steps(self, lengths: Sequence[int], threads: int) -> int:
        """How many times `run` goes through the program for sequences of these lengths."""
        if self._passing is None:
            return 1
        return len(list(_groups(np.cumsum([0, *lengths]), self.group_tokens * threads)))

    def step(self, step: Step, threads: int, seconds: np.ndarray | None = None) -> np.ndarray:
        """Compute new tokens of sequences, which the cache then holds. `step` is believed, but for where its tokens
        stand: `generate/cache.py` makes it.

        Returns:
            The rows of those tokens whose output is wanted: float32 (outputs, width).

        Raises:
            InputError: a sequence goes on beyond the last position that the program has; nothing is computed.
            MemoryError: the system has none for it. The sequences are as before.
        """
        self._check_ends(step)
        starts = np.zeros(len(step.lengths) + 1, np.int64)
        np.cumsum(step.lengths, out=starts[1:])
        out = np.empty((len(step.outputs), self.program.output.width), np.float32)
        self._run(
            step.ids, starts, out, min(check_count("threads", threads), _MOST_THREADS), seconds,
            past=step.past.ctypes.data,
            outputs=step.outputs.ctypes.data,
            output_count=len(step.outputs),
            cache=step.cache.ctypes.data,
            block_count=step.block_count,
            tables=step.tables.ctypes.data,
            table_stride=step.tables.shape[2],
        )  # fmt: skip
        return out

    def _run_passing(
        self, layout: CacheLayout, ids: np.ndarray, starts: np.ndarray, out: np.ndarray, threads: int,
        seconds: np.ndarray | None,
    ) -> None:  # fmt: skip
        """Sequences in groups, each a step without a past, in a cache of one layer that is forgotten afterwards."""
        for first, last in _groups(starts, self.group_tokens * threads):
            begin, end = starts[first], starts[last]
            blocks = -(-np.diff(starts[first : last + 1]) // layout.tokens)
            ends, most = np.cumsum(blocks), int(blocks.max())
            # What a row has beyond its sequence's blocks is not read.
            tables = np.minimum((ends - blocks)[:, None] + np.arange(most), ends[-1] - 1).astype(np.int32)
            rows = slice(first, last) if self.program.output.per == "sequence" else slice(begin, end)
            room, past = self._room(int(ends[-1]) * layout.block_bytes), np.zeros(last - first, np.int32)
            try:
                self._run(
                    ids[begin:end], starts[first : last + 1] - begin, out[rows], threads, seconds,
                    past=past.ctypes.data,
                    cache=room.ctypes.data,
                    block_count=int(ends[-1]),
                    tables=tables.ctypes.data,
                    table_stride=most,
                )  # fmt: skip
            finally:
                self._rooms.append(room)

    def _room(self, size: int) -> np.ndarray:
        """Memory of at least so many bytes for keys and values, that of an earlier call if that is enough."""
        try:
            room = self._rooms.pop()
        except IndexError:  # other threads have them
            return begun_at(ALIGNMENT, size)
        return room if len(room) >= size else begun_at(ALIGNMENT, size)

    def _run(
        self, ids: np.ndarray, starts: np.ndarray, out: np.ndarray, threads: int, seconds: np.ndarray | None,
        **others: int,
    ) -> None:  # fmt: skip
        """others: of `Batch`, where they are not 0."""
        fields = dict.fromkeys(_OF_STEPS, 0) | others
        batch = native.load().Batch(
            ids=ids.ctypes.data, starts=starts.ctypes.data, sequences=len(starts) - 1, **fields
        )  # fmt: skip
        timed = 0 if seconds is None else seconds.ctypes.data
        if not self._native.run(batch, threads=threads, out=out.ctypes.data, seconds=timed):
            raise MemoryError(
                f"there is not enough memory for {len(ids)} tokens in {len(starts) - 1} sequences on {threads} "
                "threads; use fewer threads or shorter sequences"
            )

    def _check_ends(self, step: Step) -> None:
        ends, limit = step.past + step.lengths, self.program.max_tokens
        if len(ends) and ends.max() > limit:
            worst = int(ends.argmax())
            raise InputError(
                f"sequence {worst} has {step.past[worst]} tokens and gets {step.lengths[worst]} more; this model has "
                f"{limit} positions"
            )

    def _check_lengths(self, lengths: np.ndarray) -> None:
        above = (lengths - 1).view(np.uint64)  # what is below 1 is very large
        if len(above) and above.max() >= self.program.max_tokens:
            worst = int(above.argmax())
            limit = self.program.max_tokens
            raise InputError(f"sequence {worst} has {lengths[worst]} tokens; this model takes 1 to {limit}")


def _groups(starts: np.ndarray, tokens: int) -> Iterator[tuple[int, int]]:
    """Neighbours with at most so many tokens together, or one sequence that has more: (first, end) of each."""
    first = 0
    while first < len(starts) - 1:
        last = max(int(starts.searchsorted(starts[first] + tokens, "right")) - 1, first + 1)
        yield first, last
        first = last


def check_count(what: str, value: int) -> int:
    """A number of something, at least 1.

    Raises:
        InputError: it is none.
    """
    try:
        count = index(value)
    except TypeError:
        raise InputError(f"{what} = {value!r}: give a whole number") from None
    if count < 1:
        raise InputError(f"{what} = {count}: give at least 1")
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
        raise InputError(f"{what} are {values.dtype} {values.shape}, but must be integers in one dimension")
    return np.ascontiguousarray(values, np.int64)


def _below(values: np.ndarray, end: int, what: str, starts: np.ndarray) -> np.ndarray:
    """int32 from 0 to end - 1. starts: of each sequence, for the message."""
    unsigned = _integers(values, f"{what}s").view(np.uint64)  # what is below 0 is very large
    if len(unsigned) and unsigned.max() >= end:
        place = int((unsigned >= end).argmax())
        sequence = int(starts.searchsorted(place, "right")) - 1
        raise InputError(f"sequence {sequence}: {what} {int(values[place])}, but this model has only 0 to {end - 1}")
    return unsigned.astype(np.int32)
