"""`QTensor`: the quantized tensor, with invariants that are checked; and what its codes stand for."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import NumericsError
from bitwright.numerics.codebooks import codebook_of
from bitwright.numerics.spec import QuantSpec


@dataclass(frozen=True, slots=True)
class QTensor:
    """Integer codes with what turns them back into numbers (see `code_values`).

    Conditions that hold (checked on construction):
      * codes_NK is int8, two-dimensional, within [spec.code_min, spec.code_max];
      * scale_NG is floating, finite and positive: (N, G) with G = K / group_size, (N, 1) per row, (1, 1) per tensor;
      * zero_point_NG is int8 and shaped like scale_NG if the spec is asymmetric, else None;
      * codebook is float32 (L,), finite and ascending (equals may follow each other) on the kmeans grid, else None.
    """

    codes_NK: Tensor
    scale_NG: Tensor
    zero_point_NG: Tensor | None
    spec: QuantSpec
    codebook: Tensor | None = None

    def __post_init__(self) -> None:
        codes, scale, zero, spec = self.codes_NK, self.scale_NG, self.zero_point_NG, self.spec
        if codes.dtype != torch.int8 or codes.ndim != 2:
            raise NumericsError(f"codes must be int8 of shape (N, K), got {codes.dtype} {tuple(codes.shape)}")
        want = scale_shape(codes.shape[0], codes.shape[1], spec)
        if tuple(scale.shape) != want or not scale.is_floating_point():
            raise NumericsError(f"scale must be floating of shape {want}, got {scale.dtype} {tuple(scale.shape)}")
        if not bool(torch.isfinite(scale).all()) or not bool((scale > 0).all()):
            raise NumericsError("every scale must be finite and positive")
        if (zero is None) != spec.symmetric:
            raise NumericsError(
                f"symmetric = {spec.symmetric} but zero_point is {'absent' if zero is None else 'given'}"
            )
        if zero is not None and (zero.dtype != torch.int8 or zero.shape != scale.shape):
            raise NumericsError(f"zero_point must be int8 of shape {want}, got {zero.dtype} {tuple(zero.shape)}")
        if codes.numel() and (int(codes.min()) < spec.code_min or int(codes.max()) > spec.code_max):
            raise NumericsError(
                f"codes lie in [{int(codes.min())}, {int(codes.max())}], outside [{spec.code_min}, {spec.code_max}]"
            )
        if (self.codebook is None) == (spec.grid == "kmeans"):
            raise NumericsError(f"grid {spec.grid} but a codebook is {'absent' if self.codebook is None else 'given'}")
        if self.codebook is not None:
            check_codebook(self.codebook, spec)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.codes_NK.shape[0], self.codes_NK.shape[1]

    def dequantize(self) -> Tensor:
        """The numbers that the codes stand for: float32 (N, K)."""
        codes_NGg = self.codes_NK.reshape(*self.scale_NG.shape, -1)
        zero_NG1 = None if self.zero_point_NG is None else self.zero_point_NG[..., None]
        values = code_values(codes_NGg, self.scale_NG.float()[..., None], zero_NG1, self.spec, self.codebook)
        return values.reshape(self.shape)


def code_values(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None, spec: QuantSpec, codebook: Tensor | None = None
) -> Tensor:
    """What codes stand for:

        uniform, ternary      (code − zero_point) · scale
        the others            codebook[code] · scale

    Args:
        codes: whole numbers of any dtype, in the spec's range. scale, zero_point: broadcast against them.
        codebook: (L,) on the kmeans grid; the levels of the others are known.

    Returns:
        The scale's dtype, at least float32.
    """
    scale = scale if scale.dtype == torch.float64 else scale.float()
    if spec.has_codebook:
        levels = levels_of(spec, codebook).to(scale)
        return levels.index_select(0, codes.flatten().int()).reshape(codes.shape) * scale
    steps = codes.to(scale.dtype)
    return (steps if zero_point is None else steps - zero_point.to(scale.dtype)) * scale


def levels_of(spec: QuantSpec, codebook: Tensor | None) -> Tensor:
    """The levels of a codebook grid: `codebook` on the kmeans grid, the fixed ones on the others.

    Raises:
        NumericsError: kmeans without a codebook.
    """
    levels = codebook if spec.grid == "kmeans" else codebook_of(spec)
    if levels is None:
        raise NumericsError(f"the {spec.grid} grid needs its codebook; fit one with fit_codebook")
    return levels


def check_codebook(codebook: Tensor, spec: QuantSpec) -> None:
    """Raise NumericsError unless these can be the levels of the spec's codes."""
    if codebook.dtype != torch.float32 or tuple(codebook.shape) != (spec.code_max + 1,):
        raise NumericsError(
            f"a codebook of {spec.bits} bits is float32 ({spec.code_max + 1},), got {codebook.dtype} "
            f"{tuple(codebook.shape)}"
        )
    if not bool(torch.isfinite(codebook).all()) or not bool((codebook.diff() >= 0).all()):
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
