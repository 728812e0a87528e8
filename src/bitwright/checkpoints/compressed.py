"""How convert writes compressed-tensors, and our own format, which adds to it: the tensors of `linear_tensors.py`."""

from functools import partial
from typing import Any

from bitwright.checkpoints.linear_tensors import Entry, is_portable, linear_entries, linear_tensors
from bitwright.checkpoints.quantization_config import make_quantization_config
from bitwright.checkpoints.spelling import Common, Contents, Shape, Spelling, any_group, nothing, uneven
from bitwright.numerics.arrays import Array
from bitwright.numerics.linear import LinearForm, QuantizedLinear


def _compressed_refuses(shape: Shape, form: LinearForm) -> str:
    return uneven(form) or ("" if is_portable(form) else f"its levels are those of the {form.weight.grid} grid")


def _bitwright_refuses(shape: Shape, form: LinearForm) -> str:
    return "its groups have a float minimum, for which there is no tensor" if form.has_minimum else ""


def _compressed_entries(shape: Shape, form: LinearForm, common: Common, *, guarded: bool) -> dict[str, Entry]:
    return linear_entries(shape, form, guarded=guarded)


def _compressed_tensors(linear: QuantizedLinear, common: Common, *, guarded: bool) -> dict[str, Array]:
    return linear_tensors(linear, guarded=guarded)


def _compressed_config(contents: Contents, *, portable: bool) -> dict[str, Any]:
    return make_quantization_config(
        contents.forms, contents.tables, contents.floats, contents.prefix, portable=portable
    )


COMPRESSED = Spelling(
    _compressed_refuses,
    nothing,
    any_group,
    partial(_compressed_entries, guarded=False),
    partial(_compressed_tensors, guarded=False),
    partial(_compressed_config, portable=True),
    scale="F32",
    half="BF16",
)
BITWRIGHT = Spelling(
    _bitwright_refuses,
    nothing,
    any_group,
    partial(_compressed_entries, guarded=True),
    partial(_compressed_tensors, guarded=True),
    partial(_compressed_config, portable=False),
    scale="F32",
    half="BF16",
    tables=True,
)
