"""Short convolutions over the tokens of a sequence."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from bitwright.engine.ops.binder import Binder
from bitwright.engine.ops.buffers import READ, WRITTEN, Buffer
from bitwright.engine.ops.rows import uncounted


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ConvolvePast:
    """bf16 -> bf16: c · (bias + Σ weight · (b · x) of a token and those before it), of each feature by itself.

    gates: b, c, x side by side. weight_LH: float32, a row for each token that counts, the oldest first. bias_H: float32
    or None. The products b · x, in bf16, are what the cache holds of a token. layer: of the cache.
    """

    kind: ClassVar[str] = "convolve"
    name: str
    gates: Buffer = field(metadata=READ)
    out: Buffer = field(metadata=WRITTEN)
    weight_LH: np.ndarray
    bias_H: np.ndarray | None
    layer: int

    operations = uncounted

    def text(self) -> str:
        return f"{len(self.weight_LH)} taps cached"

    def bind(self, to: Binder) -> object:
        layout = to.cache
        assert layout is not None, "a program with state is bound with the layout of its cache"
        return to.native.ConvolvePast(
            source=to.buffer(self.gates),
            out=to.buffer(self.out),
            taps=len(self.weight_LH),
            rows=layout.rows,
            layer=layout.offsets[self.layer],
            weight=to.array(self.weight_LH),
            bias=to.array(self.bias_H),
        )
