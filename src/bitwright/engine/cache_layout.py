"""Where keys, values and the states of convolutions lie in the cache of a program (`csrc/attention_cached/contract.h`,
`ConvolvePast` in `csrc/engine/program.h`).

A block holds `tokens` tokens of one sequence, for all layers. In memory the blocks of one head of one layer follow each
other, then come those of the next head: what attention reads of a long text at once is one stretch of memory.

A convolution is one head. Its state is a row for each of the last few tokens, and a block keeps the rows of the last
`ROWS` tokens that were written to it, no more: each row is as wide as the model, in LFM2-1.2B four times a token's keys
and values in one layer. So the state at the end of every full block is there, for prefix reuse, and the state some
tokens ago in the block that is being written, for drafts that turn out wrong.

In a cache of int4 a token is near at first, and then far. The likeliest tokens hang on the last few hundred keys and on
the first: read in 4 bits these cost SmolLM2-135M nearly all of 5 % of perplexity. So every block is written in two
forms, and a query reads those near it in 8 bits (`is_hot` in the contract). Which form it reads follows from two
positions alone, never from when a step ran, so that chunks, forks and shared blocks change no byte. What is in 8 bits
takes two more blocks of memory, which are given back once no query to come is near.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

CacheKind = Literal["int8", "int4", "bf16"]  # the names of the native module's CacheKind
ROWS = 16  # of a convolution in a block: its state and more drafts than a step ever has


class CacheLayer(NamedTuple):
    """Attention. kv_heads: heads of keys and of values. head_size: values of each. window: tokens that one sees, itself
    included; None: all before it."""

    kv_heads: int
    head_size: int
    window: int | None = None


class ConvolutionLayer(NamedTuple):
    """width: values of a row. taps: tokens that count for a token, with itself; at most half of `ROWS`."""

    width: int
    taps: int


class Form(NamedTuple):
    """One of the blocks of memory that 64 tokens of a text take. A step whose first token lies in block `at` of the
    text reads this form of that block and any later one, and of `reach` blocks before it, None: all; first: and of
    the first."""

    reach: int | None = None
    first: bool = False

    def reads(self, block: int, at: int) -> bool:
        return self.reach is None or block >= at - self.reach or (self.first and block == 0)


class CacheLayout(NamedTuple):
    """kind: how keys and values are held. block_bytes: of one block of memory, in all layers. forms: the blocks of
    memory that the same tokens take.

    heads: of each layer, how many there are. head_bytes: what each of them takes in a block. offsets: where each layer
    begins in a cache of one block. rows: of a convolution in a block. undone: how many of the tokens last written to a
    block can be taken back one by one; all of a block always can.
    """

    kind: CacheKind
    tokens: int
    block_bytes: int
    forms: tuple[Form, ...]
    heads: tuple[int, ...]
    head_bytes: tuple[int, ...]
    offsets: tuple[int, ...]
    rows: int
    undone: int

    @classmethod
    def of(
        cls, layers: Sequence[CacheLayer | ConvolutionLayer], kind: CacheKind, native: Any, *, rows: int = ROWS
    ) -> "CacheLayout":
        """native: the native module, which knows what a head takes."""
        heads, sizes, ends, undone = [], [], [0], int(native.CACHE_BLOCK)
        for layer in layers:
            if isinstance(layer, ConvolutionLayer):
                heads.append(1)
                sizes.append(native.cache_rows_bytes(rows, layer.width))
                undone = min(undone, rows - (layer.taps - 1))
            else:
                heads.append(layer.kv_heads)
                sizes.append(native.cache_head_bytes(native.CacheKind[kind], layer.head_size))
            ends.append(ends[-1] + heads[-1] * sizes[-1])
        forms = [Form(_reach(layers, native.CACHE_BLOCK))]
        if kind == "int4":
            forms += [Form(native.CACHE_HOT_BLOCKS, first=True)] * 2  # keys and values in 8 bits
        return cls(
            kind, native.CACHE_BLOCK, ends[-1], tuple(forms), tuple(heads), tuple(sizes), tuple(ends[:-1]), rows, undone
        )

    def blocks_of(self, tokens: int, at_once: int) -> int:
        """The most blocks of memory that a text of so many tokens needs at a time, of which a step computes at most
        `at_once`."""
        all_blocks, of_step = -(-tokens // self.tokens), (at_once + self.tokens - 2) // self.tokens + 1
        return sum(
            all_blocks if form.reach is None else min(all_blocks, form.reach + form.first + of_step)
            for form in self.forms
        )


def _reach(layers: Sequence[CacheLayer | ConvolutionLayer], tokens: int) -> int | None:
    """Blocks before its own that a token may see: all, unless every layer has a window."""
    windows = [layer.taps if isinstance(layer, ConvolutionLayer) else layer.window for layer in layers]
    known = [window for window in windows if window is not None]
    return None if len(known) < len(windows) else -(-(max(known) - 1) // tokens)
