"""`InputGrid`: how rows of floats become 8-bit codes, for the kernels and for the programs that call them. Imports
neither torch nor numpy."""

from dataclasses import dataclass
from typing import Literal

QuantizeMode = Literal["asymmetric", "symmetric", "static"]  # the names of the native module's QuantizeMode


@dataclass(frozen=True, slots=True)
class InputGrid:
    """See `quantize_rows/contract.h`.

    mode: asymmetric and symmetric are dynamic: each row has a scale of its own; static: every row has this scale and
    this zero point. code_min: -128, or -127 on a symmetric grid.
    """

    mode: QuantizeMode
    scale: float = 1.0
    zero_point: int = 0
    code_min: int = -128
