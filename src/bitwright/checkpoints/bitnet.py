"""Checkpoints of BitNet b1.58 as transformers has them: ternary weights with one scale for the whole tensor, and inputs
rounded to int8 with a scale for each token (Ma et al. 2024). A linear `<m>` of N outputs, K inputs:

    <m>.weight         uint8 (N/4, K)   code + 1 of row r + i · N/4 in the bits 2 i and 2 i + 1
    <m>.weight_scale   float (1,)       w = code / scale of the linear_class bitlinear, code · scale of autobitlinear

or, where an autobitlinear has the quantization_mode online, float weights, which become codes when they are loaded:

    <m>.weight         float (N, K)     code = round(w / scale), scale = mean |w|

Written are bitlinears: of an autobitlinear transformers (5.23) gives every weight the dtype of the file, those of norms
and heads too, so that a model whose file has several dtypes fails. The scale is a float64, whose reciprocal is exact.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bitwright.checkpoints.checkpoint import Checkpoint, Module, assemble, flag, read_bias
from bitwright.checkpoints.gptq import SCALES
from bitwright.checkpoints.linear_tensors import Entry
from bitwright.checkpoints.module_patterns import matcher
from bitwright.checkpoints.spelling import Common, Contents, Shape, Spelling, any_group, uneven
from bitwright.errors import CheckpointError, brief
from bitwright.families import FAMILIES
from bitwright.files.directory import ModelDirectory
from bitwright.numerics.arrays import Array, Bf16
from bitwright.numerics.bits import pack_bitnet, unpack_bitnet
from bitwright.numerics.linear import LinearForm, PendingLinear, QuantizedLinear
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.schemes import SCHEMES

SUFFIXES = ("weight", "weight_scale")
_LEAST_MEAN = np.float32(1e-5)  # as in transformers
# (linear_class, quantization_mode) -> whether weights are codes, and whether their scale divides. A bitlinear has no
# mode of its own.
_KINDS = {
    ("bitlinear", "offline"): (True, True),
    ("bitlinear", "online"): (True, True),
    ("autobitlinear", "offline"): (True, False),
    ("autobitlinear", "online"): (False, False),
}


def _form() -> LinearForm:
    scheme = SCHEMES["ternary_a8_tensor"]
    assert scheme.weight is not None
    return LinearForm(scheme.weight, scheme.input)


def read_bitnet(directory: ModelDirectory) -> Checkpoint:
    """Open such a checkpoint.

    Raises:
        ModelError: there are no weights. CheckpointError: its parts contradict one another, or norms inside linears.
    """
    assert directory.quantization is not None
    where, said = directory.quantization
    kind = said.get("linear_class", "bitlinear"), said.get("quantization_mode", "offline")
    if not all(isinstance(part, str) for part in kind) or kind not in _KINDS:
        raise CheckpointError(
            f"{where}: linear_class {brief(kind[0])}, quantization_mode {brief(kind[1])}; this release reads bitlinear "
            "and autobitlinear, offline and online"
        )
    if flag(said, "use_rms_norm", where, False):
        raise CheckpointError(f"{where}: use_rms_norm is set; this release reads no linears that norm their inputs")
    packed, divides = _KINDS[kind]
    tensors, ternary = directory.tensors, _is_ternary(directory, said, where)
    modules = {name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")}
    for name in tensors:
        module, _, suffix = name.rpartition(".")
        if suffix == "weight" and (tensors.dtype(name) == "U8" or ternary(module)):
            modules.add(module)
    opened: dict[str, PendingLinear] = {}
    for name in sorted(modules):
        own = Module(directory, name)
        if not ternary(name, default=True):
            raise own.fault("weight", f"holds codes, but modules_to_not_convert of {where} names it")
        opened[name] = _open(own, divides) if packed else _open_floats(own)
    if not opened:
        raise CheckpointError(f"{directory.path}: no tensor is a ternary weight, so nothing is quantized")
    return assemble(directory, dict(opened), SUFFIXES)


def _is_ternary(directory: ModelDirectory, said: Mapping[str, Any], where: str) -> Callable[..., bool]:
    """Whether transformers takes a module for a ternary linear, `default` where the family does not tell that it is a
    linear. Heads are none unless a list says what else is none."""
    kept = said.get("modules_to_not_convert")
    if kept is not None and (not isinstance(kept, list) or not all(isinstance(key, str) for key in kept)):
        raise CheckpointError(f"{where}: modules_to_not_convert must be a list of names, but is {brief(kept)}")
    try:
        kept_by = matcher((rf"re:(?:{key})(?:(?<=\.)|(?=\.|$))", True) for key in kept or ())
    except CheckpointError as error:
        raise CheckpointError(f"{where}: modules_to_not_convert: {error}") from None
    row = FAMILIES.get(str(directory.config.get("model_type")))
    heads = set() if row is None else set(row.head.outputs.values())
    paths = [] if row is None else [re.escape(f"{row.blocks}.*.{path}").replace(r"\*", "[0-9]+") for path in row.roles]
    linear = matcher((rf"re:(?:.*\.)?{path}$", True) for path in paths)

    def is_ternary(module: str, *, default: bool = False) -> bool:
        if kept is not None and (kept_by(module) or module.endswith(tuple(kept))):
            return False
        if module in heads:
            return kept is not None or default
        return bool(linear(module)) or default

    return is_ternary


def _open(module: Module, divides: bool) -> PendingLinear:
    rows, k = module.shape("weight", ("U8",), 2)
    n = 4 * rows
    module.expect("weight_scale", (*SCALES, "F64"), (1,), f"ternary codes of N, K = {[n, k]}")
    form = _form()
    return PendingLinear((n, k), form, module.loads(_load, module, form, n, divides))


def _load(module: Module, form: LinearForm, n: int, divides: bool) -> QuantizedLinear:
    codes_NK = unpack_bitnet(module.bytes("weight"))
    if codes_NK.size and int(codes_NK.max()) > 1:
        raise module.fault("weight", "holds 3 in two bits, which stands for no ternary code")
    weight = QTensor(codes_NK, _scale(module, divides), None, form.weight)
    return QuantizedLinear(weight, read_bias(module.directory, module.name, n), form.input)


def _scale(module: Module, divides: bool) -> np.ndarray:
    """What codes are multiplied by: float32 (1, 1)."""
    given = module.directory.tensors[f"{module.name}.weight_scale"]
    wide_1 = (given.widen() if isinstance(given, Bf16) else given).astype(np.float64)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        scale_1: np.ndarray = (1 / wide_1 if divides else wide_1).astype(np.float32)
    if not 0 < scale_1[0] < np.inf:
        raise module.fault("weight_scale", f"is {wide_1[0]:g}, but it and its reciprocal must be positive and finite")
    return scale_1.reshape(1, 1)


def _open_floats(module: Module) -> PendingLinear:
    if "weight_scale" in module:
        raise module.fault("weight_scale", "is unexpected of a weight that is online")
    n, k = module.shape("weight", SCALES, 2)
    form = _form()
    return PendingLinear((n, k), form, module.loads(_load_floats, module, form, n))


def _load_floats(module: Module, form: LinearForm, n: int) -> QuantizedLinear:
    w_NK = module.floats("weight")
    multiplier = np.float32(1) / max(np.float32(np.abs(w_NK).mean(dtype=np.float64)), _LEAST_MEAN)
    codes_NK = np.rint(w_NK * multiplier).clip(-1, 1).astype(np.int8)
    weight = QTensor(codes_NK, np.full((1, 1), np.float32(1) / multiplier, np.float32), None, form.weight)
    return QuantizedLinear(weight, read_bias(module.directory, module.name, n), form.input)


def _refuses(shape: Shape, form: LinearForm) -> str:
    if form.weight.grid != "ternary" or not form.weight.per_tensor:
        return uneven(form) or "its weights are not ternary with one scale for all"
    return f"N = {shape[0]} is not a multiple of 4" if shape[0] % 4 else uneven(form)


def _drops(form: LinearForm) -> str:
    """The format has one way of rounding inputs."""
    if form.input == _form().input:
        return ""
    return "its inputs are rounded to 8 bits with a scale for each token, as the format has it"


def _entries(shape: Shape, form: LinearForm, common: Common) -> dict[str, Entry]:
    return {"weight": ("U8", (shape[0] // 4, shape[1])), "weight_scale": ("F64", (1,))}


def _tensors(linear: QuantizedLinear, common: Common) -> dict[str, Array]:
    weight = linear.weight
    return {"weight": pack_bitnet(weight.codes_NK), "weight_scale": 1 / weight.scale_NG.reshape(1).astype(np.float64)}


def _config(contents: Contents) -> dict[str, Any]:
    """A tied head is no tensor, but a linear of transformers'."""
    tied = set() if any(name.endswith("lm_head") for name in contents.forms) else {"lm_head"}
    floats = {name.removeprefix(f"{contents.prefix}.") for name in contents.floats}
    return {
        "quant_method": "bitnet",
        "linear_class": "bitlinear",
        "quantization_mode": "offline",
        "modules_to_not_convert": sorted(floats | tied),
    }


BITNET = Spelling(_refuses, _drops, any_group, _entries, _tensors, _config, scale="F32", half="BF16")
