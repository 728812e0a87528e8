"""How a tensor, and how a layer, is represented. Frozen data; nothing here touches a tensor."""

from dataclasses import dataclass

from bitwright.errors import NumericsError


@dataclass(frozen=True, slots=True)
class QuantSpec:
    """How one tensor is represented by integers: real ≈ (code − zero_point) · scale.

    Granularity is the shape of the scale. `group_size=None` gives a row (an output channel of a weight, a token of
    an activation) one scale, a number gives each run of that many values along K one, `per_tensor` gives all one.

    Codes are kept signed: [−2^(b−1), 2^(b−1)−1]; a format that stores them unsigned shifts codes and zero point alike.
    A symmetric grid is narrow (−127…127) at 8 bits and full (−8…7) below, unless `full_range` says otherwise.
    `dynamic` specs compute scale and zero point from the values at run time (activations only).
    """

    bits: int = 8
    symmetric: bool = True
    group_size: int | None = None
    per_tensor: bool = False
    dynamic: bool = False
    full_range: bool | None = None

    def __post_init__(self) -> None:
        if self.bits not in (2, 3, 4, 8):
            raise NumericsError(f"bits = {self.bits}: 8, 4, 3 and 2 are supported")
        if self.group_size is not None and (self.group_size < 1 or self.per_tensor):
            raise NumericsError(f"group_size = {self.group_size} with per_tensor = {self.per_tensor}: choose one")
        if not self.symmetric and self.full_range is False:
            raise NumericsError("an asymmetric grid always uses its full range; leave full_range unset")

    @property
    def code_min(self) -> int:
        """The smallest code."""
        return -int(2 ** (self.bits - 1)) + (0 if self.uses_full_range else 1)

    @property
    def code_max(self) -> int:
        """The largest code."""
        return int(2 ** (self.bits - 1)) - 1

    @property
    def uses_full_range(self) -> bool:
        """Whether code −2^(b−1) is used: always if asymmetric, below 8 bits if symmetric, unless set by hand."""
        return not self.symmetric or (self.bits < 8 if self.full_range is None else self.full_range)

    @property
    def half_steps(self) -> float:
        """Steps between zero and absmax on a symmetric grid: 127 if narrow at 8 bits, 2^(b−1) − ½ if full."""
        return 2.0 ** (self.bits - 1) - (0.5 if self.uses_full_range else 1.0)


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one linear layer is represented. `weight=None` keeps it in 16 bit; `input=None` leaves activations float."""

    name: str
    weight: QuantSpec | None
    input: QuantSpec | None = None


_INT8 = QuantSpec(bits=8, symmetric=True)

# Every scheme that a recipe can name. bf16 stands for "16 bit": fp16 sources keep fp16.
SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("16bit", None),
        Scheme("w8a8", _INT8, QuantSpec(bits=8, symmetric=False, dynamic=True)),
        Scheme("w8a8_symmetric", _INT8, QuantSpec(bits=8, symmetric=True, dynamic=True)),
        Scheme("w8a8_static", _INT8, QuantSpec(bits=8, symmetric=False, per_tensor=True)),
        Scheme("w8a8_static_symmetric", _INT8, QuantSpec(bits=8, symmetric=True, per_tensor=True)),
    )
}
