"""Reading a quantized checkpoint, ours or another tool's, without torch: everything is checked before it is believed.

What config.json and the files' headers say is checked when a checkpoint is opened, the values of a linear when it is
loaded.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from bitwright.checkpoints.attention import parse_attention
from bitwright.checkpoints.linear_tensors import SUFFIXES, described, read_linear
from bitwright.checkpoints.quantization_config import Group, QuantizationConfig, parse_quantization_config
from bitwright.errors import CheckpointError, NumericsError
from bitwright.files.directory import CONFIG_FILE, ModelDirectory
from bitwright.files.tensors import MappedTensors
from bitwright.numerics.arrays import Bf16
from bitwright.numerics.linear import PendingLinear, QuantizedLinear

# Ends of names that only other formats and schemes use: not to be mistaken for parameters of the model.
_FOREIGN = ("weight_g_idx", "weight_global_scale", "input_global_scale", "output_scale", "output_zero_point", "k_scale",
            "v_scale", "qweight", "qzeros", "g_idx")  # fmt: skip
_CODES = ("I8", "U8", "I32")


class Checkpoint(NamedTuple):
    """A quantized checkpoint, by names on disk.

    linears: the quantized ones, their values not loaded. tables: int8 embedding tables. others: names of every other
    tensor. int8_attention: blocks whose attention the engine computes in int8.
    """

    directory: ModelDirectory
    linears: Mapping[str, PendingLinear]
    tables: tuple[str, ...]
    others: frozenset[str]
    int8_attention: frozenset[int] = frozenset()

    @property
    def tensors(self) -> MappedTensors:
        """All tensors of the files."""
        return self.directory.tensors

    def table(self, module: str) -> tuple[np.ndarray, np.ndarray]:
        """Codes int8 (V, H), in a map of their own, which nothing has read yet, and scales float32 (V,) of one of
        `tables`.

        Raises:
            CheckpointError: its tensors contradict one another, or a scale is not finite and positive.
        """
        where = f"{self.directory.path}: {module}"
        codes, scale = self._codes(f"{module}.weight"), read_floats(self.directory, f"{module}.weight_scale")
        if codes.ndim != 3 or codes.shape[1] != 1 or not codes.size or scale.shape != (len(codes), 1):
            raise CheckpointError(
                f"{where}: weight {list(codes.shape)} with weight_scale {list(scale.shape)}; an int8 table has "
                "(V, 1, H) codes and (V, 1) scales"
            )
        if not ((scale > 0) & (scale < np.inf)).all():
            raise CheckpointError(f"{where}: weight_scale: every scale must be finite and positive")
        return codes[:, 0], scale[:, 0]

    def _codes(self, name: str) -> np.ndarray:
        if name not in self.tensors:
            raise CheckpointError(f"{self.directory.path}: {name} is missing, but the table is quantized")
        if self.tensors.dtype(name) != "I8":
            raise CheckpointError(f"{self.directory.path}: {name} is {self.tensors.dtype(name)}, but must be I8")
        codes = self.tensors.alone(name)
        assert isinstance(codes, np.ndarray)
        return codes


def read_compressed(directory: ModelDirectory, *, portable: bool) -> Checkpoint:
    """Open a checkpoint in compressed-tensors' int-quantized or pack-quantized format, or in ours, which adds to it.

    portable: whether plain readers must understand it, so that nothing of ours may occur.

    Raises:
        ModelError: there are no weights.
        CheckpointError: not such a checkpoint, or its parts contradict one another.
    """
    where = f"{directory.path / CONFIG_FILE}: quantization_config"
    int8_attention = parse_attention(directory.config, str(directory.path / CONFIG_FILE))
    config = parse_quantization_config(directory.config.get("quantization_config"), where, portable=portable)
    tensors = directory.tensors
    modules = {name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")}
    taken = {f"{module}.{suffix}" for module in modules for suffix in SUFFIXES} & tensors.keys()
    _check_others(directory, taken)
    missing = set(config.embeddings) - modules
    if missing:
        raise CheckpointError(
            f"{directory.path}: {min(missing)}: config.json says that this table is int8, but the files hold no "
            "scale for it"
        )
    tables = tuple(sorted(modules & set(config.embeddings)))
    group_of = config.group_finder()
    linears = {module: _open_linear(directory, module, group_of(module)) for module in sorted(modules - set(tables))}
    if portable:
        _refuse_guarded(directory, linears)
    _check_targets(directory, config, modules)
    return Checkpoint(directory, linears, tables, frozenset(tensors.keys() - taken), int8_attention)


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


def _open_linear(directory: ModelDirectory, module: str, group: Group | None) -> PendingLinear:
    """A linear as its header and its group describe it.

    Raises:
        CheckpointError: they contradict one another.
    """
    if group is None:
        raise CheckpointError(
            f"{directory.path}: {module} is stored as codes, but config.json ignores it or has no scheme for it"
        )
    tensors = directory.tensors
    there = [suffix for suffix in SUFFIXES if f"{module}.{suffix}" in tensors]
    header = {suffix: (tensors.dtype(f"{module}.{suffix}"), tensors.shape(f"{module}.{suffix}")) for suffix in there}
    two = math.prod(header.get("weight_shape", ("", (0,)))[1]) == 2
    weight_shape = tensors[f"{module}.weight_shape"] if two else None
    try:
        shape, form, guarded = described(group, header, None if isinstance(weight_shape, Bf16) else weight_shape)
    except NumericsError as error:
        raise CheckpointError(f"{directory.path}: {module}: {error}") from None
    load = partial(_load, directory, module, group, shape, guarded=guarded)
    return PendingLinear(shape, form, load)


def _load(
    directory: ModelDirectory, module: str, group: Group, shape: tuple[int, int], *, guarded: bool
) -> QuantizedLinear:
    tensors = directory.tensors
    stored = {suffix: tensors[f"{module}.{suffix}"] for suffix in SUFFIXES if f"{module}.{suffix}" in tensors}
    try:
        return read_linear(stored, group, shape, read_bias(directory, module, shape[0]), guarded=guarded)
    except NumericsError as error:
        raise CheckpointError(f"{directory.path}: {module}: {error}") from None


def read_bias(directory: ModelDirectory, module: str, n: int) -> np.ndarray | None:
    """The bias of a linear, float32 (n,), or None.

    Raises:
        CheckpointError: another shape, or no floats.
    """
    name = f"{module}.bias"
    if name not in directory.tensors:
        return None
    bias = read_floats(directory, name)
    if bias.shape != (n,):
        raise CheckpointError(f"{directory.path}: {name} has the shape {list(bias.shape)}, but ({n},) is expected")
    return bias


def read_floats(directory: ModelDirectory, name: str) -> np.ndarray:
    """A float tensor of any precision, in float32. What float32 cannot hold becomes infinite, as torch has it.

    Raises:
        CheckpointError: there is none, or it is no float tensor.
    """
    tensors = directory.tensors
    if name not in tensors:
        raise CheckpointError(
            f"{directory.path}: the files hold no {name!r}. The download is incomplete, or config and weights are "
            "of different models"
        )
    if tensors.dtype(name) not in ("F32", "F16", "F64", "BF16"):
        raise CheckpointError(f"{directory.path}: {name} is {tensors.dtype(name)}, but must be a float tensor")
    values = tensors[name]
    if isinstance(values, Bf16):
        widened: np.ndarray = values.widen()
        return widened
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
