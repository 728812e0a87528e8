"""`QTensor`: the quantized tensor, with invariants that are checked; and what its codes stand for.

Its arrays are numpy's or torch's, all of one kind; this file imports neither (`arrays.py`).
"""

from dataclasses import dataclass, replace

from bitwright.errors import NumericsError
from bitwright.numerics.arrays import Array, as_torch, cast, dtype_name, is_torch
from bitwright.numerics.levels import fixed_levels
from bitwright.numerics.spec import QuantSpec

_FLOATS = ("float32", "float64", "float16", "bfloat16")


@dataclass(frozen=True, slots=True, eq=False)
class QTensor:
    """Integer codes with what turns them back into numbers (see `code_values`).

    Conditions that hold (checked on construction):
      * codes_NK is int8, two-dimensional, within [spec.code_min, spec.code_max];
      * scale_NG is floating, finite and positive: (N, G) with G = K / group_size, (N, 1) per row, (1, 1) per tensor;
      * if the spec is asymmetric, either zero_point_NG is int8, or minimum_NG is finite and of the scale's dtype; that
        one is shaped like scale_NG, the other None. Both are None if the spec is symmetric;
      * codebook is float32 (L,), finite and ascending (equals may follow each other) on the kmeans grid, else None.
    """

    codes_NK: Array
    scale_NG: Array
    zero_point_NG: Array | None
    spec: QuantSpec
    codebook: Array | None = None
    minimum_NG: Array | None = None

    def __post_init__(self) -> None:
        codes, scale, zero, spec = self.codes_NK, self.scale_NG, self.zero_point_NG, self.spec
        if dtype_name(codes) != "int8" or codes.ndim != 2:
            raise NumericsError(f"codes must be int8 of shape (N, K), got {codes.dtype} {tuple(codes.shape)}")
        want = scale_shape(codes.shape[0], codes.shape[1], spec)
        if tuple(scale.shape) != want or dtype_name(scale) not in _FLOATS:
            raise NumericsError(f"scale must be floating of shape {want}, got {scale.dtype} {tuple(scale.shape)}")
        if not bool(((scale > 0) & (scale < float("inf"))).all()):
            raise NumericsError("every scale must be finite and positive")
        offsets = [name for name, x in (("zero_point", zero), ("minimum", self.minimum_NG)) if x is not None]
        if len(offsets) != (not spec.symmetric):
            raise NumericsError(
                f"symmetric = {spec.symmetric}, but {'; '.join(f'{name} is given' for name in offsets)}"
                f"{'' if offsets else 'zero_point is absent, and so is minimum'}"
            )
        if zero is not None and (dtype_name(zero) != "int8" or zero.shape != scale.shape):
            raise NumericsError(f"zero_point must be int8 of shape {want}, got {zero.dtype} {tuple(zero.shape)}")
        if self.minimum_NG is not None:
            _check_minimum(self.minimum_NG, scale)
        if 0 not in codes.shape and (int(codes.min()) < spec.code_min or int(codes.max()) > spec.code_max):
            raise NumericsError(
                f"codes lie in [{int(codes.min())}, {int(codes.max())}], outside [{spec.code_min}, {spec.code_max}]"
            )
        if (self.codebook is None) == (spec.grid == "kmeans"):
            raise NumericsError(
                f"the grid is {spec.grid}, but a codebook is {'absent' if self.codebook is None else 'given'}"
            )
        if self.codebook is not None:
            check_codebook(self.codebook, spec)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.codes_NK.shape[0], self.codes_NK.shape[1]

    def dequantize(self) -> Array:
        """The numbers that the codes stand for: float32 (N, K)."""
        codes_NGg = self.codes_NK.reshape(*self.scale_NG.shape, -1)
        scale_NG1 = cast(self.scale_NG, "float32")[..., None]
        zero_NG1, minimum_NG1 = (None if x is None else x[..., None] for x in (self.zero_point_NG, self.minimum_NG))
        return code_values(codes_NGg, scale_NG1, zero_NG1, self.spec, self.codebook, minimum_NG1).reshape(self.shape)

    def rows(self, begin: int, end: int) -> "QTensor":
        """Rows [begin, end): views."""
        part = slice(begin, end)
        scale_NG, zero_NG, minimum_NG = (
            x if x is None or self.spec.per_tensor else x[part]
            for x in (self.scale_NG, self.zero_point_NG, self.minimum_NG)
        )
        codes_NK = self.codes_NK[part]
        return replace(self, codes_NK=codes_NK, scale_NG=scale_NG, zero_point_NG=zero_NG, minimum_NG=minimum_NG)

    def torch(self) -> "QTensor":
        """The same in torch: views, but copies of what must not be written."""
        zero_NG, codebook, minimum_NG = (
            None if x is None else as_torch(x) for x in (self.zero_point_NG, self.codebook, self.minimum_NG)
        )
        return QTensor(as_torch(self.codes_NK), as_torch(self.scale_NG), zero_NG, self.spec, codebook, minimum_NG)


