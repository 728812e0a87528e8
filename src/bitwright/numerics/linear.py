"""`QuantizedLinear`: the quantized linear, and its algebra, which is written nowhere else.

Arrays are numpy's or torch's, all of one kind; this file imports neither. N output features, K input features, M
tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from bitwright.errors import NumericsError
from bitwright.numerics.arrays import Array, Bf16, as_torch, cast, dtype_name, extremes
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec

_INF = float("inf")
_TINY, _HUGE = 2.0**-126, (2.0 - 2.0**-23) * 2.0**127  # the normal positive numbers of float32


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class InputTransform:
    """x̂ = (x − shift) / scale: what happens to an input of K features before it is rounded.

    The linear behind it computes the same on x̂ as before on x if Ŵ = W · diag(scale) and b̂ = b + W · shift.

    scale_K: floating (K,), finite, positive and normal, or None for ones. shift_K: floating (K,), finite, or None for
    zeros. One of them is there; in a quantized linear they are float32. Checked on construction.
    """

    scale_K: Array | None = None
    shift_K: Array | None = None

    def __post_init__(self) -> None:
        if self.scale_K is None and self.shift_K is None:
            raise NumericsError("this input transform has neither a scale nor a shift; leave it out")
        for name, values in (("input_scale_K", self.scale_K), ("input_shift_K", self.shift_K)):
            if values is not None and (dtype_name(values) not in ("float32", "float64") or values.ndim != 1):
                raise NumericsError(f"{name} must be floating (K,), got {values.dtype} {tuple(values.shape)}")
        if self.scale_K is not None and not bool(((self.scale_K >= _TINY) & (self.scale_K < _INF)).all()):
            raise NumericsError(
                f"input_scale_K = {extremes(self.scale_K)}: it must be finite, positive and not subnormal, because "
                "inputs are divided by it"
            )
        if self.shift_K is not None and not bool((abs(self.shift_K) < _INF).all()):
            raise NumericsError(f"input_shift_K = {extremes(self.shift_K)}: must be finite")

    @property
    def width(self) -> int:
        """K."""
        given = self.shift_K if self.scale_K is None else self.scale_K
        assert given is not None
        return int(given.shape[0])

    def seen(self, x_MK: Array) -> Array:
        """x̂ of rows x (M, K)."""
        x_MK = x_MK if self.shift_K is None else x_MK - self.shift_K
        return x_MK if self.scale_K is None else x_MK / self.scale_K

    def unseen(self, x_MK: Array) -> Array:
        """x of rows x̂: the inverse of `seen`."""
        x_MK = x_MK if self.scale_K is None else x_MK * self.scale_K
        return x_MK if self.shift_K is None else x_MK + self.shift_K

    def absorbed(self, w_NK: Array) -> Array:
        """Ŵ = W · diag(scale): the weight that reads x̂."""
        return w_NK if self.scale_K is None else w_NK * cast(self.scale_K, dtype_name(w_NK))

    def absorbed_bias(self, w_NK: Array, bias_N: Array) -> Array:
        """b̂ = b + W · shift: the bias beside `absorbed` of the same W."""
        return bias_N if self.shift_K is None else bias_N + w_NK @ cast(self.shift_K, dtype_name(w_NK))

    def restored(self, w_NK: Array) -> Array:
        """W of a Ŵ: the inverse of `absorbed`."""
        return w_NK if self.scale_K is None else w_NK / cast(self.scale_K, dtype_name(w_NK))

    def effective(self, w_NK: Array, bias_N: Array | None) -> tuple[Array, Array | None]:
        """(W, b) of a Ŵ and b̂: what computes on x what those compute on x̂.

        Raises:
            NumericsError: a shift, and no bias that could have taken it up.
        """
        w_NK = self.restored(w_NK)
        if self.shift_K is None:
            return w_NK, bias_N
        if bias_N is None:
            raise NumericsError("there is an input_shift_K, but no bias that makes up for it")
        return w_NK, bias_N - w_NK @ cast(self.shift_K, dtype_name(w_NK))

    def torch(self) -> "InputTransform":
        """The same in torch."""
        return InputTransform(*(None if v is None else as_torch(v) for v in (self.scale_K, self.shift_K)))


@dataclass(frozen=True, slots=True)
class StaticGrid:
    """The grid of an input that is known beforehand: code = round(x̂ / scale) + zero_point.

    scale: a float32 number, normal and positive, so that its reciprocal is finite. zero_point: −128 to 127, 0 if the
    input's spec is symmetric. Checked on construction.
    """

    scale: float
    zero_point: int = 0

    def __post_init__(self) -> None:
        if not _TINY <= self.scale <= _HUGE:
            raise NumericsError(
                f"input_scale = {self.scale}: it must be finite, positive and not subnormal, because inputs are "
                "divided by it"
            )
        if not -128 <= self.zero_point <= 127:
            raise NumericsError(f"input_zero_point = {self.zero_point}: an integer from -128 to 127 is expected")


class LinearForm(NamedTuple):
    """How a quantized linear is represented: all of it but its shape and its values.

    scales_input, shifts_input: whether it has an input transform, and which parts of one. has_minimum: whether its
    weight has minima for zero points.
    """

    weight: QuantSpec
    input: QuantSpec | None = None
    scales_input: bool = False
    shifts_input: bool = False
    has_minimum: bool = False


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class QuantizedLinear:
    """y = x̂ Ŵᵀ + b̂, where x̂ is the input, transformed if there is a transform, then rounded as the input spec says.

    weight: Ŵ (N, K). bias_N: b̂, float32 (N,), or None. input_spec: None for float inputs. static: the grid of an input
    spec that is not dynamic, else None. transform: what Ŵ and b̂ have taken up the inverse of. Checked on construction.
    """

    weight: QTensor
    bias_N: Array | None = None
    input_spec: QuantSpec | None = None
    static: StaticGrid | None = None
    transform: InputTransform | None = None

    def __post_init__(self) -> None:
        (n, k), spec = self.shape, self.input_spec
        if self.bias_N is not None and (dtype_name(self.bias_N) != "float32" or tuple(self.bias_N.shape) != (n,)):
            raise NumericsError(f"bias must be float32 ({n},), got {self.bias_N.dtype} {tuple(self.bias_N.shape)}")
        if (spec is not None and not spec.dynamic) != (self.static is not None):
            how = "float inputs" if spec is None else f"dynamic = {spec.dynamic}"
            raise NumericsError(f"{how}, but input_scale is {'absent' if self.static is None else 'given'}")
        if self.static is not None and spec is not None and spec.symmetric and self.static.zero_point:
            raise NumericsError(f"the inputs are symmetric, but input_zero_point = {self.static.zero_point}")
        parts = () if self.transform is None else (self.transform.scale_K, self.transform.shift_K)
        for values in parts:
            if values is not None and (tuple(values.shape) != (k,) or dtype_name(values) != "float32"):
                raise NumericsError(
                    f"the input transform must be float32 ({k},), got {values.dtype} {tuple(values.shape)}"
                )

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.weight.shape

    @property
    def form(self) -> LinearForm:
        """How it is represented."""
        scale, shift = (None, None) if self.transform is None else (self.transform.scale_K, self.transform.shift_K)
        weight = self.weight
        return LinearForm(
            weight.spec, self.input_spec, scale is not None, shift is not None, weight.minimum_NG is not None
        )

    def effective(self) -> tuple[Array, Array | None]:
        """(W, b), float32: what computes the same on an input as it is, but for the rounding of inputs.

        Raises:
            NumericsError: a shift of the input, and no bias.
        """
        weight = self.weight.dequantize()
        return (weight, self.bias_N) if self.transform is None else self.transform.effective(weight, self.bias_N)

    def seen(self, x_MK: Array) -> Array:
        """What the input's spec rounds of rows x (M, K): x̂, not yet rounded."""
        return x_MK if self.transform is None else self.transform.seen(x_MK)

    def rows(self, begin: int, end: int) -> "QuantizedLinear":
        """Outputs [begin, end): views."""
        bias = None if self.bias_N is None else self.bias_N[begin:end]
        return replace(self, weight=self.weight.rows(begin, end), bias_N=bias)

    def torch(self) -> "QuantizedLinear":
        """The same in torch: views, but copies of what must not be written."""
        return replace(
            self,
            weight=self.weight.torch(),
            bias_N=None if self.bias_N is None else as_torch(self.bias_N),
            transform=None if self.transform is None else self.transform.torch(),
        )


