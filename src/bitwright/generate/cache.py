"""`Cache`: the state of sequences under way, in blocks of tokens; planned once, and shared by all of them.

A block holds the tokens of one stretch of one text, for all layers. Sequences whose texts begin alike hold the same
full blocks. A block that nobody holds any more can be found by its text until its memory is needed. Whether a block was
computed for this text or found changes no result: attention reads the same bytes.

Of a convolution's state a block keeps the last tokens alone (`engine/cache_layout.py`). So a sequence can be taken back
by a few tokens, or to the beginning of a block, but not to anywhere in the middle of one.

The same tokens may take several blocks of memory, one for each of the layout's forms. Those that only queries near them
read (int4's in 8 bits, or all blocks where every layer has a window) are given back as a sequence grows, and are then
found by their text as others are. A text goes on at the end of a block, whether it begins, is taken back or comes again
after others had its memory, if everything is there that its next token reads; else at an earlier one. To compute only
what is missing is no way out: it would read what is missing before it, and so on to the beginning.
"""

from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bitwright.engine.cache_layout import CacheLayout, Form
from bitwright.engine.executor import Step
from bitwright.errors import InputError

CHUNK = 512  # tokens of prompts in a step, at most
_PAGE = 2 << 20
_NONE = -1  # in place of a block that was given back


_Digest = bytes  # of a text up to the end of a block
_Key = tuple[_Digest, int]  # and the form of the block


@dataclass(slots=True, eq=False)
class Held:
    """What the cache holds of one sequence: `length` tokens, and the blocks for them, in order, those of all forms of
    the same tokens side by side. keys: of its full blocks, by which others find them. written: tokens that were ever
    computed into these blocks."""

    blocks: list[int] = field(default_factory=list)
    length: int = 0
    keys: list[_Digest] = field(default_factory=list)
    written: int = 0


class CacheFull(Exception):
    """No block is free: somebody must give some back."""


