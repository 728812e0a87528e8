"""Checkpoints of AutoAWQ, version gemm, and of AutoRound where it packs as they do. A linear `<m>` of N outputs, K
inputs, 4 bits, G groups:

    <m>.qweight   int32 (K, N/8)    codes from 0, packed along N in AutoAWQ's order (`bits.pack_awq`)
    <m>.qzeros    int32 (G, N/8)    zero points, packed alike
    <m>.scales    float (G, N)      w = (q − z) · s
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from bitwright.checkpoints.checkpoint import (
    Checkpoint,
    Module,
    assemble,
    groups_of,
    modules_with,
    read_bias,
    refuse_excluded,
    whole,
)
from bitwright.checkpoints.gptq import SCALES, Settings
from bitwright.checkpoints.integer_codes import integer_spec, integer_weight
from bitwright.checkpoints.linear_tensors import Entry
from bitwright.checkpoints.spelling import (
    Common,
    Contents,
    Shape,
    Spelling,
    drops_inputs,
    group_of,
    of_rows,
    splits,
    uneven,
)
from bitwright.errors import CheckpointError, InputError, NumericsError, brief
from bitwright.files.directory import ModelDirectory
from bitwright.numerics.arrays import Array
from bitwright.numerics.bits import pack_awq, unpack_awq
from bitwright.numerics.linear import LinearForm, PendingLinear, QuantizedLinear
from bitwright.numerics.spec import QuantSpec

SUFFIXES = ("qweight", "qzeros", "scales")
_GROUPS = (128, 64, 32)  # that AutoAWQ's kernels have


def read_awq(directory: ModelDirectory) -> Checkpoint:
    """Open an AutoAWQ checkpoint.

    Raises:
        ModelError: there are no weights. CheckpointError: its parts contradict one another, or a layout that this
        release lacks.
    """
    assert directory.quantization is not None
    where, said = directory.quantization
    version = said.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        raise CheckpointError(f"{where}: version {brief(version)}; this release reads 'gemm'")
    own = {
        "bits": said.get("bits", said.get("w_bit", 4)),
        "group_size": said.get("group_size", said.get("q_group_size")),
    }
    kept = said.get("modules_to_not_convert") or []
    if not isinstance(kept, list) or not all(isinstance(part, str) for part in kept):
        raise CheckpointError(f"{where}: modules_to_not_convert must list names, but is {brief(kept)}")
    # The files decide what is quantized, as some readers match these parts anywhere in a name ("mlp.gate" in
    # "mlp.gate_proj"), and some only at its ends. Where all of them do, no reader would take the codes.
    refuse_excluded(
        modules_with(directory, "qweight"),
        lambda module: any(module.startswith(f"{part}.") or module.endswith(part) for part in kept),
        f"{where}: modules_to_not_convert",
    )
    return read_interleaved(directory, lambda module: own)


def read_interleaved(directory: ModelDirectory, settings: Settings) -> Checkpoint:
    """Open a checkpoint of this layout, whoever's settings say what it holds: bits, group_size."""
    assert directory.quantization is not None
    where = directory.quantization.where
    modules = modules_with(directory, "qweight")
    return assemble(
        directory, {name: _open(Module(directory, name), settings(name), where) for name in modules}, SUFFIXES
    )


def _open(module: Module, said: Mapping[str, Any], where: str) -> PendingLinear:
    if (bits := whole(said, "bits", where)) != 4:
        raise CheckpointError(f"{where}: bits = {bits}; AutoAWQ's layout has 4")
    k, words = module.shape("qweight", ("I32",), 2)
    n = 8 * words
    group, groups = groups_of(k, whole(said, "group_size", where), where)
    what = f"4-bit codes of N, K = {[n, k]} in groups of {group}"
    module.expect("scales", SCALES, (groups, n), what)
    module.expect("qzeros", ("I32",), (groups, words), what)
    try:
        spec = integer_spec(4, group, k, symmetric=False)
    except NumericsError as error:
        raise module.fault("scales", str(error)) from None
    return PendingLinear((n, k), LinearForm(spec), module.loads(_load, module, spec, n))


def _load(module: Module, spec: QuantSpec, n: int) -> QuantizedLinear:
    codes_NK = np.ascontiguousarray(unpack_awq(module.ints("qweight")).T)
    zero_NG = np.ascontiguousarray(unpack_awq(module.ints("qzeros")).T)
    scale_NG = np.ascontiguousarray(module.floats("scales").T)
    weight = integer_weight(codes_NK, scale_NG, spec, zero_NG=zero_NG)
    return QuantizedLinear(weight, read_bias(module.directory, module.name, n))


def _awq_refuses(shape: Shape, form: LinearForm) -> str:
    if form.weight.bits != 4 or form.weight.grid != "uniform":
        return f"it has codes of {form.weight.bits} bits; AutoAWQ's have 4" if not uneven(form) else uneven(form)
    return f"N = {shape[0]} is not a multiple of 8" if shape[0] % 8 else uneven(form)


def _awq_group(linears: Mapping[str, tuple[Shape, LinearForm]]) -> int:
    """That of all, or the largest usual one of which all are multiples, or that of most."""
    sizes = Counter(group_of(form.weight) for _, form in linears.values())
    if len(sizes) == 1:
        return next(iter(sizes))
    fitting = (size for size in _GROUPS if all(splits(*linear, size) for linear in linears.values()))
    return next(fitting, sizes.most_common(1)[0][0] if sizes else 128)


def _awq_groups(shape: Shape, form: LinearForm, common: Common) -> int:
    """Groups of a row, once they are as small as the common one."""
    size = form.weight.group_size if common.group in (None, -1) else common.group
    return shape[1] // (size or shape[1])


def _awq_entries(shape: Shape, form: LinearForm, common: Common) -> dict[str, Entry]:
    (n, k), groups = shape, _awq_groups(shape, form, common)
    return {"qweight": ("I32", (k, n // 8)), "qzeros": ("I32", (groups, n // 8)), "scales": ("F16", (groups, n))}


def _awq_tensors(linear: QuantizedLinear, common: Common) -> dict[str, Array]:
    weight, n = linear.weight, linear.shape[0]
    scale_GN = of_rows(weight.scale_NG, n, np.float16)
    zero_GN = np.zeros(scale_GN.shape, np.int8)
    if weight.zero_point_NG is not None:
        zero_GN = of_rows(weight.zero_point_NG, n, np.int8)
    times = _awq_groups(linear.shape, linear.form, common) // len(scale_GN)
    return {
        "qweight": pack_awq(np.ascontiguousarray(weight.codes_NK.T)),
        "qzeros": pack_awq(np.repeat(zero_GN, times, axis=0), what="zero points"),
        "scales": np.repeat(scale_GN, times, axis=0),
    }


def _awq_config(contents: Contents) -> dict[str, Any]:
    """Raises:
    InputError: AutoAWQ and vLLM look for each of `modules_to_not_convert` anywhere in a name, and would find one in
        that of a quantized linear.
    """
    for left in contents.floats:
        if taken := next((name for name in contents.forms if left in name), None):
            raise InputError(
                f"{left} stays in floats, and AutoAWQ's readers would leave {taken} so, too, because its name holds "
                "that one; quantize both or neither, or choose another format"
            )
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": contents.common.group,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": sorted(contents.floats) or None,
    }


AWQ = Spelling(_awq_refuses, drops_inputs, _awq_group, _awq_entries, _awq_tensors, _awq_config, scale="F16", half="F16")
