"""How a tensor is represented. Frozen data; nothing here touches a tensor."""

from dataclasses import dataclass
from typing import Literal

from bitwright.errors import NumericsError

Grid = Literal["uniform", "pot", "apot", "nf4", "fp4", "kmeans", "ternary", "binary"]

# The bits that each grid can have. Indices into a codebook are kept as int8 too, so there are none of 8 bits.
_BITS: dict[Grid, tuple[int, ...]] = {
    "uniform": (8, 4, 3, 2),
    "pot": (4, 3, 2),
    "apot": (4, 3),
    "nf4": (4,),
    "fp4": (4,),
    "kmeans": (4, 3, 2),
    "ternary": (2,),
    "binary": (1,),
}


@dataclass(frozen=True, slots=True)
class QuantSpec:
    """How one tensor is represented by integers: real ≈ (code − zero_point) · scale, or codebook[code] · scale.

    Granularity is the shape of the scale. `group_size=None` gives a row (an output channel of a weight, a token of
    an activation) one scale, a number gives each run of that many values along K one, `per_tensor` gives all one.

    Codes are kept signed: [−2^(b−1), 2^(b−1)−1]; a format that stores them unsigned shifts codes and zero point alike.
    A symmetric grid is narrow (−127…127) at 8 bits and full (−8…7) below, unless `full_range` says otherwise.
    `dynamic` specs compute scale and zero point from the values at run time (activations only).

    `grid` is where the levels lie. "uniform": at whole multiples of the scale. "ternary": −1, 0 and 1 times the scale,
    in 2 bits. On the others a code is the index, from 0, of a level in a codebook, which the scale multiplies: "pot"
    and "apot" (sums of) powers of two, "nf4" quantiles of a normal distribution, "fp4" floats of 4 bits (E2M1, as in
    MXFP4 and NVFP4), "kmeans" levels fitted to the tensor, "binary" −1 and 1. All but the uniform grid are symmetric,
    and for weights only.
    """

    bits: int = 8
    symmetric: bool = True
    group_size: int | None = None
    per_tensor: bool = False
    dynamic: bool = False
    full_range: bool | None = None
    grid: Grid = "uniform"

    def __post_init__(self) -> None:
        if self.grid not in _BITS:
            raise NumericsError(f"grid {self.grid!r} is unknown; known are {', '.join(_BITS)}")
        if self.bits not in _BITS[self.grid]:
            known = " or ".join(map(str, _BITS[self.grid]))
            raise NumericsError(f"bits = {self.bits}: the {self.grid} grid has {known} bits")
        if self.grid != "uniform" and (not self.symmetric or self.dynamic):
            raise NumericsError(f"the {self.grid} grid is for weights, and symmetric")
        if self.per_tensor and self.grid not in ("uniform", "ternary"):
            raise NumericsError(f"the {self.grid} grid has a scale per row or group")
        if self.group_size is not None and (self.group_size < 1 or self.per_tensor):
            raise NumericsError(
                f"group_size = {self.group_size} and per_tensor = {self.per_tensor} exclude each other; choose one"
            )
        if not self.symmetric and self.full_range is False:
            raise NumericsError("an asymmetric grid always uses its full range; leave full_range unset")

    @property
    def has_codebook(self) -> bool:
        """Whether codes are indices of a codebook's levels."""
        return self.grid not in ("uniform", "ternary")

    @property
    def is_mean_scaled(self) -> bool:
        """Whether the scale stands for the mean magnitude of what it scales, not for the largest."""
        return self.grid in ("ternary", "binary")

    @property
    def has_zero(self) -> bool:
        """Whether 0 is a level whatever the scale, so that zeros stay zeros."""
        return self.grid not in ("kmeans", "binary")

    @property
    def code_min(self) -> int:
        """The smallest code."""
        if self.grid == "ternary":
            return -1
        if self.has_codebook:
            return 0
        return -int(2 ** (self.bits - 1)) + (0 if self.uses_full_range else 1)

    @property
    def code_max(self) -> int:
        """The largest code. Signed powers of two leave one of the 2^b unused: 0 and −0 are one level."""
        if self.grid in ("pot", "apot"):
            return int(2**self.bits) - 2
        return int(2**self.bits) - 1 if self.has_codebook else int(2 ** (self.bits - 1)) - 1

    @property
    def uses_full_range(self) -> bool:
        """Whether code −2^(b−1) of a uniform grid is used: always if asymmetric, below 8 bits if symmetric, unless set
        by hand.
        """
        return not self.symmetric or (self.bits < 8 if self.full_range is None else self.full_range)

    @property
    def scale_in_16_bits(self) -> bool:
        """Whether its scales are rounded to values that bfloat16 holds, and float16 too from 2^-17 on."""
        return self.grid == "uniform" and self.bits <= 4

    @property
    def half_steps(self) -> float:
        """Steps between zero and absmax on a symmetric grid: 127 if narrow at 8 bits, 2^(b−1) − ½ if full.

        Other grids than the uniform one end at the scale itself: 1; but "fp4" at 6, the largest number of 4 bits.
        """
        if self.grid != "uniform":
            return 6.0 if self.grid == "fp4" else 1.0
        return 2.0 ** (self.bits - 1) - (0.5 if self.uses_full_range else 1.0)


def stored_dtype(source: str) -> str:
    """The dtype, by name, in which a file holds a float matrix "in 16 bit", from that of the source: float16 stays,
    and everything else becomes bfloat16, which has the range of float32.
    """
    return "float16" if source == "float16" else "bfloat16"