def code_values(
    codes: Array,
    scale: Array,
    zero_point: Array | None,
    spec: QuantSpec,
    codebook: Array | None = None,
    minimum: Array | None = None,
) -> Array:
    """What codes stand for:

        uniform, ternary      (code − zero_point) · scale
        uniform, a minimum    (code − code_min) · scale + minimum
        the others            codebook[code] · scale

    So the minimum is what the smallest code stands for, and a format of unsigned codes has it as it is here.

    Args:
        codes: whole numbers of any dtype, in the spec's range. scale, zero_point, minimum: broadcast against them.
        codebook: (L,) on the kmeans grid; the levels of the others are known.

    Returns:
        The scale's dtype, at least float32.
    """
    scale = scale if dtype_name(scale) == "float64" else cast(scale, "float32")
    if spec.has_codebook:
        levels = levels_of(spec, codebook, like=scale)
        if is_torch(codes):
            return levels.index_select(0, cast(codes.flatten(), "int32")).reshape(codes.shape) * scale
        return levels[codes] * scale
    steps = cast(codes, dtype_name(scale))
    if minimum is not None:
        return (steps - spec.code_min) * scale + cast(minimum, dtype_name(scale))
    return (steps if zero_point is None else steps - cast(zero_point, dtype_name(scale))) * scale


def levels_of(spec: QuantSpec, codebook: Array | None, *, like: Array) -> Array:
    """The levels of a codebook grid: `codebook` on the kmeans grid, the fixed ones on the others.

    like: an array of the kind and dtype that the levels get.

    Raises:
        NumericsError: kmeans without a codebook.
    """
    levels = codebook if spec.grid == "kmeans" else fixed_levels(spec)
    if levels is None:
        raise NumericsError(f"the {spec.grid} grid needs its codebook; fit one with fit_codebook")
    if is_torch(like):
        return like.new_tensor(levels) if isinstance(levels, tuple) else levels.to(like)
    import numpy as np

    return np.asarray(levels, like.dtype)


def check_codebook(codebook: Array, spec: QuantSpec) -> None:
    """Raise NumericsError unless these can be the levels of the spec's codes."""
    if dtype_name(codebook) != "float32" or tuple(codebook.shape) != (spec.code_max + 1,):
        raise NumericsError(
            f"a codebook of {spec.bits} bits is float32 ({spec.code_max + 1},), got {codebook.dtype} "
            f"{tuple(codebook.shape)}"
        )
    if not bool((abs(codebook) < float("inf")).all()) or not bool((codebook[1:] >= codebook[:-1]).all()):
        raise NumericsError("the levels of a codebook must be finite and ascending")


def _check_minimum(minimum_NG: Array, scale_NG: Array) -> None:
    if minimum_NG.shape != scale_NG.shape or dtype_name(minimum_NG) != dtype_name(scale_NG):
        raise NumericsError(
            f"minimum must be {dtype_name(scale_NG)} of shape {tuple(scale_NG.shape)} as the scale, got "
            f"{minimum_NG.dtype} {tuple(minimum_NG.shape)}"
        )
    if not bool((abs(minimum_NG) < float("inf")).all()):
        raise NumericsError("every minimum must be finite")


def scale_shape(n: int, k: int, spec: QuantSpec) -> tuple[int, int]:
    """Shape of the scale of an (n, k) tensor.

    Raises:
        NumericsError: k is not a multiple of the group size.
    """
    if spec.per_tensor:
        return 1, 1
    if spec.group_size is None:
        return n, 1
    if k % spec.group_size:
        raise NumericsError(f"K = {k} is not a multiple of group_size = {spec.group_size}")
    return n, k // spec.group_size
