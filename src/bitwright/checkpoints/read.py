"""Reading an int-quantized checkpoint, ours or another tool's: everything is checked before it is believed."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from bitwright.checkpoints.quantization_config import Group, QuantizationConfig, parse_quantization_config
from bitwright.checkpoints.stored import ModelNames, StoredLinear, name_in
from bitwright.errors import CheckpointError, NumericsError
from bitwright.models.source import CONFIG_FILE
from bitwright.models.tensor_files import TensorFiles
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec

# What a quantized module may store, besides its bias.
_SUFFIXES = ("weight", "weight_scale", "weight_zero_point", "input_scale", "input_zero_point")
# Suffixes that only other formats and schemes use: not to be mistaken for parameters of the model.
_FOREIGN = ("weight_packed", "weight_shape", "weight_g_idx", "weight_global_scale", "input_global_scale",
            "output_scale", "output_zero_point", "k_scale", "v_scale", "qweight", "qzeros", "g_idx")  # fmt: skip

_Stored = TypeVar("_Stored", StoredLinear, QTensor)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A quantized checkpoint, by names on disk.

    config: config.json. layers: the quantized linears. tables: int8 embedding tables. others: every other tensor,
    loaded when asked for.
    """

    directory: Path
    config: dict[str, Any]
    layers: dict[str, StoredLinear]
    tables: dict[str, QTensor]
    others: Mapping[str, Tensor]


