"""Reading a quantized checkpoint, ours or another tool's: everything is checked before it is believed.

What config.json and the files' headers say is checked when a checkpoint is opened, the values of a linear when it is
loaded.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitwright.checkpoints.linear_tensors import SUFFIXES, described, read_linear
from bitwright.checkpoints.quantization_config import Group, QuantizationConfig, parse_quantization_config
from bitwright.checkpoints.stored import LazyLinear, ModelNames, StoredLinear, name_in
from bitwright.errors import CheckpointError, NumericsError
from bitwright.files.directory import CONFIG_FILE
from bitwright.models.tensor_files import TensorFiles
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec

# Ends of names that only other formats and schemes use: not to be mistaken for parameters of the model.
_FOREIGN = ("weight_g_idx", "weight_global_scale", "input_global_scale", "output_scale", "output_zero_point", "k_scale",
            "v_scale", "qweight", "qzeros", "g_idx")  # fmt: skip


class StoredLinears(Mapping[str, StoredLinear]):
    """Name -> quantized linear, loaded and checked when asked for, and not kept.

    described: what is known of each without loading it.
    """

    def __init__(self, described: Mapping[str, LazyLinear]) -> None:
        self.described = described

    def __getitem__(self, name: str) -> StoredLinear:
        """Raises:
        KeyError: no such linear.
        CheckpointError: its values contradict one another.
        """
        return self.described[name].load()

    def __iter__(self) -> Iterator[str]:
        return iter(self.described)

    def __len__(self) -> int:
        return len(self.described)

    def __contains__(self, name: object) -> bool:
        return name in self.described


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A quantized checkpoint, by names on disk.

    config: config.json. layers: the quantized linears, loaded one by one. tables: int8 embedding tables. others: every
    other tensor, loaded when asked for.
    """

    directory: Path
    config: dict[str, Any]
    layers: StoredLinears
    tables: dict[str, QTensor]
    others: Mapping[str, Tensor]