class PendingLinear(NamedTuple):
    """A quantized linear that is loaded, or made, when it is asked for; nothing keeps what `load` gave.

    shape: (N, K).
    """

    shape: tuple[int, int]
    form: LinearForm
    load: Callable[[], QuantizedLinear]


class PendingFloat(NamedTuple):
    """A weight (N, K) whose codes become floats when it is asked for, since no `QTensor` holds them, or none may.

    dtype: of the floats, "float32" or "bfloat16". stored: what the file holds, in words. load: gives a numpy array, or
    `Bf16`; nothing keeps it. fp8: whether that is floats of 8 bits.
    """

    shape: tuple[int, int]
    dtype: str
    stored: str
    load: Callable[[], Array]
    fp8: bool = False


def ready(linear: QuantizedLinear) -> PendingLinear:
    """One that is in memory already."""
    return PendingLinear(linear.shape, linear.form, lambda: linear)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FloatLinear:
    """y = x Wᵀ + b of a linear that is kept float: what a builder may find in place of a quantized one.

    weight_NK: float32, or `Bf16`. bias_N: float32 (N,), or None.
    """

    weight_NK: Array
    bias_N: Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.weight_NK.shape[0], self.weight_NK.shape[1]

    def widened(self) -> Array:
        """W in float32."""
        return self.weight_NK.widen() if isinstance(self.weight_NK, Bf16) else self.weight_NK

    def rows(self, begin: int, end: int) -> "FloatLinear":
        """Outputs [begin, end): views."""
        return FloatLinear(self.weight_NK[begin:end], None if self.bias_N is None else self.bias_N[begin:end])
