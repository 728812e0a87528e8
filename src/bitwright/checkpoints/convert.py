"""Writes a quantized checkpoint in another format: the same codes, and everything else of the directory as it is.

What the format cannot hold is found before anything is written, and refused unless the user allows the loss. A linear
that cannot be codes there becomes 16-bit floats. numpy, no torch; one linear is in memory at a time.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitwright.checkpoints.checkpoint import Checkpoint
from bitwright.checkpoints.complete import check_complete
from bitwright.checkpoints.formats import FORMATS, read_checkpoint
from bitwright.checkpoints.leftovers import split_source_files
from bitwright.checkpoints.result import atomic_directory, check_out, copy_file, write_file
from bitwright.checkpoints.spelling import Common, Contents, Spelling, splits
from bitwright.errors import CheckpointError, InputError, named
from bitwright.families import FAMILIES
from bitwright.files.directory import CONFIG_FILE, QUANTIZATION_FILES, ModelDirectory
from bitwright.files.safetensors_writer import PendingTensor, shard, shard_index, write_safetensors
from bitwright.numerics.arrays import Array, Bf16, narrow
from bitwright.numerics.linear import LinearForm, PendingLinear, QuantizedLinear
from bitwright.progress import Progress, Quiet
from bitwright.record import LeftOut

__all__ = ["TARGETS", "Converted", "Loss", "convert", "find_losses"]

TARGETS = tuple(name for name, row in FORMATS.items() if row.spelling is not None)
_SHARD_BYTES = 5_000_000_000
_LARGEST_HALF = float(np.finfo(np.float16).max)
_SMALLEST_HALF = float(np.finfo(np.float16).smallest_normal)


class Loss(NamedTuple):
    """What a format cannot hold of one module, and whether it becomes floats for it."""

    module: str
    why: str
    as_floats: bool


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written. tensor_bytes: of tensors, as foretold. total_bytes: all files. codes: linears that are still
    codes. losses: what was lost, as the user allowed. left_out: source files without a copy."""

    path: Path
    tensor_bytes: int
    total_bytes: int
    codes: int
    losses: tuple[Loss, ...]
    left_out: tuple[LeftOut, ...]


def convert(
    source: ModelDirectory, to: str, out: Path, *, allow_loss: bool = False, progress: Progress | None = None
) -> Converted:
    """Write a quantized checkpoint of any format that is read, in the format `to`, complete or not at all.

    The result is read again before it appears: every other tensor and every other file has the bytes of the source.

    progress: is told the bytes of the tensors before they are written.

    Raises:
        InputError: a format that nothing is written in; `out` exists, or is no place to write to; losses that are not
            allowed, all of them named. ModelError, CheckpointError: as `read_checkpoint`; the disk is full.
    """
    if to not in TARGETS:
        raise InputError(f"--to {to}: checkpoints are written as {', '.join(TARGETS)}")
    check_out(out, source.path, overwrite=False)
    if not source.is_quantized:
        raise InputError(f"{source.path}: this model is not quantized; `bitwright quantize` does that")
    checkpoint, spelling = read_checkpoint(source), FORMATS[to].spelling
    assert spelling is not None
    losses = find_losses(checkpoint, spelling)
    if losses and not allow_loss:
        raise InputError(
            f"{source.path}: as {to} this checkpoint would lose something, so nothing was written: "
            f"{summary(losses)}. --allow-loss writes it all the same"
        )
    floats = {loss.module for loss in losses if loss.as_floats}
    kept = {name: pending for name, pending in checkpoint.linears.items() if name not in floats}
    if not kept:
        raise InputError(f"{source.path}: {to} can hold none of its linears as codes: {summary(losses)}")
    group = spelling.group({name: (pending.shape, pending.form) for name, pending in kept.items()})
    common = Common(group, any(not pending.form.weight.symmetric for pending in kept.values()))
    tensors = _tensors(checkpoint, spelling, kept, common)
    shards = shard(tensors, _SHARD_BYTES)
    text = {CONFIG_FILE: _config_json(checkpoint, spelling, kept, common, tensors), **source.made_files}
    if len(shards) > 1:
        text["model.safetensors.index.json"] = shard_index(shards)
    found, left_out = split_source_files(source)
    copied = {name: file for name, file in found.items() if str(name) not in {*text, *QUANTIZATION_FILES}}
    tensor_bytes = sum(tensor.n_bytes for tensor in tensors.values())
    (progress or Quiet()).say(f"writing {tensor_bytes:,} bytes of tensors as {to}")
    needed = tensor_bytes + sum(file.stat().st_size for file in copied.values())
    needed += sum(map(len, text.values()))
    with atomic_directory(out, needed) as folder:
        for name, part in shards.items():
            write_safetensors(folder / name, part)
        for place, file in copied.items():
            copy_file(file, folder / place)
        for name, content in text.items():
            write_file(folder / name, content.encode())
        check_complete(checkpoint, read_checkpoint(ModelDirectory(folder)), copied, kept)
        total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Converted(out, tensor_bytes, total, len(kept), tuple(losses), tuple(left_out))


