"""How a linear is contents in each format that others read: which tensors it becomes, what config.json says, and what
the format cannot hold. `convert.py` uses it; what is read again is the same numbers.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from bitwright.checkpoints.linear_tensors import Entry
from bitwright.numerics.arrays import Array
from bitwright.numerics.linear import LinearForm, QuantizedLinear
from bitwright.numerics.spec import QuantSpec

Shape = tuple[int, int]


class Common(NamedTuple):
    """What all linears of a checkpoint share. group: values that share a scale, −1 for a row, where the format has one
    number for all; None where it has not. zero_points: whether any linear has some."""

    group: int | None
    zero_points: bool


class Contents(NamedTuple):
    """What config.json is made of. forms: of every linear that is contents as codes. floats: linears that are none.
    head: whether the head of a language model is among the codes. prefix: of the base model. tables: int8 ones."""

    forms: Mapping[str, LinearForm]
    common: Common
    floats: Collection[str]
    prefix: str
    tables: Collection[str] = ()


class Spelling(NamedTuple):
    """One format.

    refuses: why a linear of this shape and form cannot be codes here; "" if it can. drops: what of a form is left out
    beside them, "" for nothing. group: of the linears that can be codes, the group that all must have, if there must be
    one; a group that is whole times as large is contents as several. entries, tensors: of one linear, by suffix.
    config: the `quantization_config`. scale: the dtype of scales. half: of what is no codes any more. tables: whether
    int8 embedding tables stay.
    """

    refuses: Callable[[Shape, LinearForm], str]
    drops: Callable[[LinearForm], str]
    group: Callable[[Mapping[str, tuple[Shape, LinearForm]]], int | None]
    entries: Callable[[Shape, LinearForm, Common], dict[str, Entry]]
    tensors: Callable[[QuantizedLinear, Common], dict[str, Array]]
    config: Callable[[Contents], dict[str, Any]]
    scale: Literal["F16", "F32"]
    half: Literal["F16", "BF16"]
    tables: bool = False


def uneven(form: LinearForm) -> str:
    """Why codes are no integers with a scale, and perhaps a zero point; "" if they are."""
    if form.weight.grid not in ("uniform", "ternary"):
        return f"its levels are those of the {form.weight.grid} grid"
    if form.has_minimum:
        return "its groups have a float minimum, not a zero point"
    if form.scales_input or form.shifts_input:
        return "its input is scaled or shifted first"
    return ""


def drops_inputs(form: LinearForm) -> str:
    """What is left out beside codes where a format has weights alone."""
    return "" if form.input is None else f"its inputs are no longer rounded to {form.input.bits} bits"


def nothing(form: LinearForm) -> str:
    """Nothing is left out."""
    return ""


def any_group(linears: Mapping[str, tuple[Shape, LinearForm]]) -> None:
    return None


def splits(shape: Shape, form: LinearForm, group: int | None) -> bool:
    """Whether the groups of a linear are whole times as large as `group`."""
    if group is None or group == group_of(form.weight):
        return True
    return group != -1 and (form.weight.group_size or shape[1]) % group == 0


def group_of(spec: QuantSpec) -> int:
    """Values that share a scale; −1 for a row."""
    return -1 if spec.group_size is None else spec.group_size


def of_rows(values_NG: np.ndarray, n: int, dtype: type) -> np.ndarray:
    """Values of groups (N, G) as (G, N), also where a tensor has one such value."""
    return np.ascontiguousarray(np.broadcast_to(values_NG, (n, values_NG.shape[1])).T.astype(dtype))
