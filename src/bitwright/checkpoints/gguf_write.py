"""Writes a finished checkpoint, or a float model, as a GGUF file that llama.cpp runs. No torch.

What a GGUF file does not hold as it was is listed first, and nothing is written unless the user allows the loss.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bitwright.atomic import atomic_file
from bitwright.checkpoints.checkpoint import Checkpoint, read_floats
from bitwright.checkpoints.formats import read_checkpoint
from bitwright.checkpoints.gguf_blocks import Blocks, blocks_of, drops, table_blocks
from bitwright.errors import CheckpointError, ModelError, NumericsError
from bitwright.files.directory import CONFIG_FILE, ModelDirectory, license_of
from bitwright.files.gguf.config import llama3_factors
from bitwright.files.gguf.directory import POSITIVE_KEY
from bitwright.files.gguf.header import ALIGNMENT
from bitwright.files.gguf.metadata import ARCHITECTURES, header_bytes, metadata_of, rope_of
from bitwright.files.gguf.names import NAMINGS, Naming, rows_in_gguf
from bitwright.files.gguf.vocabulary import vocabulary_of
from bitwright.numerics.arrays import Bf16
from bitwright.numerics.ggml import TYPES, BlockType
from bitwright.numerics.linear import PendingFloat, PendingLinear
from bitwright.progress import Progress, Quiet

# general.file_type of what most of a file is.
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}
_FLOATS = ("F32", "F16", "BF16")
_WORDS = "token_embd.weight"
_LISTED = 5  # losses, in a message


class WrittenGguf(NamedTuple):
    """What was written. size: of the file, tensor_bytes: of tensors, both as foretold. types: how many tensors are of
    each type. losses: what is not as it was, by tensor."""

    path: Path
    size: int
    tensor_bytes: int
    types: dict[str, int]
    losses: dict[str, str]


class _Tensor(NamedTuple):
    """One tensor of the file to be. make: its bytes, uint8 (N, bytes of a row). lost: as in `Blocks`."""

    name: str
    type: BlockType
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]
    lost: str = ""

    @property
    def size(self) -> int:
        return int(np.prod(self.shape)) // self.type.values * self.type.bytes


def write_gguf(
    directory: ModelDirectory, out: Path, *, allow_loss: bool = False, progress: Progress | None = None
) -> WrittenGguf:
    """Write a model as one GGUF file.

    4-bit codes become Q4_0 and 8-bit codes Q8_0, exactly where their scales are fp16 values; floats stay as they are,
    norms and biases in float32. Tokenizer, chat template and ends of answers go along.

    Args:
        directory: quantized in any known format, or float. out: the file, which must not exist.
        allow_loss: write also what a GGUF file holds only roughly. progress: is told the size before it is written.

    Raises:
        ModelError: a family or a setting that GGUF has no words for; there is such a file; something would be lost.
        CheckpointError: as `read_checkpoint`.
    """
    if out.exists():
        raise ModelError(f"{out}: there is such a file; give another name")
    checkpoint, entries, tensors = _planned(directory)
    losses = {tensor.name: tensor.lost for tensor in tensors if tensor.lost}
    if losses and not allow_loss:
        raise ModelError(_refusal(directory.path, losses))
    types: dict[str, int] = {}
    for tensor in sorted(tensors, key=lambda tensor: -tensor.size):
        types[tensor.type.name] = types.get(tensor.type.name, 0) + 1
    entries |= {
        "general.name": directory.path.name, "general.quantization_version": 2, "general.alignment": ALIGNMENT,
        "general.file_type": _FILE_TYPES[max(types, key=lambda name: (name not in _FLOATS, types[name]))],
        POSITIVE_KEY: all(linear.form.weight.symmetric for linear in _linears_of(checkpoint).values()),
    }  # fmt: skip
    if (license_name := license_of(directory.path)) is not None:
        entries["general.license"] = license_name
    header = _header(entries, tensors)
    tensor_bytes = sum(tensor.size for tensor in tensors)
    size = len(header) + sum(tensor.size + -tensor.size % ALIGNMENT for tensor in tensors)
    (progress or Quiet()).say(f"writing {size:,} bytes, {tensor_bytes:,} of them tensors, as gguf")
    _write(out, header, tensors)
    return WrittenGguf(out, size, tensor_bytes, types, losses)


def check_describable(directory: ModelDirectory, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Whether a file has words for a model: its settings, the names of its tensors, its tokenizer.

    shapes: of the tensors, by name.

    Raises:
        ModelError: for what it has none.
    """
    metadata_of(directory.config, directory.transformer / CONFIG_FILE)
    naming = _naming(directory)
    for name, shape in shapes.items():
        if _name_of(naming, name, directory.path) == _WORDS:
            vocabulary_of(directory, shape[0])