class Cache:
    """Blocks of one layout. One thread at a time may use it."""

    def __init__(self, layout: CacheLayout, tokens: int) -> None:
        """tokens: that all sequences together may hold, rounded up to whole blocks; with what one sequence takes beyond
        that, and the others must find.

        Raises:
            InputError: there is not as much memory.
        """
        lasting = layout._replace(forms=(Form(), *layout.forms[1:]))  # several sequences, each with its window
        self.layout, self.size = layout, lasting.blocks_of(tokens, CHUNK)
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
        self._free = deque(range(self.size))
        self._holders = [0] * self.size
        self._found: dict[_Key, int] = {}  # full blocks by the text up to their end, and their form
        self._key: list[_Key | None] = [None] * self.size  # of each block in `_found`
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
        self._resume(held, _keys(ids[: (len(ids) - 1) // size * size], size))
        return held

    def longest(self, most: int) -> int:
        """Tokens that one sequence may have, up to so many."""
        return bisect_right(range(most + 1), self.size, key=lambda tokens: self.layout.blocks_of(tokens, CHUNK)) - 1

    def fits(self, tokens: int, at_once: int = CHUNK, sequences: int = 1) -> bool:
        """Whether so many sequences have room side by side, each of so many tokens, computed so many at once."""
        return sequences * self.layout.blocks_of(tokens, at_once) <= self.size

    def needs(self, held: Held, tokens: int) -> int:
        """Blocks that a sequence lacks for this many more tokens."""
        forms = len(self.layout.forms)
        return -(-(held.length + tokens) // self.layout.tokens) * forms - len(held.blocks)

    def grow(self, held: Held, tokens: int) -> None:
        """Give a sequence the blocks for this many more tokens.

        Raises:
            CacheFull: there are not enough; the sequence is as before.
        """
        needed = self.needs(held, tokens)
        if needed > self.free:
            raise CacheFull
        for number in range(needed):
            held.blocks.append(self._take(first=number % len(self.layout.forms) == 0))

    def appended(self, held: Held, ids: Sequence[int]) -> None:
        """Tokens `held.length` and on of a sequence were computed. ids: all its tokens so far."""
        held.length, size = len(ids), self.layout.tokens
        done = len(held.keys)
        if held.length // size == done:
            return
        before = held.keys[-1] if held.keys else b""
        for number, key in enumerate(_keys(ids[done * size : held.length // size * size], size, before), done):
            held.keys.append(key)
            for form, block in enumerate(self._forms(held, number)):
                if (key, form) not in self._found:
                    self._found[key, form], self._key[block] = block, (key, form)
        for number in range(len(held.keys)):
            for form, block in enumerate(self._forms(held, number)):
                if block != _NONE and not self.layout.forms[form].reads(number, len(held.keys)):
                    held.blocks[number * len(self.layout.forms) + form] = _NONE
                    self._release(block)

    def advanced(self, held: Held, tokens: int) -> None:
        """So many more tokens of a sequence were computed, for whose text nobody looks: its blocks are found by no
        other, and none is given back while it grows."""
        held.length += tokens

    def roll_back(self, held: Held, length: int) -> None:
        """Forget the tokens from `length` on; where the cache does not hold what computing goes on from there, also
        those before, down to the beginning of their block or of an earlier one. `held.length` says."""
        size, forms = self.layout.tokens, len(self.layout.forms)
        full = length // size
        last = self._forms(held, full)
        shared = [block for block in last if block != _NONE and self._holders[block] > 1]
        undone = min(held.written, (full + 1) * size) - length
        if length % size and (undone > self.layout.undone or _NONE in last or len(shared) > self.free):
            length = full * size
        keep = -(-length // size)
        if keep > full:  # the last block is written anew, which others may hold, or find
            for place, block in enumerate(last, full * forms):
                if block in shared:
                    held.blocks[place] = self._copied(block)
                    self._release(block)
                else:
                    self._forget(block)
        self._release_all(held.blocks[keep * forms :])
        del held.blocks[keep * forms :], held.keys[full:]
        held.length, held.written = length, min(held.written, keep * size)
        if not self._regain(held):
            self._release_all(held.blocks)
            held.blocks.clear()
            self._resume(held, held.keys)

    def fork(self, held: Held) -> Held:
        """A second sequence with the same tokens. Full blocks are shared; the last, which each goes on writing, is
        copied.

        Raises:
            CacheFull: there is no block for the copy.
        """
        size = self.layout.tokens
        full, partial = divmod(held.length, size)
        last = self._forms(held, full) if partial else []
        if len(last) > self.free:
            raise CacheFull
        last = [self._copied(block) for block in last]
        kept = held.blocks[: full * len(self.layout.forms)]
        for block in kept:
            if block != _NONE:
                self._hold(block)
        written = min(held.written, -(-held.length // size) * size)
        return Held(kept + last, held.length, held.keys[:full], written)

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
        forms = len(self.layout.forms)
        tables = np.zeros((len(work), max(len(held.blocks) for held, _, _ in work)), np.int32)
        for row, (held, _, _) in zip(tables, work, strict=True):
            row[: len(held.blocks)] = held.blocks
        tables = np.ascontiguousarray(tables.reshape(len(work), -1, forms).transpose(2, 0, 1))
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

    def _forms(self, held: Held, number: int) -> list[int]:
        """The blocks of memory of one block of a sequence."""
        forms = len(self.layout.forms)
        return held.blocks[number * forms : (number + 1) * forms]

    def _regain(self, held: Held) -> bool:
        """Find again what was given back of a sequence and its next token reads; False if some of it is gone."""
        forms, full = self.layout.forms, len(held.keys)
        lacking = {
            number * len(forms) + place: self._found.get((held.keys[number], place))
            for number in range(full)
            for place, form in enumerate(forms)
            if form.reads(number, full) and held.blocks[number * len(forms) + place] == _NONE
        }
        if None in lacking.values():
            return False
        for place, block in lacking.items():
            assert block is not None
            self._hold(block)
            held.blocks[place] = block
        return True

    def _resume(self, held: Held, keys: list[_Digest]) -> None:
        """Give a sequence that holds nothing the most of a text's blocks after which it can go on."""
        forms, full = self.layout.forms, 0
        runs = [0] * len(forms)  # blocks in a row that are there, up to this one
        for number, key in enumerate(keys, 1):
            runs = [run + 1 if (key, form) in self._found else 0 for form, run in enumerate(runs)]
            if all(
                run >= (number if form.reach is None else min(number, form.reach))
                and (not form.first or (keys[0], place) in self._found)
                for place, (form, run) in enumerate(zip(forms, runs, strict=True))
            ):
                full = number
        for number, key in enumerate(keys[:full]):
            for place, form in enumerate(forms):
                block = self._found[key, place] if form.reads(number, full) else _NONE
                held.blocks.append(block)
                if block != _NONE:
                    self._hold(block)
        held.keys = keys[:full]
        held.length = held.written = full * self.layout.tokens

    def _take(self, *, first: bool = True) -> int:
        """A block. first: of those that a step reads one after the other, and which lie so in memory where they can."""
        if self._free:
            block = self._free.popleft() if first else self._free.pop()
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

    def _release_all(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            if block != _NONE:
                self._release(block)

    def _release(self, block: int) -> None:
        self._holders[block] -= 1
        if self._holders[block]:
            return
        if self._key[block] is None:
            self._free.appendleft(block)
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
