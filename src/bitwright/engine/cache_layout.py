"""Where keys, values and the states of convolutions lie in the cache of a program (`csrc/attention_cached/contract.h`,
`ConvolvePast` in `csrc/engine/program.h`).

A block holds `tokens` tokens of one sequence, for all layers. In memory the blocks of one head of one layer follow each
other, then come those of the next head: what attention reads of a long text at once is one stretch of memory.

A convolution is one head. Its state is a row for each of the last few tokens, and a block keeps the rows of the last
`ROWS` tokens that were written to it, no more: each row is as wide as the model, in LFM2-1.2B four times a token's keys
and values in one layer. So the state at the end of every full block is there, for prefix reuse, and the state some
tokens ago in the block that is being written, for drafts that turn out wrong.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

CacheKind = Literal["int8", "int4", "bf16"]  # the names of the native module's CacheKind
ROWS = 16  # of a convolution in a block: its state and more drafts than a step ever has


class CacheLayer(NamedTuple):
    """Attention. kv_heads: heads of keys and of values. head_size: values of each."""

    kv_heads: int
    head_size: int


class ConvolutionLayer(NamedTuple):
    """width: values of a row. taps: tokens that count for a token, with itself; at most half of `ROWS`."""

    width: int
    taps: int


class CacheLayout(NamedTuple):
    """kind: how keys and values are held. block_bytes: of one block, in all layers.

    heads: of each layer, how many there are. head_bytes: what each of them takes in a block. offsets: where each layer
    begins in a cache of one block. rows: of a convolution in a block. undone: how many of the tokens last written to a
    block can be taken back one by one; all of a block always can.
    """

    kind: CacheKind
    tokens: int
    block_bytes: int
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
        return cls(kind, native.CACHE_BLOCK, ends[-1], tuple(heads), tuple(sizes), tuple(ends[:-1]), rows, undone)