def gguf_losses(directory: ModelDirectory) -> dict[str, str]:
    """What a file would not hold of a model as it is, by tensor; every tensor of codes is looked at.

    Raises:
        As `write_gguf`.
    """
    return {tensor.name: tensor.lost for tensor in _planned(directory)[2] if tensor.lost}


def _planned(directory: ModelDirectory) -> tuple[Checkpoint, dict[str, object], list[_Tensor]]:
    """A model, what its settings and its tokenizer become, and the tensors of the file to be."""
    entries = metadata_of(directory.config, directory.transformer / CONFIG_FILE)
    quantized = directory.is_quantized
    checkpoint = (
        read_checkpoint(directory) if quantized else Checkpoint(directory, {}, (), frozenset(directory.tensors))
    )
    tensors = list(_tensors(checkpoint, _naming(directory)))
    rows = next(tensor.shape[0] for tensor in tensors if tensor.name == _WORDS)
    return checkpoint, entries | vocabulary_of(directory, rows), tensors


def _naming(directory: ModelDirectory) -> Naming:
    """Of a model that `metadata_of` takes."""
    return NAMINGS[ARCHITECTURES[directory.config["model_type"]]]


def _refusal(path: Path, losses: dict[str, str]) -> str:
    shown = "; ".join(f"{name}: {lost}" for name, lost in list(losses.items())[:_LISTED])
    more = f"; and {len(losses) - _LISTED} more" if len(losses) > _LISTED else ""
    return f"{path}: a GGUF file would not hold all of this model as it is: {shown}{more}. Allow it with --allow-loss"


def _tensors(checkpoint: Checkpoint, naming: Naming) -> Iterator[_Tensor]:
    """Every tensor of the file to be, in the order of the model's names."""
    config = checkpoint.directory.config
    heads = {"q": config["num_attention_heads"]}
    heads["k"] = config.get("num_key_value_heads") or heads["q"]
    coded = (*checkpoint.linears, *checkpoint.tables, *checkpoint.coded_tables)
    names = {f"{module}.weight" for module in (*coded, *checkpoint.dequantized)} | checkpoint.others
    if config.get("tie_word_embeddings") and "model.embed_tokens.weight" in names:
        names.discard("lm_head.weight")
    for name in sorted(names):
        stored, module = _name_of(naming, name, checkpoint.directory.path), name.removesuffix(".weight")
        if stored is None:
            continue
        role = naming.swapped(name)
        if module in coded:
            yield _coded(checkpoint, module, stored, heads[role] if role else 0)
        elif module in checkpoint.dequantized:
            yield _dequantized(checkpoint.dequantized[module], stored, heads[role] if role else 0)
        else:
            yield _floats(checkpoint, name, stored, heads[role] if role else 0, sums=naming.sums(name))
    yield from _factors(checkpoint)


def _name_of(naming: Naming, name: str, path: Path) -> str | None:
    """What a file calls a tensor; None of one that it needs not have.

    Raises:
        ModelError: it has no name for it.
    """
    stored = naming.to_gguf(name)
    if name.endswith("rotary_emb.inv_freq"):  # of old checkpoints; computed from config.json
        return None
    if stored is None:
        raise ModelError(f"{path}: {name}: llama.cpp's architecture has no such tensor")
    return stored