def summary(losses: list[Loss]) -> str:
    """Losses in one sentence: those alike together."""
    modules: dict[tuple[str, bool], list[str]] = {}
    for loss in losses:
        modules.setdefault((loss.why, loss.as_floats), []).append(loss.module)
    return "; ".join(
        f"{len(names)} × {why}{', so it becomes 16-bit floats' * as_floats} (such as {names[0]})"
        for (why, as_floats), names in modules.items()
    )


def find_losses(checkpoint: Checkpoint, spelling: Spelling) -> list[Loss]:
    """What the format cannot hold of a checkpoint. Where scales get fewer bits, every linear is loaded to look."""
    losses = [
        Loss(name, f"it is stored as {pending.stored}, for which there are no codes", True)
        for name, pending in checkpoint.dequantized.items()
    ]
    losses += [Loss(CONFIG_FILE, f"what the file says, for {note}", False) for note in checkpoint.notes]
    linears = {name: (pending.shape, pending.form) for name, pending in checkpoint.linears.items()}
    losses += form_losses(linears, checkpoint.tables, spelling)
    floats = {loss.module for loss in losses if loss.as_floats}
    if spelling.scale == "F16":
        for name, pending in checkpoint.linears.items():
            if name not in floats and (lost := _scale_loss(pending.load().weight.scale_NG)):
                losses.append(Loss(name, *lost))
    return losses


def form_losses(
    linears: Mapping[str, tuple[tuple[int, int], LinearForm]], tables: Collection[str], spelling: Spelling
) -> list[Loss]:
    """What the format cannot hold whatever the values are.

    Args:
        linears: shape and form of each. tables: those of words that are int8.
    """
    losses = [] if spelling.tables else [Loss(name, "an embedding table of int8", True) for name in tables]
    refused = {name: why for name, linear in linears.items() if (why := spelling.refuses(*linear))}
    group = spelling.group({name: linear for name, linear in linears.items() if name not in refused})
    why = f"its groups are no multiples of {group}, and the format has one size for all"
    uneven = [name for name, linear in linears.items() if name not in refused and not splits(*linear, group)]
    refused |= dict.fromkeys(uneven, why)
    losses += [Loss(name, why, True) for name, why in refused.items()]
    kept = {name: form for name, (_, form) in linears.items() if name not in refused}
    return losses + [Loss(name, why, False) for name, form in kept.items() if (why := spelling.drops(form))]


def _scale_loss(scale_NG: np.ndarray) -> tuple[str, bool] | None:
    """What is lost of scales in 16 bits, and whether codes with them would be useless."""
    low, high = float(scale_NG.min()), float(scale_NG.max())
    if high > _LARGEST_HALF or low < _SMALLEST_HALF:
        exact = high <= _LARGEST_HALF and (scale_NG.astype(np.float16) == scale_NG).all()
        return None if exact else ("its scales are too large or too small for 16 bits", True)
    if (scale_NG.astype(np.float16) == scale_NG).all():
        return None
    return "its scales are rounded to 16 bits, by at most one part in 2048", False


