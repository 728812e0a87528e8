"""Where keys and values lie in the cache of a program (`csrc/attention_cached/contract.h`).

A block holds `tokens` tokens of one sequence, for all layers. In memory the blocks of one head of one layer follow each
other, then come those of the next head: what attention reads of a long text at once is one stretch of memory.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

CacheKind = Literal["int8", "int4", "bf16"]  # the names of the native module's CacheKind


class CacheLayer(NamedTuple):
    """kv_heads: heads of keys and of values. head_size: values of each."""

    kv_heads: int
    head_size: int


class CacheLayout(NamedTuple):
    """kind: how keys and values are held. block_bytes: of one block, in all layers.

    heads: of each layer, how many there are. head_bytes: what each of them takes in a block. offsets: where each layer
    begins in a cache of one block.
    """

    kind: CacheKind
    tokens: int
    block_bytes: int
    heads: tuple[int, ...]
    head_bytes: tuple[int, ...]
    offsets: tuple[int, ...]

    @classmethod
    def of(cls, layers: Sequence[CacheLayer], kind: CacheKind, native: Any) -> "CacheLayout":
        """native: the native module, which knows what a head takes."""
        heads = tuple(layer.kv_heads for layer in layers)
        sizes = tuple(native.cache_head_bytes(native.CacheKind[kind], layer.head_size) for layer in layers)
        ends = [0]
        for count, size in zip(heads, sizes, strict=True):
            ends.append(ends[-1] + count * size)
        return cls(kind, native.CACHE_BLOCK, ends[-1], heads, sizes, tuple(ends[:-1]))
