"""`QTensor`: the quantized tensor, with invariants that are checked."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import NumericsError
from bitwright.numerics.spec import QuantSpec


@dataclass(frozen=True, slots=True)
class QTensor:
    """Integer codes with what turns them back into numbers: w_NK ≈ (codes_NK − zero_point_NG) · scale_NG.

    Conditions that hold (checked on construction):
      * codes_NK is int8, two-dimensional, within [spec.code_min, spec.code_max];
      * scale_NG is floating, finite and positive: (N, G) with G = K / group_size, (N, 1) per row, (1, 1) per tensor;
      * zero_point_NG is int8 and shaped like scale_NG if the spec is asymmetric, else None.
    """

    codes_NK: Tensor
    scale_NG: Tensor
    zero_point_NG: Tensor | None
    spec: QuantSpec

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

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.codes_NK.shape[0], self.codes_NK.shape[1]

    def dequantize(self) -> Tensor:
        """The numbers that the codes stand for: float32 (N, K)."""
        scale = _spread(self.scale_NG.float(), self.shape)
        if self.zero_point_NG is None:
            return self.codes_NK.float() * scale
        return (self.codes_NK.float() - _spread(self.zero_point_NG.float(), self.shape)) * scale


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


def _spread(per_group: Tensor, shape: tuple[int, int]) -> Tensor:
    """Repeat one value per group (or row, or tensor) over the (N, K) values that it governs."""
    if per_group.shape[1] > 1:
        per_group = per_group.repeat_interleave(shape[1] // per_group.shape[1], dim=1)
    return per_group.expand(shape)
