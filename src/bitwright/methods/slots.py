"""The signatures of the slots, and what they return."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from bitwright.calibration.observers import LayerStats
from bitwright.numerics.linear import InputTransform
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.ranges import RangeFunction
from bitwright.numerics.schemes import Scheme
from bitwright.numerics.spec import QuantSpec

Notes = dict[str, float | int | str | bool]


@dataclass(frozen=True, slots=True)
class Rounded:
    """A quantized weight.

    bias_N: float32, what to add to the layer's bias, or None. notes: what the Record keeps (damping tried, dead inputs,
    a fallback and why).
    """

    qtensor: QTensor
    bias_N: Tensor | None = None
    notes: Notes = field(default_factory=dict)


class Rounding(Protocol):
    """What fills the rounding slot. Options of its own are bound with `functools.partial`."""

    def __call__(
        self, w_NK: Tensor, stats: LayerStats | None, spec: QuantSpec, range_function: RangeFunction
    ) -> Rounded:
        """The codes of a float weight, which is not modified."""
        ...


@dataclass(frozen=True, slots=True)
class Transformed:
    """A change of the input: x̂ = (x − shift) / scale, so that Ŵ = W · diag(scale) and bias += W · shift.

    scale_K: float32, positive. shift_K: float32 or None. notes: what the Record keeps (α, exponent, errors).
    """

    scale_K: Tensor
    shift_K: Tensor | None = None
    notes: Notes = field(default_factory=dict)

    @property
    def transform(self) -> InputTransform:
        """What it does to the input."""
        return InputTransform(self.scale_K, self.shift_K)


Error = Callable[[Transformed | None], float]
"""The error that quantization would leave with this transform (None: without one), smaller is better."""


class Transform(Protocol):
    """What fills the transform slot. Options of its own are bound with `functools.partial`."""

    def __call__(
        self, weights: Sequence[Tensor], stats: LayerStats, scheme: Scheme, error: Error | None
    ) -> Transformed | None:
        """The transform of one shared input, or None where the float input is best left as it is.

        weights: (N, K) each, of *all* linears that read the input, quantized or not. stats: of that input. scheme: of
        the quantized ones. error: for those that search by the block's output; None leaves them their own estimate.
        """
        ...
