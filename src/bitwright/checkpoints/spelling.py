"""How a linear is written in each format that others read: which tensors it becomes, what config.json says, and what
the format cannot hold. `convert.py` uses it; what is read again is the same numbers.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from bitwright.checkpoints.linear_tensors import Entry, is_portable, linear_entries, linear_tensors
from bitwright.checkpoints.quantization_config import make_quantization_config
from bitwright.numerics.arrays import Array
from bitwright.numerics.bits import add_words, pack_awq, pack_words
from bitwright.numerics.linear import LinearForm, QuantizedLinear
from bitwright.numerics.spec import QuantSpec

Shape = tuple[int, int]


class Written(NamedTuple):
    """What config.json is made of. forms: of every linear that is written as codes. floats: linears that are none.
    head: whether the head of a language model is among the codes. prefix: of the base model. tables: int8 ones."""

    forms: Mapping[str, LinearForm]
    floats: Collection[str]
    prefix: str
    tables: Collection[str] = ()


class Spelling(NamedTuple):
    """One format.

    refuses: why a linear of this shape and form cannot be codes here; "" if it can. drops: what of a form is left out
    beside them, "" for nothing. common: of the linears that can be codes, those that cannot beside the others, and
    why. entries, tensors: of one linear, by suffix; the flag is whether any linear of the checkpoint has zero points.
    config: the `quantization_config`. scale: the dtype of scales. half: of what is no codes any more. tables: whether
    int8 embedding tables stay.
    """

    refuses: Callable[[Shape, LinearForm], str]
    drops: Callable[[LinearForm], str]
    common: Callable[[Mapping[str, LinearForm]], dict[str, str]]
    entries: Callable[[Shape, LinearForm, bool], dict[str, Entry]]
    tensors: Callable[[QuantizedLinear, bool], dict[str, Array]]
    config: Callable[[Written], dict[str, Any]]
    scale: Literal["F16", "F32"]
    half: Literal["F16", "BF16"]
    tables: bool = False


def _uneven(form: LinearForm) -> str:
    """Why codes are no integers with a scale, and perhaps a zero point; "" if they are."""
    if form.weight.grid not in ("uniform", "ternary"):
        return f"its levels are those of the {form.weight.grid} grid"
    if form.has_minimum:
        return "its groups have a float minimum, not a zero point"
    if form.scales_input or form.shifts_input:
        return "its input is scaled or shifted first"
    return ""


def _drops_inputs(form: LinearForm) -> str:
    return "" if form.input is None else f"its inputs are no longer rounded to {form.input.bits} bits"


def _nothing(form: LinearForm) -> str:
    return ""


def _alone(forms: Mapping[str, LinearForm]) -> dict[str, str]:
    return {}


def _group(spec: QuantSpec) -> int:
    return -1 if spec.group_size is None else spec.group_size


def _of_rows(values_NG: np.ndarray, n: int, dtype: type) -> np.ndarray:
    """(G, N), also where a tensor has one such value."""
    return np.ascontiguousarray(np.broadcast_to(values_NG, (n, values_NG.shape[1])).T.astype(dtype))


# GPTQ ------------------------------------------------------------------------------------------------------------


def _gptq_refuses(shape: Shape, form: LinearForm) -> str:
    n, k = shape
    if n % 32 or k % 32:
        return f"N, K = {[n, k]} are not multiples of 32"
    return _uneven(form)


def _gptq_entries(shape: Shape, form: LinearForm, zero_points: bool) -> dict[str, Entry]:
    (n, k), bits = shape, form.weight.bits
    groups = k // (form.weight.group_size or k)
    return {
        "qweight": ("I32", (k * bits // 32, n)),
        "qzeros": ("I32", (groups, n * bits // 32)),
        "scales": ("F16", (groups, n)),
        "g_idx": ("I32", (k,)),
    }


def _gptq_tensors(linear: QuantizedLinear, zero_points: bool) -> dict[str, Array]:
    weight, (n, k) = linear.weight, linear.shape
    bits = weight.spec.bits
    scale_GN = _of_rows(weight.scale_NG, n, np.float16)
    zero_GN = np.zeros(scale_GN.shape, np.int8)
    if weight.zero_point_NG is not None:
        zero_GN = _of_rows(weight.zero_point_NG, n, np.int8)
    stored = pack_words(zero_GN, bits)
    if not zero_points:  # version 1 stores zero points less one; all are 2^(b−1), so none runs over
        stored = pack_words(zero_GN - np.int8(1), bits) if bits == 3 else add_words(stored, -1, bits)
    return {
        "qweight": pack_words(np.ascontiguousarray(weight.codes_NK.T), bits, dim=0),
        "qzeros": stored,
        "scales": scale_GN,
        "g_idx": (np.arange(k) // (weight.spec.group_size or k)).astype(np.int32),
    }


def _gptq_config(written: Written) -> dict[str, Any]:
    forms = written.forms
    said = {name: _gptq_settings(form.weight) for name, form in forms.items()}
    common = Counter(tuple(settings.items()) for settings in said.values()).most_common(1)
    usual = dict(common[0][0]) if common else {"bits": 4, "group_size": 128, "sym": True}
    own = {f"+:^{_escaped(name)}$": settings for name, settings in said.items() if settings != usual}
    own |= {f"-:^{_escaped(name)}$": {} for name in sorted(written.floats)}
    return {
        "quant_method": "gptq",
        **usual,
        "desc_act": False,
        "lm_head": any(name.endswith("lm_head") for name in forms),
        "checkpoint_format": "gptq" if all(form.weight.symmetric for form in forms.values()) else "gptq_v2",
        "pack_dtype": "int32",
        **({"dynamic": own} if own else {}),
    }


def _gptq_settings(spec: QuantSpec) -> dict[str, Any]:
    return {"bits": spec.bits, "group_size": _group(spec), "sym": spec.symmetric}


def _escaped(name: str) -> str:
    return name.replace(".", "\\.")


# AutoAWQ ---------------------------------------------------------------------------------------------------------


def _awq_refuses(shape: Shape, form: LinearForm) -> str:
    if form.weight.bits != 4 or form.weight.grid != "uniform":
        return f"it has codes of {form.weight.bits} bits; AutoAWQ's have 4" if not _uneven(form) else _uneven(form)
    return f"N = {shape[0]} is not a multiple of 8" if shape[0] % 8 else _uneven(form)


def _awq_common(forms: Mapping[str, LinearForm]) -> dict[str, str]:
    """One group size for all: the most frequent."""
    sizes = Counter(_group(form.weight) for form in forms.values())
    usual = sizes.most_common(1)[0][0] if sizes else 0
    why = f"its groups are not of {usual}, as most are; AutoAWQ has one size for all"
    return {name: why for name, form in forms.items() if _group(form.weight) != usual}


def _awq_entries(shape: Shape, form: LinearForm, zero_points: bool) -> dict[str, Entry]:
    n, k = shape
    groups = k // (form.weight.group_size or k)
    return {"qweight": ("I32", (k, n // 8)), "qzeros": ("I32", (groups, n // 8)), "scales": ("F16", (groups, n))}


def _awq_tensors(linear: QuantizedLinear, zero_points: bool) -> dict[str, Array]:
    weight, n = linear.weight, linear.shape[0]
    scale_GN = _of_rows(weight.scale_NG, n, np.float16)
    zero_GN = np.zeros(scale_GN.shape, np.int8)
    if weight.zero_point_NG is not None:
        zero_GN = _of_rows(weight.zero_point_NG, n, np.int8)
    return {
        "qweight": pack_awq(np.ascontiguousarray(weight.codes_NK.T)),
        "qzeros": pack_awq(zero_GN),
        "scales": scale_GN,
    }


def _awq_config(written: Written) -> dict[str, Any]:
    size = next((_group(form.weight) for form in written.forms.values()), 128)
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": sorted(written.floats) or None,
    }


# compressed-tensors, and ours --------------------------------------------------------------------------------------


def _compressed_refuses(shape: Shape, form: LinearForm) -> str:
    return _uneven(form) or ("" if is_portable(form) else f"its levels are those of the {form.weight.grid} grid")


def _bitwright_refuses(shape: Shape, form: LinearForm) -> str:
    return "its groups have a float minimum, for which there is no tensor" if form.has_minimum else ""


def _compressed_entries(shape: Shape, form: LinearForm, zero_points: bool, *, guarded: bool) -> dict[str, Entry]:
    return linear_entries(shape, form, guarded=guarded)


def _compressed_tensors(linear: QuantizedLinear, zero_points: bool, *, guarded: bool) -> dict[str, Array]:
    return linear_tensors(linear, guarded=guarded)


def _compressed_config(written: Written, *, portable: bool) -> dict[str, Any]:
    return make_quantization_config(written.forms, written.tables, written.floats, written.prefix, portable=portable)


GPTQ = Spelling(
    _gptq_refuses, _drops_inputs, _alone, _gptq_entries, _gptq_tensors, _gptq_config, scale="F16", half="F16"
)
AWQ = Spelling(
    _awq_refuses, _drops_inputs, _awq_common, _awq_entries, _awq_tensors, _awq_config, scale="F16", half="F16"
)
COMPRESSED = Spelling(
    _compressed_refuses,
    _nothing,
    _alone,
    partial(_compressed_entries, guarded=False),
    partial(_compressed_tensors, guarded=False),
    partial(_compressed_config, portable=True),
    scale="F32",
    half="BF16",
)
BITWRIGHT = Spelling(
    _bitwright_refuses,
    _nothing,
    _alone,
    partial(_compressed_entries, guarded=True),
    partial(_compressed_tensors, guarded=True),
    partial(_compressed_config, portable=False),
    scale="F32",
    half="BF16",
    tables=True,
)