def _tensors(
    checkpoint: Checkpoint, spelling: Spelling, kept: Mapping[str, PendingLinear], common: Common
) -> dict[str, PendingTensor]:
    """Every tensor of the result, by name. Of linears the one loaded last is kept, for its other tensors."""
    files = checkpoint.tensors
    tensors = {name: PendingTensor(files.dtype(name), files.shape(name), partial(_stored, checkpoint, name))
               for name in checkpoint.others}  # fmt: skip

    @lru_cache(maxsize=1)
    def load(module: str) -> dict[str, Array]:
        linear = kept[module].load()
        with named(module):
            return spelling.tensors(linear, common)

    for module, pending in kept.items():
        for suffix, (dtype, shape) in spelling.entries(pending.shape, pending.form, common).items():
            tensors[f"{module}.{suffix}"] = PendingTensor(dtype, shape, partial(_pick, load, module, suffix))
    for module, linear in checkpoint.linears.items():
        if module not in kept:
            tensors |= _as_floats(checkpoint, module, linear, spelling)
    half = spelling.half
    for module, made in checkpoint.dequantized.items():
        load_half = partial(_half, module, made.load, half)
        tensors[f"{module}.weight"] = PendingTensor(half, made.shape, load_half)
    for module in checkpoint.tables:
        weight, scale = f"{module}.weight", f"{module}.weight_scale"
        if spelling.tables:
            tensors |= {part: PendingTensor(files.dtype(part), files.shape(part), partial(_stored, checkpoint, part))
                        for part in (weight, scale)}  # fmt: skip
        else:
            shape = (files.shape(weight)[0], files.shape(weight)[-1])
            load_half = partial(_half, module, partial(_table, checkpoint, module), half)
            tensors[weight] = PendingTensor(half, shape, load_half)
    return tensors


def _as_floats(
    checkpoint: Checkpoint, module: str, pending: PendingLinear, spelling: Spelling
) -> dict[str, PendingTensor]:
    """A linear that is codes no more: its weight in 16 bits, and its bias, if a shifted input changes that."""

    def weight() -> Array:
        return _effective(pending)[0]

    def bias() -> Array:
        return np.asarray(_effective(pending)[1], np.float32)

    half = spelling.half
    tensors = {f"{module}.weight": PendingTensor(half, pending.shape, partial(_half, module, weight, half))}
    if pending.form.shifts_input:
        tensors[f"{module}.bias"] = PendingTensor("F32", (pending.shape[0],), bias)
    return tensors


def _effective(pending: PendingLinear) -> tuple[Array, Array | None]:
    linear: QuantizedLinear = pending.load()
    return linear.effective()


def _half(module: str, load: Callable[[], Array], dtype: str) -> Array:
    values = load()
    if dtype == "BF16":
        return values if isinstance(values, Bf16) else narrow(values)
    wide = values.widen() if isinstance(values, Bf16) else values
    if float(np.abs(wide).max(initial=0)) > _LARGEST_HALF:
        raise CheckpointError(f"{module}: a weight is too large for float16")
    return wide.astype(np.float16)


def _table(checkpoint: Checkpoint, module: str) -> np.ndarray:
    codes_VH, scale_V = checkpoint.table(module)
    values: np.ndarray = codes_VH.astype(np.float32) * scale_V[:, None]
    return values


def _stored(checkpoint: Checkpoint, name: str) -> Array:
    return checkpoint.tensors[name]


def _pick(load: Callable[[str], dict[str, Array]], module: str, suffix: str) -> Array:
    return load(module)[suffix]


def _config_json(
    checkpoint: Checkpoint,
    spelling: Spelling,
    kept: Mapping[str, PendingLinear],
    common: Common,
    tensors: Mapping[str, PendingTensor],
) -> str:
    """config.json: all that the source says, but for how it was quantized; and how it is now."""
    config = checkpoint.directory.config
    said: dict[str, Any] = {k: v for k, v in config.items() if k not in ("quantization_config", "quantization")}
    if spelling.scale == "F16":
        said = {key: value for key, value in said.items() if key != "dtype"} | {"torch_dtype": "float16"}
    forms: dict[str, LinearForm] = {name: pending.form for name, pending in kept.items()}
    row = FAMILIES.get(str(config.get("model_type")))
    words = "" if row is None else row.embeddings.words
    floats = [
        name.removesuffix(".weight")
        for name, tensor in tensors.items()
        if name.endswith(".weight") and len(tensor.shape) == 2 and "F" in tensor.dtype
    ]
    linears = [name for name in floats if not (words and f".{name}".endswith(f".{words}"))]
    prefix = "" if row is None or not any(n.startswith(f"{row.prefix}.") for n in kept) else row.prefix
    tables = checkpoint.tables if spelling.tables else ()
    said["quantization_config"] = spelling.config(Contents(forms, common, linears, prefix, tables))
    return json.dumps(said, indent=2, ensure_ascii=False) + "\n"
