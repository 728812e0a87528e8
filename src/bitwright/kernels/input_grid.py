"""`InputGrid`: how rows of floats become 8-bit codes, for the kernels and for the programs that call them. Imports
neither torch nor numpy."""

from typing import TYPE_CHECKING, Literal, NamedTuple

from bitwright.errors import KernelError
from bitwright.numerics.spec import QuantSpec

if TYPE_CHECKING:
    from torch import Tensor

QuantizeMode = Literal["asymmetric", "symmetric", "static"]  # the names of the native module's QuantizeMode

_LEAST, _MOST = 2.0**-126, (2.0 - 2.0**-23) * 2.0**127  # normal float32


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
    def of(cls, spec: QuantSpec, scale: "Tensor | None" = None, zero_point: "Tensor | None" = None) -> "InputGrid":
        """The grid of an input spec.

        Raises:
            KernelError: `input_runs_natively` says no; or a static scale is missing, or not a normal positive float32.
        """
        if not input_runs_natively(spec):
            raise KernelError(
                f"no int8 kernel for the input spec {spec}: it takes 8 bits, dynamic per row or static per tensor"
            )
        if spec.dynamic:
            return cls("symmetric" if spec.symmetric else "asymmetric", code_min=spec.code_min)
        if scale is None or scale.numel() != 1 or (zero_point is not None and zero_point.numel() != 1):
            raise KernelError("a static input spec needs one scale and at most one zero point for the whole tensor")
        value = float(scale.float())
        zero = 0 if zero_point is None else int(zero_point)
        if not _LEAST <= value <= _MOST or not -128 <= zero <= 127:
            raise KernelError(
                f"a static input grid with scale {value}, zero_point {zero}: the scale must be a normal positive "
                "float32, the zero point within [-128, 127]"
            )
        return cls("static", value, zero, spec.code_min)


def input_runs_natively(spec: QuantSpec) -> bool:
    """Whether the kernels quantize to this spec: 8 bits, static per tensor or, on a narrow grid, dynamic per row."""
    narrow = not (spec.symmetric and spec.uses_full_range)
    return (
        spec.bits == 8 and spec.group_size is None and spec.dynamic != spec.per_tensor and (narrow or not spec.dynamic)
    )
