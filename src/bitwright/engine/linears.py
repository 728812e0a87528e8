"""What the engine makes of a linear: which native operator computes it, on what input, and which others with it."""

from typing import Literal

import numpy as np

from bitwright.engine.program import NOT_ROUNDED, Grid, same_grid, same_values
from bitwright.numerics.linear import FloatLinear, InputTransform, QuantizedLinear
from bitwright.numerics.qtensor import levels_of
from bitwright.numerics.spec import QuantSpec

Linear = QuantizedLinear | FloatLinear
Operator = Literal["linear_w8a8", "linear_bf16", "linear_wna16"]
_GROUPS = 8  # groups of K that `linear_wna16` takes are multiples of this


def operator_of(linear: Linear) -> Operator:
    """The native operator that computes it: whole multiples of one scale per row with rounded inputs are int8 products,
    as on the generic path (`kernels/linear.py: runs_natively`); other codes become bf16, and so do, beforehand, those
    whose groups of K no operator takes.
    """
    if isinstance(linear, FloatLinear) or (group_of(linear) % _GROUPS and group_of(linear) < linear.shape[1]):
        return "linear_bf16"
    spec = linear.weight.spec
    whole = spec.symmetric and not spec.has_codebook and spec.group_size is None
    return "linear_w8a8" if linear.input_spec is not None and whole else "linear_wna16"


def group_of(linear: Linear) -> int:
    """Values of K that share a scale; all of them where a row or the tensor has one, or none."""
    size = None if isinstance(linear, FloatLinear) else linear.weight.spec.group_size
    return linear.shape[1] if size is None else size


def multiplied(linear: Linear) -> str:
    """What is multiplied, for people."""
    if isinstance(linear, FloatLinear) or operator_of(linear) == "linear_bf16":
        return "bf16"
    if operator_of(linear) == "linear_w8a8":
        return "int8"
    group = group_of(linear)
    return (_name(linear.weight.spec) + f" g{group}" * (group < linear.shape[1])).replace("int8", "int8×bf16")


def join(one: Linear, other: Linear) -> bool:
    """Whether one operator can compute both: their inputs are the same, and so is the way in which W is held."""
    asymmetric = [isinstance(x, QuantizedLinear) and x.weight.zero_point_NG is not None for x in (one, other)]
    return (
        one.shape[1] == other.shape[1]
        and multiplied(one) == multiplied(other)
        and asymmetric[0] == asymmetric[1]
        and same_grid(grid_of(one), grid_of(other))
        and same_values(levels(one), levels(other))
    )


def levels(linear: Linear) -> np.ndarray | None:
    """The levels that codes are indices of, float32 (L,), or None."""
    if isinstance(linear, FloatLinear) or not linear.weight.spec.has_codebook:
        return None
    weight = linear.weight
    return np.asarray(levels_of(weight.spec, weight.codebook, like=weight.scale_NG))


def grid_of(linear: Linear) -> Grid | None:
    """How the linear's input becomes codes; None where it is read as it is."""
    if isinstance(linear, FloatLinear):
        return None
    spec, static = linear.input_spec, linear.static
    if spec is None and linear.transform is None:
        return None
    shift_K, multiplier_K = (None, None) if linear.transform is None else padded_transform(linear.transform)
    if spec is None:
        return Grid(NOT_ROUNDED, shift_K=shift_K, multiplier_K=multiplier_K)
    if static is None:
        return Grid(1 if spec.symmetric else 0, 1.0, 0, spec.code_min, shift_K, multiplier_K)
    return Grid(2, static.scale, static.zero_point, spec.code_min, shift_K, multiplier_K)


def padded_transform(transform: InputTransform) -> tuple[np.ndarray, np.ndarray]:
    """(shift, multiplier), float32, K padded to a multiple of 64."""
    scale_K, shift_K = transform.scale_K, transform.shift_K
    given = scale_K if shift_K is None else shift_K
    assert given is not None
    k = len(given)
    shift = np.zeros(k, np.float32) if shift_K is None else shift_K
    scale = np.ones(k, np.float32) if scale_K is None else scale_K
    return np.pad(shift, (0, -k % 64)), np.pad(np.float32(1.0) / scale, (0, -k % 64))


def _name(spec: QuantSpec) -> str:
    if spec.grid in ("nf4", "ternary", "binary"):  # of one width
        return spec.grid
    return f"{'int' if spec.grid == 'uniform' else spec.grid}{spec.bits}"
