"""`InputGrid`: how rows of floats become 8-bit codes, for the kernels and for the programs that call them. Imports no
torch."""

from typing import Literal, NamedTuple

from bitwright.errors import KernelError
from bitwright.kernels.layouts import input_group_w4a8
from bitwright.numerics.linear import StaticGrid
from bitwright.numerics.spec import QuantSpec

QuantizeMode = Literal["asymmetric", "symmetric", "static"]  # the names of the native module's QuantizeMode


class InputGrid(NamedTuple):
    """See `quantize_rows/contract.h`.

    mode: asymmetric and symmetric are dynamic: each row has a scale of its own; static: every row has this scale and
    this zero point. code_min: -128, or -127 on a symmetric grid.
    """

    mode: QuantizeMode
    scale: float = 1.0
    zero_point: int = 0
    code_min: int = -128

    @classmethod
    def of(cls, spec: QuantSpec, static: StaticGrid | None = None) -> "InputGrid":
        """The grid of an input spec. static: where every input has the same.

        Raises:
            KernelError: `input_runs_natively` says no.
        """
        if not input_runs_natively(spec):
            raise KernelError(
                f"no int8 kernel for the input spec {spec}: it takes 8 bits, dynamic per row or static per tensor"
            )
        if static is None:
            return cls("symmetric" if spec.symmetric else "asymmetric", code_min=spec.code_min)
        return cls("static", static.scale, static.zero_point, spec.code_min)


def rounded_by_groups(weight: QuantSpec, k: int) -> int:
    """How many inputs of a linear share a scale where its 4-bit kernel rounds them to int8: as many as weights share
    one, or the largest part of those that is not too large. 0 where the kernel does not take the weight.

    weight: at most 4 bits. k: inputs.
    """
    if weight.bits > 4:
        return 0
    return input_group_w4a8(weight.group_size or k) or 0


def input_runs_natively(spec: QuantSpec) -> bool:
    """Whether the kernels quantize to this spec: 8 bits, static per tensor or, on a narrow grid, dynamic per row."""
    narrow = not (spec.symmetric and spec.uses_full_range)
    return (
        spec.bits == 8 and spec.group_size is None and spec.dynamic != spec.per_tensor and (narrow or not spec.dynamic)
    )
