"""Writing a model directory in compressed-tensors' int-quantized layout.

Tensors of a quantized linear `<m>` (N outputs, K inputs):
    <m>.weight             int8 (N, K)
    <m>.weight_scale       float32 (N, 1), or (1,) per tensor
    <m>.weight_zero_point  int8, shaped like the scale; asymmetric weights only
    <m>.input_scale        float32 (1,); static inputs only
    <m>.input_zero_point   int8 (1,); static asymmetric inputs only
    <m>.bias               as in the source
Everything else keeps the source's names. Linears kept in 16 bit and embedding tables are bf16 (fp16 if they were), the rest is
as it was. config.json says float32, so that readers upcast what is 16 bit and decompress int8 without another rounding.

An int8 embedding table is `<m>.weight` int8 (V, 1, H) and `<m>.weight_scale` float32 (V, 1). The 1 in the middle makes readers
that ignore an unknown quant_method (transformers logs it and goes on) stop at the shape, rather than take codes for numbers.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bitwright.checkpoints.directory import atomic_directory, check_out, copy_file, split_source_files, write_file
from bitwright.checkpoints.quantization_config import make_quantization_config
from bitwright.checkpoints.safetensors_file import (
    Pending,
    PendingTensor,
    pending,
    shard,
    shard_index,
    write_safetensors,
)
from bitwright.checkpoints.stored import ModelNames, StoredLinear, name_in, require_name_in
from bitwright.checkpoints.tensor_files import TensorFiles
from bitwright.errors import CheckpointError
from bitwright.models.source import CONFIG_FILE, read_config
from bitwright.numerics.qtensor import QTensor

DEFAULT_SHARD_BYTES = 5_000_000_000
CARD_FILE = "README.md"


@dataclass(frozen=True, slots=True)
class QuantizedParts:
    """What differs from the source, by module name of the model as transformers builds it.

    layers: the quantized linears. half: linears kept in 16 bit. tables: embedding tables as int8, a scale per row.
    embeddings: what happens to the other tables: "16bit", or "float" to leave them as they are.
    """

    layers: Mapping[str, StoredLinear]
    half: Collection[str] = ()
    tables: Mapping[str, QTensor] = field(default_factory=dict)
    embeddings: Literal["16bit", "float"] = "16bit"


@dataclass(frozen=True, slots=True)
class Written:
    """What was written. tensor_bytes: tensors alone. total_bytes: all files. left_out: source files without a copy."""

    path: Path
    tensor_bytes: int
    total_bytes: int
    left_out: tuple[str, ...]


def write_checkpoint(
    source: Path,
    out: Path,
    parts: QuantizedParts,
    names: ModelNames,
    *,
    model_card: str,
    extra_files: Mapping[str, bytes | str] | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> Written:
    """Write the quantized copy of the model directory `source` to `out`, complete or not at all.

    The same input gives the same bytes. Besides `parts`, one tensor of the source at a time is in memory.

    Args:
        names: module names of the float model (`model_names`), taken before any module was replaced.
        model_card: text of README.md, in place of the source's.
        extra_files: name -> content of files to add, such as recipe.yaml and record.json.

    Raises:
        InputError: `out` exists and `overwrite` is off, or it is no place to write to.
        ModelError: `source` is not an unquantized model directory.
        CheckpointError: the disk is full, `parts` do not fit the source, or a scheme does not fit the format.
    """
    check_out(out, source, overwrite=overwrite)
    config = read_config(source)
    extra = {CARD_FILE: model_card, **(extra_files or {})}
    files = {name: content.encode() if isinstance(content, str) else content for name, content in extra.items()}
    tensors, tables_on_disk = plan_tensors(TensorFiles(source), parts, names)
    shards = shard(tensors, max_shard_bytes)
    if len(shards) > 1:
        files["model.safetensors.index.json"] = shard_index(shards).encode()
    quantization = make_quantization_config(parts.layers, tables_on_disk, names.linears, names.prefix)
    files[CONFIG_FILE] = (json.dumps(_config(config, quantization), indent=2, ensure_ascii=False) + "\n").encode()

    kept, left_out = split_source_files(source, _module_folders(source))
    copied = [file for file in kept if str(file) not in files]
    tensor_bytes = sum(tensor.n_bytes for tensor in tensors.values())
    other_bytes = sum(map(len, files.values())) + sum((source / file).stat().st_size for file in copied)
    with atomic_directory(out, tensor_bytes + other_bytes) as folder:
        for name, part in shards.items():
            write_safetensors(folder / name, part)
        for file in copied:
            copy_file(source / file, folder / file)
        for name, content in files.items():
            write_file(folder / name, content)
        total_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Written(out, tensor_bytes, total_bytes, tuple(str(file) for file in left_out))


def plan_tensors(source: TensorFiles, parts: QuantizedParts, names: ModelNames) -> tuple[Pending, tuple[str, ...]]:
    """(every tensor that will be written, names on disk of the int8 tables). Nothing is loaded yet.

    Raises:
        CheckpointError: `parts` name a linear or a table that the source lacks, or whose shape differs; or a linear that is
            quantized shares its weight with an embedding.
    """
    where = str(source.directory)
    dropped = {
        name_in(source, name, names.prefix) for name, kept in names.tied.items() if name_in(source, kept, names.prefix)
    }
    tensors = {
        name: PendingTensor(source.dtype(name), source.shape(name), lambda name=name: source[name])  # type: ignore[misc]
        for name in source
        if name not in dropped
    }

    def weight_of(module: str) -> str:
        return require_name_in(source, f"{module}.weight", names.prefix, where)

    tied = names.tied.keys() | set(names.tied.values())
    for module in (*parts.layers, *parts.tables):
        if f"{module}.weight" in tied:
            raise CheckpointError(f"{module}: shares its weight with another module; keep it in 16 bit")
    tables = names.embeddings if parts.embeddings == "16bit" else ()
    for module in (*parts.half, *tables):
        # A tied head, or a module that the file lacks and transformers initializes, has nothing of its own to write.
        name = name_in(tensors, f"{module}.weight", names.prefix)
        if name is not None:
            tensors[name] = _in_16_bit(tensors[name])
    for module, layer in parts.layers.items():
        name = weight_of(module)
        _check_shape(name, layer.qtensor, source.shape(name))
        tensors |= linear_tensors(name.removesuffix(".weight"), layer)
    tables_on_disk = []
    for module, table in parts.tables.items():
        name = weight_of(module)
        _check_shape(name, table, source.shape(name))
        tables_on_disk.append(name.removesuffix(".weight"))
        tensors |= {name: pending(table.codes_NK.unsqueeze(1)), f"{name}_scale": pending(table.scale_NG.float())}
    return tensors, tuple(tables_on_disk)


def linear_tensors(module: str, layer: StoredLinear) -> dict[str, PendingTensor]:
    """The tensors of one quantized linear, without its bias."""
    weight = layer.qtensor
    shape = (1,) if weight.spec.per_tensor else tuple(weight.scale_NG.shape)
    tensors: dict[str, Tensor | None] = {
        "weight": weight.codes_NK,
        "weight_scale": weight.scale_NG.float().reshape(shape),
        "weight_zero_point": None if weight.zero_point_NG is None else weight.zero_point_NG.reshape(shape),
        "input_scale": layer.input_scale,
        "input_zero_point": layer.input_zero_point,
    }
    return {f"{module}.{name}": pending(tensor) for name, tensor in tensors.items() if tensor is not None}


def _in_16_bit(tensor: PendingTensor) -> PendingTensor:
    """fp16 stays fp16; wider floats become bf16, which has their range."""
    if tensor.dtype not in (torch.float32, torch.float64):
        return tensor
    return PendingTensor(torch.bfloat16, tensor.shape, lambda: tensor.load().to(torch.bfloat16))


def _check_shape(name: str, tensor: QTensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise CheckpointError(f"{name}: the source has shape {list(shape)}, the quantized tensor {list(tensor.shape)}")


def _config(source: Mapping[str, Any], quantization: Mapping[str, Any]) -> dict[str, Any]:
    """config.json: all that the source says, but for the dtype."""
    kept = {key: value for key, value in source.items() if key not in ("torch_dtype", "dtype")}
    return {**kept, "dtype": "float32", "quantization_config": quantization}


def _module_folders(source: Path) -> frozenset[str]:
    """Folders of the modules that sentence-transformers runs after the transformer, as modules.json names them."""
    path = source / "modules.json"
    if not path.is_file():
        return frozenset()
    try:
        paths = [module["path"] for module in json.loads(path.read_text(encoding="utf-8"))]
        return frozenset(Path(folder).parts[0] for folder in paths if folder)
    except (ValueError, TypeError, KeyError):
        raise CheckpointError(f'{path}: not a list of modules with a "path" each') from None
