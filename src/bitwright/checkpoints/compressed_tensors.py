"""Writing a model directory in compressed-tensors' int-quantized layout.

Tensors of a quantized linear `<m>` (N outputs, K inputs):
    <m>.weight             int8 (N, K)
    <m>.weight_scale       float32 (N, 1), or (1,) per tensor
    <m>.weight_zero_point  int8, shaped like the scale; asymmetric weights only
    <m>.input_scale        float32 (1,); static inputs only
    <m>.input_zero_point   int8 (1,); static asymmetric inputs only
    <m>.bias               as in the source
Everything else keeps the source's names. Linears kept in 16 bit and embedding tables are bf16 (fp16 if they were), the
rest is as it was. config.json says float32, so that readers upcast what is 16 bit and decompress int8 without another
rounding.

An int8 embedding table is `<m>.weight` int8 (V, 1, H) and `<m>.weight_scale` float32 (V, 1). The 1 in the middle makes
readers that ignore an unknown quant_method (transformers logs it and goes on) stop at the shape, rather than take codes
for numbers.
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
from bitwright.errors import CheckpointError
from bitwright.models.source import CONFIG_FILE, read_config
from bitwright.models.tensor_files import TensorFiles
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
    tensors = plan_tensors(TensorFiles(source), parts, names)
    shards = shard(tensors, max_shard_bytes)
    text = {CONFIG_FILE: _config_json(config, tensors, parts, names), CARD_FILE: model_card, **(extra_files or {})}
    if len(shards) > 1:
        text["model.safetensors.index.json"] = shard_index(shards)
    files = {name: content.encode() if isinstance(content, str) else content for name, content in text.items()}
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


def plan_tensors(source: TensorFiles, parts: QuantizedParts, names: ModelNames) -> dict[str, PendingTensor]:
    """Every tensor that will be written, by name on disk. Nothing is loaded yet.

    Raises:
        CheckpointError: `parts` name a linear or a table that the source lacks, or whose shape differs, or that shares
            its weight with another module.
    """
    tensors = {name: _as_is(source, name) for name in source.keys() - _repeated(source, names)}
    tables = names.embeddings if parts.embeddings == "16bit" else ()
    for module in (*parts.half, *tables):
        # A tied head, or a module that the file lacks and transformers initializes, has nothing of its own to write.
        name = name_in(tensors, f"{module}.weight", names.prefix)
        if name is not None:
            tensors[name] = _in_16_bit(tensors[name])
    tied = names.tied.keys() | set(names.tied.values())
    for module in (*parts.layers, *parts.tables):
        weight = parts.layers[module].qtensor if module in parts.layers else parts.tables[module]
        if f"{module}.weight" in tied:
            raise CheckpointError(f"{module}: shares its weight with another module; keep it in 16 bit")
        name = require_name_in(tensors, f"{module}.weight", names.prefix, str(source.directory))
        if weight.shape != source.shape(name):
            raise CheckpointError(
                f"{module}: the source has shape {list(source.shape(name))}, the quantized tensor {list(weight.shape)}"
            )
        stem = name.removesuffix(".weight")
        tensors |= linear_tensors(stem, parts.layers[module]) if module in parts.layers else table_tensors(stem, weight)
    return tensors


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


def table_tensors(module: str, table: QTensor) -> dict[str, PendingTensor]:
    """The tensors of one int8 embedding table."""
    codes_V1H = table.codes_NK.unsqueeze(1)
    return {f"{module}.weight": pending(codes_V1H), f"{module}.weight_scale": pending(table.scale_NG.float())}


def _repeated(source: TensorFiles, names: ModelNames) -> set[str | None]:
    """Names in the source of parameters that only repeat another one that it holds."""
    return {
        name_in(source, name, names.prefix) for name, kept in names.tied.items() if name_in(source, kept, names.prefix)
    }


def _as_is(source: TensorFiles, name: str) -> PendingTensor:
    return PendingTensor(source.dtype(name), source.shape(name), lambda: source[name])


def _in_16_bit(tensor: PendingTensor) -> PendingTensor:
    """fp16 stays fp16; wider floats become bf16, which has their range."""
    if tensor.dtype not in (torch.float32, torch.float64):
        return tensor
    return PendingTensor(torch.bfloat16, tensor.shape, lambda: tensor.load().to(torch.bfloat16))


def _config_json(config: Mapping[str, Any], tensors: Pending, parts: QuantizedParts, names: ModelNames) -> str:
    """config.json: all that the source says, but for the dtype, and what is quantized."""
    kept = {key: value for key, value in config.items() if key not in ("torch_dtype", "dtype")} | {"dtype": "float32"}
    if parts.layers or parts.tables:
        tables = [
            require_name_in(tensors, f"{table}.weight", names.prefix, CONFIG_FILE).removesuffix(".weight")
            for table in parts.tables
        ]
        # Matrices of the file that the model lacks too: they are linears of the class that config.json names.
        matrices = {
            name.removesuffix(".weight")
            for name, tensor in tensors.items()
            if name.endswith(".weight") and len(tensor.shape) == 2 and tensor.dtype.is_floating_point
        }
        spellings = {name_in(matrices, table, names.prefix) for table in names.embeddings}
        ignored = (set(names.linears) - parts.layers.keys()) | {name for name in matrices if name not in spellings}
        kept["quantization_config"] = make_quantization_config(parts.layers, tables, ignored, names.prefix)
    return json.dumps(kept, indent=2, ensure_ascii=False) + "\n"


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
