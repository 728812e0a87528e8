"""Attention, and what positions do to it."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from bitwright.engine.ops.binder import Binder
from bitwright.engine.ops.buffers import IN_PLACE, READ, WRITTEN, Buffer
from bitwright.engine.ops.rows import plain, uncounted
from bitwright.kernels.layouts import BLOCK


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Rotate:
    """bf16, in place: q and k of each head rotated by position.

    heads: of q and k together. cos_TF, sin_TF: of the angles, float32, a row for each position.
    """

    kind: ClassVar[str] = "rotate"
    name: str
    qkv: Buffer = field(metadata=IN_PLACE)
    heads: int
    head_size: int
    cos_TF: np.ndarray
    sin_TF: np.ndarray

    text = plain
    operations = uncounted

    def bind(self, to: Binder) -> object:
        return to.native.Rotate(
            rows=to.buffer(self.qkv),
            heads=self.heads,
            head_size=self.head_size,
            cos=to.array(self.cos_TF, natural=True),
            sin=to.array(self.sin_TF, natural=True),
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Attend:
    """bf16 -> bf16: softmax(scale · q kᵀ + bias) v of each head; a row holds q, k and v.

    integer: by codes of q, k, v and weights (`attention_int8`), not in bf16.
    window: how far a token sees on either side, None for any distance. bias_HD: float32 (heads, 2 · T − 1), by distance
    key − query, or None.
    """

    kind: ClassVar[str] = "attention"
    name: str
    qkv: Buffer = field(metadata=READ)
    out: Buffer = field(metadata=WRITTEN)
    heads: int
    head_size: int
    scale: float
    window: int | None
    bias_HD: np.ndarray | None
    integer: bool = False

    def text(self) -> str:
        window = "" if self.window is None else f" ±{self.window}"
        biased, integer = " biased" * (self.bias_HD is not None), ", int8" * self.integer
        return f"{self.heads} × {self.head_size}{window}{biased}{integer}"

    def operations(self, tokens: int) -> int:
        return 2 * tokens * (2 * tokens) * self.heads * self.head_size  # with keys, and of values with weights

    def bind(self, to: Binder) -> object:
        distances = 0 if self.bias_HD is None else self.bias_HD.shape[1]
        return to.native.Attend(
            source=to.buffer(self.qkv),
            out=to.buffer(self.out),
            heads=self.heads,
            head_size=self.head_size,
            scale=self.scale,
            bias=to.array(self.bias_HD, distances // 2),  # at distance 0
            bias_stride=distances,
            window=to.native.NO_WINDOW if self.window is None else self.window,
            integer=self.integer,
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AttendDisentangled:
    """bf16 -> bf16: attention with the products of queries, of keys, or of both with tables of positions.

    keys, queries: `packing.pack_heads` of the tables, scaled; a row for each bucket of distance; either may be None.
    row_R: int32, the bucket's row by key − query from −(T − 1) to T − 1. folded: linears of the model with int8 inputs
    that would have run once more to make the tables. integer: as in `Attend`; the products with tables stay in bf16.
    """

    kind: ClassVar[str] = "attention"
    name: str
    qkv: Buffer = field(metadata=READ)
    out: Buffer = field(metadata=WRITTEN)
    heads: int
    head_size: int
    scale: float
    keys: np.ndarray | None
    queries: np.ndarray | None
    row_R: np.ndarray
    folded: int
    integer: bool = False

    @property
    def tables(self) -> list[np.ndarray]:
        """Those that there are."""
        return [table for table in (self.keys, self.queries) if table is not None]

    def text(self) -> str:
        kinds = " c2p" * (self.keys is not None) + " p2c" * (self.queries is not None)
        return f"{self.heads} × {self.head_size}{kinds}"

    def operations(self, tokens: int) -> int:
        middle = len(self.row_R) // 2
        used = int(self.row_R[middle + tokens - 1] - self.row_R[middle - tokens + 1]) + 1
        products = 2 * tokens + used * len(self.tables)  # with keys, of values with weights; with rows in use
        return 2 * tokens * products * self.heads * self.head_size

    def bind(self, to: Binder) -> object:
        return to.native.AttendDisentangled(
            source=to.buffer(self.qkv),
            out=to.buffer(self.out),
            heads=self.heads,
            head_size=self.head_size,
            scale=self.scale,
            key_table=to.array(self.keys),
            query_table=to.array(self.queries),
            table_rows=self.tables[0].shape[1] * BLOCK,
            row=to.array(self.row_R, len(self.row_R) // 2),  # at distance 0
            integer=self.integer,
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AttendPast:
    """bf16 -> bf16: attention of new tokens over what the cache holds of their sequence, with their own k and v, which
    it appends.

    qkv: q of every head, then k, then v of every head of keys and values. q_weight_D, k_weight_D: of an RMSNorm of each
    head, float32, or None. cos_TF, sin_TF: float32 (positions, rotary / 2), which rotate the first `rotary` values of a
    head; None: nothing rotates. interleaved: each even value with the next; else the first half of them with the
    second. window: tokens that a token sees, itself among them; None: all before it. softcap: of scores, 0 for none.
    sinks_H: float32, a score of each head that only the denominator has, or None. causal: a token sees none after it.
    layer: of the cache.
    """

    kind: ClassVar[str] = "attention"
    name: str
    qkv: Buffer = field(metadata=IN_PLACE)
    out: Buffer = field(metadata=WRITTEN)
    heads: int
    kv_heads: int
    head_size: int
    scale: float
    layer: int
    softcap: float = 0.0
    window: int | None = None
    causal: bool = True
    sinks_H: np.ndarray | None = None
    q_weight_D: np.ndarray | None = None
    k_weight_D: np.ndarray | None = None
    eps: float = 0.0
    cos_TF: np.ndarray | None = None
    sin_TF: np.ndarray | None = None
    interleaved: bool = False

    def text(self) -> str:
        window = "" if self.window is None else f" -{self.window}"
        return f"{self.heads}/{self.kv_heads} × {self.head_size}{window} cached"

    def operations(self, tokens: int) -> int:
        seen = tokens if not self.causal else (tokens + 1) / 2
        return int(2 * tokens * 2 * seen * self.heads * self.head_size)

    def bind(self, to: Binder) -> object:
        layout = to.cache
        assert layout is not None, "a program with attention over a cache is bound with its layout"
        return to.native.AttendPast(
            source=to.buffer(self.qkv),
            out=to.buffer(self.out),
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_size=self.head_size,
            scale=self.scale,
            softcap=self.softcap,
            window=self.window or 0,
            causal=self.causal,
            sinks=to.array(self.sinks_H),
            kind=to.native.CacheKind[layout.kind],
            layer=layout.offsets[self.layer],
            q_weight=to.array(self.q_weight_D),
            k_weight=to.array(self.k_weight_D),
            eps=self.eps,
            rotary=0 if self.cos_TF is None else 2 * self.cos_TF.shape[1],
            interleaved=self.interleaved,
            cos=to.array(self.cos_TF, natural=True),
            sin=to.array(self.sin_TF, natural=True),
        )
