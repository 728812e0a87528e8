"""Checkpoints of Apple's MLX. A linear or an embedding `<m>` of N rows, K columns, b bits:

    <m>.weight   uint32 (N, K·b/32)    codes from 0, packed along K, lowest bits first
    <m>.scales   float (N, G)          w = q · s + m, and s may be negative
    <m>.biases   float (N, G)          m
    or, of the modes mxfp4, nvfp4 and mxfp8, uint32 of E2M1 or E4M3, and uint8 (N, G) of E8M0 or E4M3
    (`small_float_codes`)

An embedding table is read as floats, since rows are looked up in it; a head that is tied to it multiplies its codes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bitwright.checkpoints.checkpoint import (
    Checkpoint,
    Module,
    Opened,
    assemble,
    groups_of,
    modules_with,
    read_bias,
    whole,
)
from bitwright.checkpoints.gptq import SCALES
from bitwright.checkpoints.integer_codes import integer_spec, integer_weight
from bitwright.checkpoints.small_float_codes import Fp4, open_fp4, open_mxfp8
from bitwright.errors import CheckpointError, brief
from bitwright.families import FAMILIES
from bitwright.files.directory import ModelDirectory
from bitwright.numerics.arrays import narrow
from bitwright.numerics.bits import unpack_words
from bitwright.numerics.linear import LinearForm, PendingFloat, PendingLinear, QuantizedLinear
from bitwright.numerics.spec import QuantSpec

SUFFIXES = ("weight", "scales", "biases")
_FP4 = {
    "mxfp4": Fp4("MXFP4", "weight", "scales", words=True),
    "nvfp4": Fp4("NVFP4", "weight", "scales", words=True),
}
_BITS = (2, 3, 4, 5, 6, 8)


def read_mlx(directory: ModelDirectory) -> Checkpoint:
    """Open an MLX checkpoint.

    Raises:
        ModelError: there are no weights. CheckpointError: its parts contradict one another, or a mode that this release
        lacks.
    """
    assert directory.quantization is not None
    where, said = directory.quantization
    row = FAMILIES.get(str(directory.config.get("model_type")))
    words = "embed_tokens" if row is None else row.embeddings.words

    coded: dict[str, Opened] = {}
    for name in modules_with(directory, "scales"):
        own = said.get(name)
        coded[name] = _open(Module(directory, name), {**said, **own} if isinstance(own, dict) else said, where)
    tables = {
        name: pending for name, pending in coded.items()
        if isinstance(pending, PendingLinear) and f".{name}".endswith(f".{words}")
    }  # fmt: skip
    opened = coded | {name: _as_table(pending) for name, pending in tables.items()}
    return assemble(directory, opened, SUFFIXES)._replace(coded_tables=tables)


def _open(module: Module, said: Mapping[str, Any], where: str) -> Opened:
    mode = said.get("mode", "affine")
    if isinstance(mode, str) and mode in _FP4:
        return open_fp4(module, _FP4[mode])
    if mode == "mxfp8":
        return open_mxfp8(module, "weight", "scales", words=True)
    if mode != "affine":
        known = ", ".join(map(repr, ("affine", *_FP4, "mxfp8")))
        raise CheckpointError(f"{where}: mode {brief(mode)}; this release reads {known}")
    if (bits := whole(said, "bits", where)) not in _BITS:
        raise CheckpointError(f"{where}: bits = {bits}; this release reads {', '.join(map(str, _BITS))}")
    n, words = module.shape("weight", ("U32",), 2)
    k, rest = divmod(32 * words, bits)
    group, groups = groups_of(k, whole(said, "group_size", where), where)
    what = f"{bits}-bit codes of N, K = {[n, k]} in groups of {group}"
    if rest or k % group:
        raise module.fault("weight", f"has {words} words a row, which are no whole groups of {what}")
    module.expect("scales", SCALES, (n, groups), what)
    module.expect("biases", SCALES, (n, groups), what)
    spec = integer_spec(bits, group, k, symmetric=False)
    load = module.loads(_load, module, bits, spec, (n, k))
    return PendingLinear((n, k), LinearForm(spec, has_minimum=True), load)


def _load(module: Module, bits: int, spec: QuantSpec, shape: tuple[int, int]) -> QuantizedLinear:
    n, k = shape
    codes_NK = unpack_words(module.ints("weight").view(np.int32), bits, k)
    if spec.bits != bits:
        codes_NK = codes_NK - np.int8(128 - (1 << bits - 1))  # held in 8 bits, from −128 up
    scale_NG, minimum_NG, top = module.floats("scales"), module.floats("biases"), (1 << bits) - 1
    weight = integer_weight(codes_NK, scale_NG, spec, minimum_NG=minimum_NG, top=top)
    return QuantizedLinear(weight, read_bias(module.directory, module.name, n))


def _as_table(pending: PendingLinear) -> PendingFloat:
    bits = pending.form.weight.bits
    return PendingFloat(
        pending.shape, "bfloat16", f"{bits}-bit embedding table", lambda: narrow(pending.load().weight.dequantize())
    )
