"""Codes of other tools as a `QTensor`: what they allow and it does not is rewritten so that every number stays."""

from dataclasses import replace

import numpy as np

from bitwright.errors import NumericsError
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec


def integer_spec(bits: int, group: int, k: int, *, symmetric: bool) -> QuantSpec:
    """The spec of codes of so many bits, in groups of `group` of K inputs. Codes of 5 to 7 bits are held in 8.

    Raises:
        NumericsError: K is not whole groups.
    """
    if k % group:
        raise NumericsError(f"K = {k} is not a multiple of group_size = {group}")
    return QuantSpec(bits if bits <= 4 else 8, symmetric, group if group < k else None)


def integer_weight(
    codes_NK: np.ndarray,
    scale_NG: np.ndarray,
    spec: QuantSpec,
    *,
    zero_NG: np.ndarray | None = None,
    minimum_NG: np.ndarray | None = None,
    top: int | None = None,
) -> QTensor:
    """The weight of these codes, int8 and in the spec's range. top: the largest, counted from 0, if not the spec's.

    A scale of 0, of a group that is all alike, becomes 1, and its codes those of 0. A negative scale, beside a minimum,
    becomes positive: s · c + m = (−s) · (top − c) + (m + s · top), for c counted from 0. So does one beside a zero
    point, if the spec has those: s · (c − z) = (−s) · (~c − ~z), where ~c is −1 − c.

    Raises:
        NumericsError: a scale that is NaN or infinite, or negative and the spec is symmetric.
    """
    shape, top = scale_NG.shape, spec.code_max - spec.code_min if top is None else top
    codes_NGg, scale_NG = codes_NK.reshape(*shape, -1), scale_NG.astype(np.float32, copy=False)
    if minimum_NG is not None and (negative := scale_NG < 0).any():
        turned = np.int8(spec.code_min + top) - (codes_NGg - np.int8(spec.code_min))  # wraps, and comes back
        codes_NGg = np.where(negative[..., None], turned, codes_NGg)
        with np.errstate(over="ignore"):  # an infinite minimum is refused
            minimum_NG = np.where(negative, minimum_NG + scale_NG * np.float32(top), minimum_NG).astype(np.float32)
        scale_NG = np.abs(scale_NG)
    elif not spec.symmetric and (negative := scale_NG < 0).any():
        codes_NGg = np.where(negative[..., None], ~codes_NGg, codes_NGg)
        zeros = np.zeros(shape, np.int8) if zero_NG is None else zero_NG
        zero_NG, scale_NG = np.where(negative, ~zeros, zeros), np.abs(scale_NG)
    if (empty := scale_NG == 0).any():
        nothing = np.int8(spec.code_min if minimum_NG is not None else 0)
        zeros = np.full(shape, nothing) if zero_NG is None else zero_NG
        codes_NGg = np.where(empty[..., None], zeros[..., None], codes_NGg)
        scale_NG = np.where(empty, np.float32(1), scale_NG)
    codes_NK = codes_NGg.reshape(codes_NK.shape)
    if spec.symmetric and spec.bits == 8 and codes_NK.size and int(codes_NK.min()) == -128:
        spec = replace(spec, full_range=True)  # other tools use −128 too
    return QTensor(codes_NK, scale_NG, zero_NG, spec, None, minimum_NG)


def by_index(codes_NK: np.ndarray, scale_NG: np.ndarray, zero_NG: np.ndarray | None, group_K: np.ndarray) -> np.ndarray:
    """What codes stand for whose columns say which group they are of: float32 (N, K).

    group_K: the group of each column, from 0.

    Raises:
        NumericsError: a scale that is NaN or infinite, or makes weights so.
    """
    steps = codes_NK.astype(np.float32)
    if zero_NG is not None:
        steps -= zero_NG[:, group_K]
    with np.errstate(over="ignore", invalid="ignore"):
        steps *= scale_NG[:, group_K]
    if not np.isfinite(steps).all():
        raise NumericsError("a scale is not finite, or so large that weights are not")
    return steps


def in_order(index: np.ndarray, groups: int, group: int) -> bool:
    """Whether an index of groups (K,) is that of runs of `group` columns.

    Raises:
        NumericsError: it names a group that there is not.
    """
    if index.size and not 0 <= int(index.min()) <= int(index.max()) < groups:
        raise NumericsError(
            f"names groups from {int(index.min())} to {int(index.max())}, but there are {groups}, counted from 0"
        )
    return bool(np.array_equal(index, np.arange(index.size) // group))
