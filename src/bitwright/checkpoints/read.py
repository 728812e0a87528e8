"""Reading a quantized checkpoint, ours or another tool's, without torch: everything is checked before it is believed.

What config.json and the files' headers say is checked when a checkpoint is opened, the values of a linear when it is
loaded.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from bitwright.checkpoints.checkpoint import Checkpoint, Module, Opened, read_bias
from bitwright.checkpoints.integer_codes import by_index, in_order
from bitwright.checkpoints.linear_tensors import READ_SUFFIXES, SUFFIXES, described, read_linear
from bitwright.checkpoints.quantization_config import (
    FloatGroup,
    Group,
    QuantizationConfig,
    parse_quantization_config,
)
from bitwright.checkpoints.small_float_codes import (
    FP4_INPUTS,
    FP8_INPUTS,
    Fp4,
    open_fp4,
    open_fp8,
    open_mxfp6,
    open_mxfp8,
)
from bitwright.errors import CheckpointError, NumericsError
from bitwright.files.directory import CONFIG_FILE, ModelDirectory
from bitwright.numerics.arrays import Bf16
from bitwright.numerics.linear import PendingFloat, PendingLinear, QuantizedLinear

# Ends of names that only other formats and schemes use: not to be mistaken for parameters of the model.
_FOREIGN = (*READ_SUFFIXES, "output_scale", "output_zero_point", "k_scale", "v_scale", "qweight", "qzeros", "g_idx")
_CACHE = (".k_scale", ".v_scale", ".k_zero_point", ".v_zero_point", "k_proj.output_scale", "v_proj.output_scale")
_CODES = ("I8", "U8", "I32")
_FP4 = {
    "nvfp4-pack-quantized": Fp4("NVFP4", "weight_packed", "weight_scale", "weight_global_scale", "divides"),
    "mxfp4-pack-quantized": Fp4("MXFP4", "weight_packed", "weight_scale"),
}


def read_compressed(directory: ModelDirectory, *, portable: bool) -> Checkpoint:
    """Open a checkpoint in compressed-tensors' int-quantized or pack-quantized format, or in ours, which adds to it.

    portable: whether plain readers must understand it, so that nothing of ours may occur.

    Raises:
        ModelError: there are no weights.
        CheckpointError: not such a checkpoint, or its parts contradict one another.
    """
    where = f"{directory.transformer / CONFIG_FILE}: quantization_config"
    config = parse_quantization_config(directory.config.get("quantization_config"), where, portable=portable)
    tensors = directory.tensors
    modules = {name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")}
    suffixes = (*SUFFIXES, *READ_SUFFIXES)
    taken = {f"{module}.{suffix}" for module in modules for suffix in suffixes} & tensors.keys()
    if config.scales_cache:
        taken |= {name for name in tensors if name.endswith(_CACHE)}
    _check_others(directory, taken)
    missing = set(config.embeddings) - modules
    if missing:
        raise CheckpointError(
            f"{directory.path}: {min(missing)}: config.json says that this table is int8, but the files hold no "
            "scale for it"
        )
    tables = tuple(sorted(modules & set(config.embeddings)))
    group_of = config.group_finder()
    opened = {module: _open(directory, module, group_of(module)) for module in sorted(modules - set(tables))}
    linears = {name: pending for name, pending in opened.items() if isinstance(pending, PendingLinear)}
    floats = {name: pending for name, pending in opened.items() if isinstance(pending, PendingFloat)}
    if portable:
        _refuse_guarded(directory, linears)
    _check_targets(directory, config, modules)
    others = frozenset(tensors.keys() - taken)
    return Checkpoint(directory, linears, tables, others, dequantized=floats, notes=_notes(config))


def _notes(config: QuantizationConfig) -> tuple[str, ...]:
    """What the file asks for and this release does otherwise."""
    rounded = [group for group in config.groups if isinstance(group, FloatGroup) and group.rounds_inputs]
    notes = sorted({FP4_INPUTS if group.format in _FP4 else FP8_INPUTS for group in rounded})
    return (*notes, *(["keys and values are not held as the file says"] if config.scales_cache else []))


def _check_others(directory: ModelDirectory, taken: set[str]) -> None:
    tensors = directory.tensors
    for name in sorted(tensors.keys() - taken):
        suffix = name.rpartition(".")[2]
        if suffix in _FOREIGN:
            raise CheckpointError(f"{directory.path}: {name} has a format or a scheme that this release cannot read")
        if suffix in SUFFIXES[1:]:
            raise CheckpointError(f"{directory.path}: {name} is unexpected, because there is no weight_scale beside it")
        if suffix == "weight" and tensors.dtype(name) in _CODES:
            raise CheckpointError(f"{directory.path}: {name} holds codes, but {name}_scale is missing")


def _check_targets(directory: ModelDirectory, config: QuantizationConfig, modules: set[str]) -> None:
    """Modules that the config names one by one must be there."""
    for group in config.groups:
        for target in group.targets:
            plain = not target.startswith("re:") and "." in target
            if plain and target not in modules and target not in config.ignore:
                raise CheckpointError(
                    f"{directory.path}: {target}: config.json says that this linear is quantized, but the files "
                    "hold no codes for it"
                )


def _refuse_guarded(directory: ModelDirectory, linears: Mapping[str, Any]) -> None:
    tensors = directory.tensors
    for module in linears:
        if f"{module}.weight" in tensors and len(tensors.shape(f"{module}.weight")) == 3:
            raise CheckpointError(
                f"{directory.path}: {module}.weight has the shape of a weight that only Bitwright reads, but "
                "quantization_config describes a portable one"
            )


def _open(directory: ModelDirectory, module: str, group: Group | FloatGroup | None) -> Opened:
    """A linear as its header and its group describe it.

    Raises:
        CheckpointError: they contradict one another.
    """
    if group is None:
        raise CheckpointError(
            f"{directory.path}: {module} is stored as codes, but config.json ignores it or has no scheme for it"
        )
    if isinstance(group, FloatGroup):
        return _open_floats(Module(directory, module), group)
    tensors = directory.tensors
    there = [suffix for suffix in (*SUFFIXES, *READ_SUFFIXES[1:]) if f"{module}.{suffix}" in tensors]
    header = {suffix: (tensors.dtype(f"{module}.{suffix}"), tensors.shape(f"{module}.{suffix}")) for suffix in there}
    two = math.prod(header.get("weight_shape", ("", (0,)))[1]) == 2
    weight_shape = tensors[f"{module}.weight_shape"] if two else None
    try:
        shape, form, guarded = described(group, header, None if isinstance(weight_shape, Bf16) else weight_shape)
    except NumericsError as error:
        raise CheckpointError(f"{directory.path}: {module}: {error}") from None
    load = partial(_load, directory, module, group, shape, guarded=guarded)
    if "weight_g_idx" in (own := Module(directory, module)) or group.indexed:
        return _indexed(own, shape, group, load) or PendingLinear(shape, form, load)
    return PendingLinear(shape, form, load)


def _open_floats(module: Module, group: FloatGroup) -> Opened:
    names, packed = _FP4.get(group.format), "pack" in group.format
    known: tuple[str, ...] = ("input_scale", "input_zero_point", "input_global_scale", "weight_scale")
    known += ("weight_packed", "weight_shape") if packed else ("weight",)
    known += () if names is None else (names.whole,)
    for suffix in (*SUFFIXES, *READ_SUFFIXES):
        if suffix in module and suffix not in known:
            raise module.fault(suffix, f"is unexpected of a {group.format} weight")
    if names is not None:
        return open_fp4(module, names)
    if group.format == "mxfp6-pack-quantized":
        return open_mxfp6(module)
    return open_mxfp8(module) if group.format == "mxfp8-quantized" else open_fp8(module, "weight_scale", group.blocks)


def _indexed(
    module: Module, shape: tuple[int, int], group: Group, load: Callable[[], QuantizedLinear]
) -> PendingFloat | None:
    """A linear whose columns say which group they are of; None if those are runs, as if they did not say it.

    Raises:
        CheckpointError: there is no such index, or it names groups that there are not.
    """
    spec = group.form.weight
    module.expect("weight_g_idx", ("I32", "I64"), (shape[1],), "K inputs")
    if not group.indexed or spec.group_size is None or group.form.input is not None or group.form.scales_input:
        raise module.fault("weight_g_idx", "is unexpected: config.json says nothing of actorder 'group'")
    index = module.ints("weight_g_idx")
    try:
        if in_order(index, shape[1] // spec.group_size, spec.group_size):
            return None
    except NumericsError as error:
        raise module.fault("weight_g_idx", str(error)) from None

    def load_float() -> np.ndarray:
        weight = load().weight
        return by_index(weight.codes_NK, weight.scale_NG, weight.zero_point_NG, module.ints("weight_g_idx"))

    return PendingFloat(shape, "float32", f"int{spec.bits} in the order of activations", module.loads(load_float))


def _load(
    directory: ModelDirectory, module: str, group: Group, shape: tuple[int, int], *, guarded: bool
) -> QuantizedLinear:
    tensors = directory.tensors
    stored = {suffix: tensors[f"{module}.{suffix}"] for suffix in SUFFIXES if f"{module}.{suffix}" in tensors}
    try:
        return read_linear(stored, group, shape, read_bias(directory, module, shape[0]), guarded=guarded)
    except NumericsError as error:
        raise CheckpointError(f"{directory.path}: {module}: {error}") from None
