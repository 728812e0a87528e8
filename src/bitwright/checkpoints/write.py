"""Writing a quantized model directory: readable by compressed-tensors wherever it has words for what is in it.

The tensors of a quantized linear are those of `linear_tensors`. Everything else keeps the source's names and values:
parameters that the model does not have (layers that predict further tokens, say) included. Linears kept in 16 bit and
embedding tables are bf16 (fp16 if they were). What a fold changed is float32, or 16 bit if its linear is. Experts that
the source stacks into one tensor are written one by one as soon as one of them is another. config.json says float32, so
that readers upcast what is 16 bit and decompress codes without another rounding.

An int8 embedding table is `<m>.weight` int8 (V, 1, H) and `<m>.weight_scale` float32 (V, 1), guarded like the linears
that plain readers cannot represent.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitwright.checkpoints.attention import ATTENTION_KEY, attention_section
from bitwright.checkpoints.leftovers import split_source_files
from bitwright.checkpoints.quantization_config import make_quantization_config
from bitwright.checkpoints.result import atomic_directory, check_out, copy_file, write_file
from bitwright.checkpoints.tensor_plan import QuantizedParts, TensorPlan, plan_tensors
from bitwright.files.after_pooling import PICKLED, WEIGHTS
from bitwright.files.directory import CONFIG_FILE, ModelDirectory
from bitwright.files.followed import TOKENIZER_CONFIG, paths_of_tokenizer
from bitwright.files.names import name_in
from bitwright.files.safetensors_writer import pending, shard, shard_index, write_safetensors
from bitwright.files.sentences import pools_by_class
from bitwright.files.task import TASK_KEY, find_heads, find_task
from bitwright.models.names import ModelNames
from bitwright.models.tensor_files import TensorFiles, read_pickled
from bitwright.record import LeftOut

__all__ = ["CARD_FILE", "DEFAULT_SHARD_BYTES", "QuantizedParts", "Written", "write_checkpoint"]

DEFAULT_SHARD_BYTES = 5_000_000_000
CARD_FILE = "README.md"


@dataclass(frozen=True, slots=True)
class Written:
    """What was written. tensor_bytes: tensors alone. total_bytes: all files. left_out: source files without a copy."""

    path: Path
    tensor_bytes: int
    total_bytes: int
    left_out: tuple[LeftOut, ...]


def write_checkpoint(
    source: ModelDirectory,
    out: Path,
    parts: QuantizedParts,
    names: ModelNames,
    *,
    model_card: str,
    extra_files: Mapping[str, bytes | str] | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> Written:
    """Write the quantized copy of a model directory to `out`, complete or not at all.

    The same input gives the same bytes. One linear, or one tensor of the source, is in memory at a time.

    Args:
        names: names of the float model (`model_names`), taken before any module was replaced.
        model_card: text of README.md, in place of the source's.
        extra_files: name -> content of files to add, such as recipe.yaml and record.json.

    Raises:
        InputError: `out` exists and `overwrite` is off, or it is no place to write to.
        ModelError: `source` is not an unquantized model directory, or its tensors are not those of `names`.
        CheckpointError: the disk is full, `parts` do not fit the source, or a scheme does not fit the format.
    """
    check_out(out, source.path, overwrite=overwrite)
    source.check_float()
    plan = plan_tensors(names.tensors_of(TensorFiles(source)), parts, names)
    shards = shard(plan.tensors, max_shard_bytes)
    text = {CONFIG_FILE: _config_json(source, plan, parts, names), CARD_FILE: model_card, **_without_paths(source)}
    text |= {**source.made_files, **(extra_files or {})}
    if len(shards) > 1:
        text["model.safetensors.index.json"] = shard_index(shards)
    files = {name: content.encode() if isinstance(content, str) else content for name, content in text.items()}
    kept, left_out = split_source_files(source)
    copied = {name: file for name, file in kept.items() if str(name) not in files}
    tensor_bytes = sum(tensor.n_bytes for tensor in plan.tensors.values())
    other_bytes = sum(map(len, files.values())) + sum(file.stat().st_size for file in copied.values())
    with atomic_directory(out, tensor_bytes + other_bytes) as folder:
        for name, part in shards.items():
            write_safetensors(folder / name, part)
        for place, file in copied.items():
            if file.name == PICKLED:
                _write_unpickled(file, folder / place)
            else:
                copy_file(file, folder / place)
        for name, content in files.items():
            write_file(folder / name, content)
        total_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Written(out, tensor_bytes, total_bytes, tuple(left_out))


def _without_paths(source: ModelDirectory) -> dict[str, bytes | str]:
    """tokenizer_config.json without the paths of the machine that the model was made on, if it holds any."""
    paths = paths_of_tokenizer(source)
    settings = {
        key: value for key, value in (source.transformer.object(TOKENIZER_CONFIG) or {}).items() if key not in paths
    }
    return {TOKENIZER_CONFIG: json.dumps(settings, indent=2, ensure_ascii=False) + "\n"} if paths else {}


def _write_unpickled(source: Path, out: Path) -> None:
    """The weights of a module, which only torch reads, as safetensors beside where they would be."""
    tensors = {name: pending(value) for name, value in read_pickled(source).items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(out.with_name(WEIGHTS), tensors)


def _config_json(source: ModelDirectory, plan: TensorPlan, parts: QuantizedParts, names: ModelNames) -> str:
    """config.json: all that the source says, but for the dtype and code, which is not copied; and what is quantized.
    Where the user named the task, the class is one for it, for other readers, unless it also says how an embedding is
    pooled; and the task stands there too, since the files still hold what made it uncertain. So it does where
    the weights hold a head for another task, as they may if only torch could read the source's.
    """
    left_out = ("torch_dtype", "dtype", "auto_map", ATTENTION_KEY)
    kept: dict[str, Any] = {key: value for key, value in source.config.items() if key not in left_out}
    kept |= {"dtype": "float32"}
    shapes = {name: tuple(tensor.shape) for name, tensor in plan.tensors.items()}
    task = find_task(source)
    if source.task is not None or any(task not in head.tasks for head in find_heads(source.config, shapes)):
        kept |= {TASK_KEY: task}
    if source.task is not None and not (source.task == "embedding" and pools_by_class(source)):
        kept |= {"architectures": [names.class_name]}
    if parts.int8_attention:
        kept[ATTENTION_KEY] = attention_section(parts.int8_attention)
    if plan.layers or plan.tables:
        # Matrices of the file that the model lacks too: they are linears of the class that config.json names.
        matrices = {
            name.removesuffix(".weight")
            for name, tensor in plan.tensors.items()
            if name.endswith(".weight") and len(tensor.shape) == 2 and "F" in tensor.dtype
        }
        spellings = {name_in(matrices, table, names.prefix) for table in names.embeddings}
        ignored = (set(names.linears) - parts.layers.keys()) | {name for name in matrices if name not in spellings}
        forms = {name: layer.form for name, layer in plan.layers.items()}
        kept["quantization_config"] = make_quantization_config(
            forms, plan.tables, ignored, names.prefix, portable=plan.portable
        )
    return json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
