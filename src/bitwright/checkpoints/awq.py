"""Checkpoints of AutoAWQ, version gemm, and of AutoRound where it packs as they do. A linear `<m>` of N outputs, K
inputs, 4 bits, G groups:

    <m>.qweight   int32 (K, N/8)    codes from 0, packed along N in AutoAWQ's order (`bits.pack_awq`)
    <m>.qzeros    int32 (G, N/8)    zero points, packed alike
    <m>.scales    float (G, N)      w = (q − z) · s
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bitwright.checkpoints.checkpoint import Checkpoint, Module, assemble, groups_of, modules_with, read_bias, whole
from bitwright.checkpoints.gptq import SCALES, Settings
from bitwright.checkpoints.integer_codes import integer_spec, integer_weight
from bitwright.errors import CheckpointError, NumericsError, brief
from bitwright.files.directory import ModelDirectory
from bitwright.numerics.bits import unpack_awq
from bitwright.numerics.linear import LinearForm, PendingLinear, QuantizedLinear
from bitwright.numerics.spec import QuantSpec

SUFFIXES = ("qweight", "qzeros", "scales")


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