def is_quantized(directory: Path) -> bool:
    """Whether config.json of a directory speaks of quantization, by any tool."""
    return "quantization_config" in _read_config(directory)


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read a checkpoint that `write_checkpoint` or another tool wrote in compressed-tensors' int-quantized or
    pack-quantized format.

    Raises:
        ModelError: there are no weights.
        CheckpointError: not such a checkpoint, or its parts contradict one another.
    """
    raw = _read_config(directory)
    config = parse_quantization_config(
        raw.get("quantization_config"), f"{directory / CONFIG_FILE}: quantization_config"
    )
    files = TensorFiles(directory, pickles=False)
    modules = {name.removesuffix(".weight_scale") for name in files if name.endswith(".weight_scale")}
    taken = {f"{module}.{suffix}" for module in modules for suffix in SUFFIXES} & files.keys()
    _check_others(files, taken)
    missing = set(config.embeddings) - modules
    if missing:
        raise CheckpointError(f"{directory}: {min(missing)}: config.json says int8, the file holds no scale for it")
    tables = {module: _read_table(files, module) for module in sorted(modules & set(config.embeddings))}
    group_of = config.group_finder()
    layers = {module: _open_linear(files, module, group_of(module)) for module in sorted(modules - tables.keys())}
    if config.portable:
        _refuse_guarded(directory, layers, files)
    _check_targets(directory, config, modules)
    return Checkpoint(directory, raw, StoredLinears(layers), tables, _Others(files, files.keys() - taken))


def for_model(checkpoint: Checkpoint, names: ModelNames) -> tuple[StoredLinears, dict[str, QTensor]]:
    """(linears, tables) of `checkpoint` by the module names of a model, which may add or lack the base model's prefix.

    Raises:
        CheckpointError: a quantized module of the file is not in the model.
    """
    linears = _model_names(checkpoint, checkpoint.layers, names.linears, names)
    tables = _model_names(checkpoint, checkpoint.tables, names.embeddings, names)
    return (
        StoredLinears({linears[name]: layer for name, layer in checkpoint.layers.described.items()}),
        {tables[name]: table for name, table in checkpoint.tables.items()},
    )


def _model_names(
    checkpoint: Checkpoint, stored: Mapping[str, object], modules: tuple[str, ...], names: ModelNames
) -> dict[str | None, str]:
    """Name on disk -> name in the model, of everything `stored`."""
    on_disk = {}
    for module in modules:
        renamed = names.renames.get(f"{module}.weight", f"{module}.weight").removesuffix(".weight")
        found = name_in(stored, renamed, names.prefix) or name_in(stored, module, names.prefix)
        on_disk[found] = module
    lost = stored.keys() - on_disk.keys()
    if lost:
        raise CheckpointError(
            f"{checkpoint.directory}: {min(lost)} is quantized in the file but is not in the model "
            f"({len(lost)} such modules)"
        )
    return on_disk


class _Others(Mapping[str, Tensor]):
    """Some of the tensors of some files, loaded when asked for."""

    def __init__(self, files: TensorFiles, names: set[str]) -> None:
        self._files, self._names = files, names

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._files[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names))

    def __len__(self) -> int:
        return len(self._names)


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; is {directory} a model directory?") from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(config).__name__}, not an object")
    return config


def _check_others(files: TensorFiles, taken: set[str]) -> None:
    for name in sorted(files.keys() - taken):
        suffix = name.rpartition(".")[2]
        if suffix in _FOREIGN:
            raise CheckpointError(f"{files.directory}: {name} is of a format or a scheme that this release cannot read")
        if suffix in SUFFIXES[1:]:
            raise CheckpointError(f"{files.directory}: {name} is unexpected: there is no weight_scale beside it")
        if suffix == "weight" and files.dtype(name) in (torch.int8, torch.uint8, torch.int32):
            raise CheckpointError(f"{files.directory}: {name} holds codes, but {name}_scale is missing")


def _check_targets(directory: Path, config: QuantizationConfig, modules: set[str]) -> None:
    """Modules that the config names one by one must be there."""
    for group in config.groups:
        for target in group.targets:
            plain = not target.startswith("re:") and "." in target
            if plain and target not in modules and target not in config.ignore:
                raise CheckpointError(f"{directory}: {target}: config.json names it, the file holds no codes for it")


def _refuse_guarded(directory: Path, layers: Mapping[str, LazyLinear], files: TensorFiles) -> None:
    for module in layers:
        if f"{module}.weight" in files and len(files.shape(f"{module}.weight")) == 3:
            raise CheckpointError(f"{directory}: {module}.weight has the shape of a guarded weight, not a portable one")


def _open_linear(files: TensorFiles, module: str, group: Group | None) -> LazyLinear:
    """A linear as its header and its group describe it.

    Raises:
        CheckpointError: they contradict one another.
    """
    if group is None:
        raise CheckpointError(
            f"{files.directory}: {module} is stored as codes, but config.json ignores it or has no scheme for it"
        )
    there = [suffix for suffix in SUFFIXES if f"{module}.{suffix}" in files]
    header = {suffix: (files.dtype(f"{module}.{suffix}"), files.shape(f"{module}.{suffix}")) for suffix in there}
    shape_name = f"{module}.weight_shape"
    weight_shape = files[shape_name] if math.prod(header.get("weight_shape", (0, (0,)))[1]) == 2 else None
    try:
        layer, guarded = described(group, header, weight_shape)
    except NumericsError as error:
        raise CheckpointError(f"{files.directory}: {module}: {error}") from None
    return replace(layer, load=partial(_load, files, module, group, layer, guarded=guarded))


def _load(files: TensorFiles, module: str, group: Group, layer: LazyLinear, *, guarded: bool) -> StoredLinear:
    tensors = {suffix: files[f"{module}.{suffix}"] for suffix in SUFFIXES if f"{module}.{suffix}" in files}
    try:
        return read_linear(tensors, group, layer, guarded=guarded)
    except NumericsError as error:
        raise CheckpointError(f"{files.directory}: {module}: {error}") from None


def _read_table(files: TensorFiles, module: str) -> QTensor:
    codes = _tensor(files, module, "weight", {torch.int8})
    scale = _tensor(files, module, "weight_scale", {torch.float32})
    if codes.ndim != 3 or codes.shape[1] != 1 or tuple(scale.shape) != (codes.shape[0], 1):
        raise CheckpointError(
            f"{files.directory}: {module}: weight {list(codes.shape)} with weight_scale {list(scale.shape)}; "
            "an int8 table has (V, 1, H) codes and (V, 1) scales"
        )
    try:
        return QTensor(codes.squeeze(1), scale, None, QuantSpec())
    except NumericsError as error:
        raise CheckpointError(f"{files.directory}: {module}: {error}") from None


def _tensor(files: TensorFiles, module: str, suffix: str, dtypes: set[torch.dtype]) -> Tensor:
    name = f"{module}.{suffix}"
    if name not in files:
        raise CheckpointError(f"{files.directory}: {name} is missing, but {module} is quantized")
    if files.dtype(name) not in dtypes:
        raise CheckpointError(
            f"{files.directory}: {name} is {files.dtype(name)}, expected one of {sorted(map(str, dtypes))}"
        )
    return files[name]
