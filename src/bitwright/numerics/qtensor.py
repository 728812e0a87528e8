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
      * zero_point_NG is int8 and shaped like scale_NG if the spec is asymmetric, else None;
      * codebook is float32 (L,), finite and ascending (equals may follow each other) on the kmeans grid, else None.
    """

    codes_NK: Array
    scale_NG: Array
    zero_point_NG: Array | None
    spec: QuantSpec
    codebook: Array | None = None

    def __post_init__(self) -> None:
        codes, scale, zero, spec = self.codes_NK, self.scale_NG, self.zero_point_NG, self.spec
        if dtype_name(codes) != "int8" or codes.ndim != 2:
            raise NumericsError(f"codes must be int8 of shape (N, K), got {codes.dtype} {tuple(codes.shape)}")
        want = scale_shape(codes.shape[0], codes.shape[1], spec)
        if tuple(scale.shape) != want or dtype_name(scale) not in _FLOATS:
            raise NumericsError(f"scale must be floating of shape {want}, got {scale.dtype} {tuple(scale.shape)}")
        if not bool(((scale > 0) & (scale < float("inf"))).all()):
            raise NumericsError("every scale must be finite and positive")
        if (zero is None) != spec.symmetric:
            raise NumericsError(
                f"symmetric = {spec.symmetric}, but zero_point is {'absent' if zero is None else 'given'}"
            )
        if zero is not None and (dtype_name(zero) != "int8" or zero.shape != scale.shape):
            raise NumericsError(f"zero_point must be int8 of shape {want}, got {zero.dtype} {tuple(zero.shape)}")
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
        zero_NG1 = None if self.zero_point_NG is None else self.zero_point_NG[..., None]
        values = code_values(codes_NGg, cast(self.scale_NG, "float32")[..., None], zero_NG1, self.spec, self.codebook)
        return values.reshape(self.shape)

    def rows(self, begin: int, end: int) -> "QTensor":
        """Rows [begin, end): views."""
        part = slice(begin, end)
        scale_NG = self.scale_NG if self.spec.per_tensor else self.scale_NG[part]
        zero = self.zero_point_NG
        zero_NG = zero if zero is None or self.spec.per_tensor else zero[part]
        return replace(self, codes_NK=self.codes_NK[part], scale_NG=scale_NG, zero_point_NG=zero_NG)

    def torch(self) -> "QTensor":
        """The same in torch: views, but copies of what must not be written."""
        zero, codebook = self.zero_point_NG, self.codebook
        return replace(
            self,
            codes_NK=as_torch(self.codes_NK),
            scale_NG=as_torch(self.scale_NG),
            zero_point_NG=None if zero is None else as_torch(zero),
            codebook=None if codebook is None else as_torch(codebook),
        )


def code_values(
    codes: Array, scale: Array, zero_point: Array | None, spec: QuantSpec, codebook: Array | None = None
) -> Array:
    """What codes stand for:

        uniform, ternary      (code − zero_point) · scale
        the others            codebook[code] · scale

    Args:
        codes: whole numbers of any dtype, in the spec's range. scale, zero_point: broadcast against them.
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
