"""`Cache`: the state of sequences under way, in blocks of tokens; planned once, and shared by all of them.

A block holds the tokens of one stretch of one text, for all layers. Sequences whose texts begin alike hold the same
full blocks. A block that nobody holds any more can be found by its text until its memory is needed. Whether a block was
computed for this text or found changes no result: attention reads the same bytes.

Of a convolution's state a block keeps the last tokens alone (`engine/cache_layout.py`). So a sequence can be taken back
by a few tokens, or to the beginning of a block, but not to anywhere in the middle of one.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bitwright.engine.cache_layout import CacheLayout
from bitwright.engine.executor import Step
from bitwright.errors import InputError

_PAGE = 2 << 20


@dataclass(slots=True, eq=False)
class Held:
    """What the cache holds of one sequence: `length` tokens, and the blocks for them, in order. keys: of its full
    blocks, by which others find them. written: tokens that were ever computed into these blocks."""

    blocks: list[int] = field(default_factory=list)
    length: int = 0
    keys: list[bytes] = field(default_factory=list)
    written: int = 0


class CacheFull(Exception):
    """No block is free: somebody must give some back."""


class Cache:
    """Blocks of one layout. One thread at a time may use it."""

    def __init__(self, layout: CacheLayout, tokens: int) -> None:
        """tokens: that all sequences together may hold, rounded up to whole blocks.

        Raises:
            InputError: there is not as much memory.
        """
        self.layout, self.size = layout, -(-tokens // layout.tokens)
        try:
            room = np.empty(self.size * layout.block_bytes + _PAGE, np.uint8)
        except MemoryError:
            raise InputError(
                f"a cache of {tokens} tokens takes {self.size * layout.block_bytes / 1e9:.1f} GB, which this machine "
                "does not have; ask for a shorter context or fewer sequences at once"
            ) from None
        begin = -room.ctypes.data % _PAGE
        self._memory = room[begin : begin + self.size * layout.block_bytes]
        self._layers = []  # uint8 (heads, blocks, bytes)
        for heads, size, offset in zip(layout.heads, layout.head_bytes, layout.offsets, strict=True):
            part = self._memory[offset * self.size :][: heads * size * self.size]
            self._layers.append(part.reshape(heads, self.size, size))
        self._free = list(range(self.size - 1, -1, -1))
        self._holders = [0] * self.size
        self._found: dict[bytes, int] = {}  # full blocks by the text up to their end
        self._key: list[bytes | None] = [None] * self.size  # of each block in `_found`
        self._idle: OrderedDict[int, None] = OrderedDict()  # those that nobody holds, the longest unused first

    @property
    def bytes(self) -> int:
        """Of all blocks."""
        return self.size * self.layout.block_bytes

    @property
    def free(self) -> int:
        """Blocks that a sequence may have now."""
        return len(self._free) + len(self._idle)

    def begin(self, ids: Sequence[int]) -> Held:
        """A sequence, with the blocks that hold the beginning of its text, but never all of it: the last token is to be
        computed."""
        held, size = Held(), self.layout.tokens
        for key in _keys(ids[: (len(ids) - 1) // size * size], size):
            block = self._found.get(key)
            if block is None:
                break
            self._hold(block)
            held.blocks.append(block)
            held.keys.append(key)
        held.length = held.written = len(held.blocks) * size
        return held

    def needs(self, held: Held, tokens: int) -> int:
        """Blocks that a sequence lacks for this many more tokens."""
        return -(-(held.length + tokens) // self.layout.tokens) - len(held.blocks)

    def grow(self, held: Held, tokens: int) -> None:
        """Give a sequence the blocks for this many more tokens.

        Raises:
            CacheFull: there are not enough; the sequence is as before.
        """
        needed = self.needs(held, tokens)
        if needed > self.free:
            raise CacheFull
        for _ in range(needed):
            held.blocks.append(self._take())

    def appended(self, held: Held, ids: Sequence[int]) -> None:
        """Tokens `held.length` and on of a sequence were computed. ids: all its tokens so far."""
        held.length, size = len(ids), self.layout.tokens
        done = len(held.keys)
        if held.length // size == done:
            return
        before = held.keys[-1] if held.keys else b""
        for number, key in enumerate(_keys(ids[done * size : held.length // size * size], size, before), done):
            held.keys.append(key)
            if key not in self._found:
                self._found[key], self._key[held.blocks[number]] = held.blocks[number], key

    def roll_back(self, held: Held, length: int) -> None:
        """Forget the tokens from `length` on; of a layout that does not hold what computing goes on from there, also
        those before, down to the beginning of their block. `held.length` says."""
        size = self.layout.tokens
        full = length // size
        if length % size and min(held.written, (full + 1) * size) - length > self.layout.undone:
            length = full * size
        keep = -(-length // size)
        if keep > full:  # the last block is written anew, which others may hold, or find
            block = held.blocks[full]
            if self._holders[block] > 1:
                held.blocks[full] = self._copied(block)
                self._release(block)
            else:
                self._forget(block)
        for block in held.blocks[keep:]:
            self._release(block)
        del held.blocks[keep:], held.keys[full:]
        held.length, held.written = length, min(held.written, keep * size)

    def fork(self, held: Held) -> Held:
        """A second sequence with the same tokens. Full blocks are shared; the last, which each goes on writing, is
        copied.

        Raises:
            CacheFull: there is no block for the copy.
        """
        full = held.length // self.layout.tokens
        last = [self._copied(held.blocks[full])] if held.length % self.layout.tokens else []
        for block in held.blocks[:full]:
            self._hold(block)
        written = min(held.written, (full + len(last)) * self.layout.tokens)
        return Held(held.blocks[:full] + last, held.length, held.keys[:full], written)

    def end(self, held: Held) -> None:
        """Give all blocks of a sequence back."""
        self.roll_back(held, 0)

    def step(self, work: Sequence[tuple[Held, Sequence[int], int]]) -> Step:
        """What the executor computes. work: sequences, which have room, with new tokens, and of how many of the last of
        these the output is wanted. As many of these as the layout can take back may turn out not to count."""
        for held, ids, _ in work:
            held.written = max(held.written, held.length + len(ids))
        lengths = np.array([len(ids) for _, ids, _ in work], np.int64)
        ends = np.cumsum(lengths)
        tables = np.zeros((len(work), max(len(held.blocks) for held, _, _ in work)), np.int32)
        for row, (held, _, _) in zip(tables, work, strict=True):
            row[: len(held.blocks)] = held.blocks
        outputs = [np.arange(end - wanted, end) for end, (_, _, wanted) in zip(ends, work, strict=True)]
        return Step(
            ids=np.concatenate([np.asarray(ids, np.int32) for _, ids, _ in work]),
            lengths=lengths,
            past=np.array([held.length for held, _, _ in work], np.int32),
            tables=tables,
            outputs=np.concatenate(outputs).astype(np.int32),
            cache=self._memory,
            block_count=self.size,
        )

    def _take(self) -> int:
        if self._free:
            block = self._free.pop()
        elif self._idle:
            block, _ = self._idle.popitem(last=False)
            self._forget(block)
        else:
            raise CacheFull
        self._holders[block] = 1
        return block

    def _copied(self, block: int) -> int:
        copy = self._take()
        for layer in self._layers:
            layer[:, copy] = layer[:, block]
        return copy

    def _hold(self, block: int) -> None:
        self._idle.pop(block, None)
        self._holders[block] += 1

    def _release(self, block: int) -> None:
        self._holders[block] -= 1
        if self._holders[block]:
            return
        if self._key[block] is None:
            self._free.append(block)
        else:
            self._idle[block] = None

    def _forget(self, block: int) -> None:
        """Nobody finds the block any more."""
        key, self._key[block] = self._key[block], None
        if key is not None:
            del self._found[key]


def _keys(ids: Sequence[int], size: int, before: bytes = b"") -> list[bytes]:
    """Of each full block of tokens, what stands for the text up to its end. before: of the text before them."""
    from hashlib import blake2b

    keys = []
    for begin in range(0, len(ids), size):
        before = blake2b(before + np.asarray(ids[begin : begin + size], np.int32).tobytes(), digest_size=16).digest()
        keys.append(before)
    return keys