def _coded(checkpoint: Checkpoint, module: str, stored: str, heads: int) -> _Tensor:
    linears = _linears_of(checkpoint)

    def blocks() -> Blocks:
        try:
            if module in checkpoint.tables:
                return table_blocks(*checkpoint.table(module))
            return blocks_of(linears[module].load())
        except NumericsError as error:
            raise CheckpointError(f"{checkpoint.directory.path}: {module}: {error}") from None

    found = blocks()
    lost = [found.lost] if found.lost else []
    if module in linears and (dropped := drops(linears[module].form)):
        lost.append(dropped)
    n = len(found.raw)
    shape = (n, found.raw.shape[1] // found.type.bytes * found.type.values)
    return _Tensor(stored, found.type, shape, lambda: _swapped(blocks().raw, heads), "; ".join(lost))


def _linears_of(checkpoint: Checkpoint) -> dict[str, PendingLinear]:
    """Everything that is stored as codes of a linear."""
    return {**checkpoint.linears, **checkpoint.coded_tables}


def _dequantized(pending: PendingFloat, stored: str, heads: int) -> _Tensor:
    """What is floats here because no kernel takes its codes."""
    kind = TYPES["BF16" if pending.dtype == "bfloat16" else "F32"]

    def make() -> np.ndarray:
        values = pending.load()
        raw = np.ascontiguousarray(values.bits if isinstance(values, Bf16) else values)
        return _swapped(raw.view(np.uint8), heads)

    return _Tensor(stored, kind, pending.shape, make, f"{pending.stored} becomes {kind.name}")


def _floats(checkpoint: Checkpoint, name: str, stored: str, heads: int, *, sums: bool) -> _Tensor:
    """A float tensor in its own precision; in float32 where llama.cpp has no other."""
    directory, tensors = checkpoint.directory, checkpoint.tensors
    shape, spelled = tensors.shape(name), tensors.dtype(name)
    if spelled not in _FLOATS or len(shape) == 1:
        read_floats(directory, name)  # else there is an error
        spelled = "F32"

    def make() -> np.ndarray:
        if spelled == "F32":
            values = read_floats(directory, name) + np.float32(sums)
        else:
            held = tensors[name]
            values = held.bits if isinstance(held, Bf16) else held
        return _swapped(np.ascontiguousarray(values).reshape(shape[0], -1).view(np.uint8), heads)

    return _Tensor(stored, TYPES[spelled], shape, make)


def _factors(checkpoint: Checkpoint) -> Iterator[_Tensor]:
    """By what Llama 3 divides the angles."""
    config = checkpoint.directory.config
    rope = rope_of(config)
    if rope["rope_type"] == "llama3":
        size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        factors = llama3_factors(rope, size)
        yield _Tensor("rope_freqs.weight", TYPES["F32"], factors.shape, lambda: factors.view(np.uint8))


def _swapped(raw_NB: np.ndarray, heads: int) -> np.ndarray:
    return raw_NB[rows_in_gguf(len(raw_NB), heads)] if heads else raw_NB


def _header(entries: dict[str, object], tensors: list[_Tensor]) -> bytes:
    offsets, place = [], 0
    for tensor in tensors:
        offsets.append(place)
        place += -(-tensor.size // ALIGNMENT) * ALIGNMENT
    placed = zip(tensors, offsets, strict=True)
    return header_bytes(entries, [(tensor.name, tensor.type, tensor.shape, offset) for tensor, offset in placed])


def _write(out: Path, header: bytes, tensors: list[_Tensor]) -> None:
    """Write the file, tensor by tensor; it appears complete or not at all."""
    with atomic_file(out) as temporary, temporary.open("xb") as file:
        file.write(header)
        for tensor in tensors:
            file.write(np.ascontiguousarray(tensor.make()).data)
            file.write(bytes(-tensor.size % ALIGNMENT))
        file.flush()
        os.fsync(file.fileno())
