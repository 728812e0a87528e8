"""Writes safetensors files tensor by tensor, so that memory never holds a second copy of a model.

The bytes are those of the format's own writer: dtypes from wide to narrow, so that every tensor is aligned, names in
order within a dtype, the header padded with spaces to a multiple of 8.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bitwright.files.safetensors import DTYPE_BITS, DTYPES
from bitwright.numerics.arrays import Array, dtype_name, raw_bytes

_SPELLED = {name: spelled for spelled, name in DTYPES.items()}
_RANK = {spelled: rank for rank, spelled in enumerate(DTYPES)}


@dataclass(frozen=True, slots=True)
class PendingTensor:
    """A tensor to write: its entry in the header, and a function that loads it when its turn comes.

    dtype: as safetensors spells it. load: gives a numpy array, `Bf16`, or a torch tensor. pieces: the same values in
    consecutive arrays of any shape, so that a large one need not be in memory as a whole; None where only `load` is.
    """

    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], Array]
    pieces: Callable[[], Iterable[Array]] | None = None

    @property
    def n_bytes(self) -> int:
        """Its size in the file, in bytes."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8

    def in_pieces(self) -> Iterable[Array]:
        """The values in consecutive arrays: `pieces`, or all at once."""
        return (self.load(),) if self.pieces is None else self.pieces()


Pending = Mapping[str, PendingTensor]


def pending(tensor: Array) -> PendingTensor:
    """A tensor that is in memory already."""
    return PendingTensor(spelled(tensor), tuple(tensor.shape), lambda: tensor)


def spelled(tensor: Array) -> str:
    """The dtype of a tensor as safetensors spells it."""
    return _SPELLED[dtype_name(tensor)]


def spelled_dtype(dtype: object) -> str:
    """The safetensors name of a numpy or torch dtype."""
    return _SPELLED[str(dtype).removeprefix("torch.")]


def write_safetensors(path: Path, tensors: Pending) -> None:
    """Write one file and fsync it.

    Tensors are loaded in the order of their names, so that those of one module follow each other, and written each to
    its place.

    Raises:
        OSError: as the file system says, `ENOSPC` among others.
    """
    order = sorted(tensors, key=lambda name: (-_RANK[tensors[name].dtype], name))
    begins: dict[str, int] = {}
    end = 0
    for name in order:
        begins[name], end = end, end + tensors[name].n_bytes
    with path.open("xb") as file:
        header = _header(begins, tensors)
        file.write(header)
        for name in sorted(tensors):
            promised = tensors[name]
            file.seek(len(header) + begins[name])
            for piece in promised.in_pieces():
                assert spelled(piece) == promised.dtype, name
                file.write(raw_bytes(piece))
            assert file.tell() == len(header) + begins[name] + promised.n_bytes, name
        file.flush()
        os.fsync(file.fileno())


def shard(tensors: Pending, max_bytes: int) -> dict[str, Pending]:
    """Distribute tensors, by name, over files of at most `max_bytes` (more where a single tensor is larger).

    Returns file name -> its tensors: "model.safetensors" alone if all fit in it.
    """
    shards: list[dict[str, PendingTensor]] = [{}]
    size = 0
    for name in sorted(tensors):
        if shards[-1] and size + tensors[name].n_bytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensors[name]
        size += tensors[name].n_bytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": part for i, part in enumerate(shards, start=1)}


def shard_index(shards: Mapping[str, Pending]) -> str:
    """The content of `model.safetensors.index.json` for several files."""
    weight_map = {name: file for file, part in shards.items() for name in part}
    total = sum(tensor.n_bytes for part in shards.values() for tensor in part.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(index, indent=2) + "\n"


def _header(begins: Mapping[str, int], tensors: Pending) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name, begin in begins.items():
        entries[name] = {
            "dtype": tensors[name].dtype,
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, begin + tensors[name].n_bytes],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