def is_quantized(directory: Path) -> bool:
    """Whether config.json of a directory speaks of quantization, by any tool."""
    return "quantization_config" in _read_config(directory)


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read a checkpoint that `write_checkpoint` or another tool wrote in compressed-tensors' int-quantized format.

    Raises:
        ModelError: there are no weights.
        CheckpointError: not such a checkpoint, or its parts contradict one another.
    """
    raw = _read_config(directory)
    config = parse_quantization_config(
        raw.get("quantization_config"), f"{directory / CONFIG_FILE}: quantization_config"
    )
    files = TensorFiles(directory, pickles=False)
    modules = _quantized_modules(files)
    taken = {f"{module}.{suffix}" for module in modules for suffix in _SUFFIXES} & files.keys()
    _check_others(files, taken)
    missing = set(config.embeddings) - modules
    if missing:
        raise CheckpointError(f"{directory}: {min(missing)}: config.json says int8, the file holds no scale for it")
    tables = {module: _read_table(files, module) for module in sorted(modules & set(config.embeddings))}
    layers = {module: _read_linear(files, module, config) for module in sorted(modules - set(config.embeddings))}
    _check_targets(directory, config, modules)
    return Checkpoint(directory, raw, layers, tables, _Others(files, files.keys() - taken))


def for_model(checkpoint: Checkpoint, names: ModelNames) -> tuple[dict[str, StoredLinear], dict[str, QTensor]]:
    """(linears, tables) of `checkpoint` by the module names of a model, which may add or lack the base model's prefix.

    Raises:
        CheckpointError: a quantized module of the file is not in the model.
    """
    linears = _renamed(checkpoint, checkpoint.layers, names.linears, names.prefix)
    return linears, _renamed(checkpoint, checkpoint.tables, names.embeddings, names.prefix)


def _renamed(
    checkpoint: Checkpoint, stored: Mapping[str, _Stored], modules: tuple[str, ...], prefix: str
) -> dict[str, _Stored]:
    by_disk_name = {name_in(stored, module, prefix): module for module in modules}
    lost = stored.keys() - by_disk_name.keys()
    if lost:
        raise CheckpointError(
            f"{checkpoint.directory}: {min(lost)} is quantized in the file but is not in the model "
            f"({len(lost)} such modules)"
        )
    return {by_disk_name[name]: value for name, value in stored.items()}


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


def _quantized_modules(files: TensorFiles) -> set[str]:
    """Modules with a weight scale."""
    return {name.removesuffix(".weight_scale") for name in files if name.endswith(".weight_scale")}


def _check_others(files: TensorFiles, taken: set[str]) -> None:
    for name in sorted(files.keys() - taken):
        suffix = name.rpartition(".")[2]
        if suffix in _FOREIGN or suffix in _SUFFIXES[1:]:
            raise CheckpointError(f"{files.directory}: {name} is unexpected: no tensor of int-quantized uses it here")
        if suffix == "weight" and files.dtype(name) == torch.int8:
            raise CheckpointError(f"{files.directory}: {name} holds codes, but {name}_scale is missing")


def _check_targets(directory: Path, config: QuantizationConfig, modules: set[str]) -> None:
    """Modules that the config names one by one must be there."""
    for group in config.groups:
        for target in group.targets:
            plain = not target.startswith("re:") and "." in target
            if plain and target not in modules and target not in config.ignore:
                raise CheckpointError(f"{directory}: {target}: config.json names it, the file holds no codes for it")


def _read_linear(files: TensorFiles, module: str, config: QuantizationConfig) -> StoredLinear:
    group = config.group_of(module)
    if group is None:
        raise CheckpointError(
            f"{files.directory}: {module} is stored as codes, but config.json ignores it or has no scheme for it"
        )
    try:
        return StoredLinear(_read_weight(files, module, group.weight), *_read_input(files, module, group))
    except NumericsError as error:
        raise CheckpointError(f"{files.directory}: {module}: {error}") from None


def _read_weight(files: TensorFiles, module: str, spec: QuantSpec) -> QTensor:
    codes = _tensor(files, module, "weight", {torch.int8})
    scale = _tensor(files, module, "weight_scale", {torch.float32, torch.bfloat16, torch.float16})
    shape = (1, 1) if spec.per_tensor else (codes.shape[0], 1)
    if codes.ndim != 2 or tuple(scale.shape) not in (shape, shape[:1]):
        raise CheckpointError(
            f"{files.directory}: {module}: weight {list(codes.shape)} with weight_scale {list(scale.shape)}; "
            f"expected 2 dimensions and a scale of shape {list(shape)}"
        )
    if spec.symmetric and codes.numel() and int(codes.min()) == -128:
        spec = replace(spec, full_range=True)  # other tools use −128 too
    zero = _zero_point(files, module, "weight_zero_point", spec.symmetric)
    return QTensor(codes, scale.reshape(shape), None if zero is None else zero.reshape(shape), spec)


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


def _read_input(files: TensorFiles, module: str, group: Group) -> tuple[QuantSpec, Tensor | None, Tensor | None]:
    spec = group.input
    if spec.dynamic:
        stray = sorted({f"{module}.input_scale", f"{module}.input_zero_point"} & files.keys())
        if stray:
            raise CheckpointError(f"{files.directory}: {stray[0]} is stored, but config.json says dynamic inputs")
        return spec, None, None
    scale = _tensor(files, module, "input_scale", {torch.float32, torch.bfloat16, torch.float16})
    zero = _zero_point(files, module, "input_zero_point", spec.symmetric)
    if scale.numel() != 1 or (zero is not None and zero.numel() != 1):
        raise CheckpointError(f"{files.directory}: {module}: input_scale {list(scale.shape)}; expected one value")
    return spec, scale.float().reshape(1), None if zero is None else zero.reshape(1)


def _zero_point(files: TensorFiles, module: str, suffix: str, symmetric: bool) -> Tensor | None:
    """The zero point of an asymmetric tensor. Older tools store one, all zero, with symmetric tensors too."""
    name = f"{module}.{suffix}"
    if not symmetric:
        return _tensor(files, module, suffix, {torch.int8})
    if name in files and bool((files[name] != 0).any()):
        raise CheckpointError(f"{files.directory}: {name} is not zero, but config.json says symmetric")
    return None


def _tensor(files: TensorFiles, module: str, suffix: str, dtypes: set[torch.dtype]) -> Tensor:
    name = f"{module}.{suffix}"
    if name not in files:
        raise CheckpointError(f"{files.directory}: {name} is missing, but {module} is quantized")
    if files.dtype(name) not in dtypes:
        raise CheckpointError(
            f"{files.directory}: {name} is {files.dtype(name)}, expected one of {sorted(map(str, dtypes))}"
        )
    return files[name]
