"""Arrays of numpy or of torch: what both doors share is written once, over either. Imports neither.

bf16 has no type in numpy. Where it comes out of a file without torch it is `Bf16`: its bits, under a name, so that no
arithmetic takes them for numbers.
"""

from dataclasses import dataclass
from typing import Any

Array = Any  # a numpy array or a torch tensor


@dataclass(frozen=True, slots=True, eq=False)
class Bf16:
    """bf16 values as their bits, a numpy array of uint16. `widen` makes numbers of them."""

    bits: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """As of any array."""
        return tuple(self.bits.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return int(self.bits.ndim)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(self.bits.size)

    def widen(self) -> Any:
        """The same values in float32, a numpy array."""
        return (self.bits.astype("uint32") << 16).view("float32")

    def __getitem__(self, index: Any) -> "Bf16":
        return Bf16(self.bits[index])


def narrow(values: Any) -> Bf16:
    """float32, a numpy array, rounded to bf16: to nearest, half to even; a NaN stays one."""
    bits = values.astype("float32", order="C", copy=False).view("uint32")
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("uint16")
    rounded[values != values] = 0x7FC0
    return Bf16(rounded)


def is_torch(values: Array) -> bool:
    """Whether these are torch's."""
    return hasattr(values, "numpy")


def dtype_name(values: Array) -> str:
    """ "float32", "int8" …, whosever they are."""
    return "bfloat16" if isinstance(values, Bf16) else str(values.dtype).removeprefix("torch.")


def cast(values: Array, dtype: str) -> Array:
    """The values in another dtype, or as they are if they have it."""
    if is_torch(values):
        import torch

        return values.to(getattr(torch, dtype))
    return values.astype(dtype, copy=False)


def as_numpy(values: Array) -> Any:
    """A view of the same memory, in numpy. bf16 of torch has none."""
    return values.detach().numpy() if is_torch(values) else values


def as_torch(values: Array) -> Any:
    """A view of the same memory, in torch; a copy of what must not be written, such as a mapped file."""
    if is_torch(values):
        return values
    import torch

    if isinstance(values, Bf16):
        return as_torch(values.bits).view(torch.bfloat16)
    return torch.from_numpy(values) if values.flags.writeable else torch.tensor(values)


def alike(values: Any, model: Array) -> Array:
    """A numpy array as what `model` is: numpy's or torch's."""
    return as_torch(values) if is_torch(model) else values


def raw_bytes(values: Array) -> memoryview:
    """The bytes of an array, in the order of its values; a view where it is contiguous."""
    if is_torch(values):
        import torch

        return memoryview(values.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    flat = (values.bits if isinstance(values, Bf16) else values).reshape(-1)
    return memoryview(flat.view("uint8"))


def extremes(values: Array) -> str:
    """The least and the largest value, or the only one, for a message."""
    low, high = float(values.min()), float(values.max())
    return f"{low} … {high}" if low != high else f"{low}"
