"""Decides how the engine computes a linear: which native operator, on what input, and joined with which others."""

from typing import Literal, NamedTuple, get_args

import numpy as np

from bitwright.engine.ops.buffers import BufferKind
from bitwright.engine.ops.inputs import PaddedTransform
from bitwright.errors import EngineError, KernelError
from bitwright.kernels.input_grid import InputGrid, input_runs_natively, rounded_by_groups
from bitwright.numerics.linear import FloatLinear, QuantizedLinear
from bitwright.numerics.qtensor import levels_of
from bitwright.numerics.spec import QuantSpec

Linear = QuantizedLinear | FloatLinear
Operator = Literal["linear_w8a8", "linear_bf16", "linear_wna16", "linear_w4a8"]
# How codes of at most 4 bits meet inputs that the checkpoint leaves in 16 bits: as they are, or rounded to int8, with a
# scale for each token and group.
Inputs = Literal["bf16", "int8"]
_GROUPS = 8  # groups of K that `linear_wna16` takes are multiples of this


_NARROW = 2  # bits of a weight that is held in them, whatever its inputs


class Operand(NamedTuple):
    """What a linear reads: rows of a kind, after a transform if there is one. grid: of codes, or on which bf16 rows
    lie. group: inputs that share a scale, of kind "groups"; with a grid all of a row do."""

    kind: BufferKind
    grid: InputGrid | None = None
    transform: PaddedTransform | None = None
    group: int = 0


def operand_of(linear: Linear, inputs: Inputs) -> Operand:
    """What it reads.

    Raises:
        EngineError: as `grid_of`.
    """
    operator, grid, transform = operator_of(linear, inputs), grid_of(linear), transform_of(linear)
    if operator == "linear_w4a8":
        assert isinstance(linear, QuantizedLinear)
        return Operand("groups", grid, transform, input_group(linear))
    return Operand("codes" if operator == "linear_w8a8" else "bf16", grid, transform)


def operator_of(linear: Linear, inputs: Inputs = "bf16") -> Operator:
    """The native operator that computes it: whole multiples of one scale per row with rounded inputs are int8 products,
    as on the generic path (`kernels/linear.py: runs_natively`); other codes become bf16, and so do, beforehand, those
    whose groups of K no operator takes. With int8 `inputs`, codes of at most 4 bits are integer products too; only
    that operator takes minima. It also holds ternary and binary weights in their bits where the file has inputs with a
    scale for each token: int8 products would read four times the bytes.
    """
    if isinstance(linear, FloatLinear) or (group_of(linear) % _GROUPS and group_of(linear) < linear.shape[1]):
        return "linear_bf16"
    spec = linear.weight.spec
    by_groups = inputs == "int8" if linear.input_spec is None else spec.bits <= _NARROW and _by_token(linear.input_spec)
    if by_groups and input_group(linear):
        return "linear_w4a8"
    if linear.weight.minimum_NG is not None:
        return "linear_bf16"
    whole = spec.symmetric and not spec.has_codebook and spec.group_size is None
    return "linear_w8a8" if linear.input_spec is not None and whole else "linear_wna16"


def _by_token(inputs: QuantSpec) -> bool:
    """Whether they are codes from −127 to 127, with a scale for each token."""
    return inputs.dynamic and inputs.symmetric and input_runs_natively(inputs)


def input_group(linear: QuantizedLinear) -> int:
    """Inputs of a linear that share a scale where they are rounded by groups; 0 where no operator takes it so."""
    return rounded_by_groups(linear.weight.spec, linear.shape[1])


def group_of(linear: Linear) -> int:
    """Values of K that share a scale; all of them where a row or the tensor has one, or none."""
    size = None if isinstance(linear, FloatLinear) else linear.weight.spec.group_size
    return linear.shape[1] if size is None else size


def multiplied(linear: Linear, inputs: Inputs = "bf16") -> str:
    """The kind of product, in readable form."""
    operator = operator_of(linear, inputs)
    if isinstance(linear, FloatLinear) or operator == "linear_bf16":
        return "bf16"
    if operator == "linear_w8a8":
        return "int8"
    group = group_of(linear)
    name = (_name(linear.weight.spec) + f" g{group}" * (group < linear.shape[1])).replace("int8", "int8×bf16")
    return name + "×int8" * (operator == "linear_w4a8")


def join(one: Linear, other: Linear) -> bool:
    """Whether one operator can compute both: their inputs are the same, and so is the way in which W is held, whichever
    inputs the program has."""
    return (
        one.shape[1] == other.shape[1]
        and all(multiplied(one, inputs) == multiplied(other, inputs) for inputs in get_args(Inputs))
        and _offsets(one) == _offsets(other)
        and (grid_of(one), transform_of(one)) == (grid_of(other), transform_of(other))
        and _same_values(levels(one), levels(other))
    )


def _offsets(linear: Linear) -> tuple[bool, bool]:
    """Whether its weight has zero points, and minima."""
    if isinstance(linear, FloatLinear):
        return False, False
    return linear.weight.zero_point_NG is not None, linear.weight.minimum_NG is not None


def levels(linear: Linear) -> np.ndarray | None:
    """The levels that codes are indices of, float32 (L,), or None."""
    if isinstance(linear, FloatLinear) or not linear.weight.spec.has_codebook:
        return None
    weight = linear.weight
    return np.asarray(levels_of(weight.spec, weight.codebook, like=weight.scale_NG))


def grid_of(linear: Linear) -> InputGrid | None:
    """The grid on which the linear's input becomes codes; None where its values stay floats.

    Raises:
        EngineError: no kernel has it.
    """
    if isinstance(linear, FloatLinear) or linear.input_spec is None:
        return None
    try:
        return InputGrid.of(linear.input_spec, linear.static)
    except KernelError as error:
        raise EngineError(str(error)) from None


def transform_of(linear: Linear) -> PaddedTransform | None:
    """What happens to the linear's input before that, as operators take it."""
    if isinstance(linear, FloatLinear) or linear.transform is None:
        return None
    transform = linear.transform
    one = np.ones(transform.width, np.float32)
    shift = 0 * one if transform.shift_K is None else transform.shift_K
    scale = one if transform.scale_K is None else transform.scale_K
    padding = (0, -transform.width % 64)
    return PaddedTransform(np.pad(shift, padding), np.pad(np.float32(1.0) / scale, padding))


def _same_values(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    """Whether both are left out, or equal."""
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


def _name(spec: QuantSpec) -> str:
    if spec.grid in ("nf4", "fp4", "ternary", "binary"):  # of one width
        return spec.grid
    return f"{'int' if spec.grid == 'uniform' else spec.grid}{spec.bits}"
