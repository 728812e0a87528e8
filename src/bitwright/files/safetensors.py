"""Reads and checks the headers of safetensors files without reading a tensor. No torch.

A file is: 8 bytes, the header's length as a little-endian integer; the header, JSON that maps each tensor's name to its
dtype, shape and [begin, end) in the buffer; the buffer. Tensors fill the buffer without holes or overlaps
(https://huggingface.co/docs/safetensors, "Format").
"""

import math
import os
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from bitwright.errors import CheckpointError, brief
from bitwright.parsing import parse_json

MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own reader

# Bits per value of each dtype that the format names.
DTYPE_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

# dtypes that are written, and their names in numpy and torch, in the order in which the format's own writer lays
# tensors out, last first.
DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn",
    "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16", "I32": "int32", "U32": "uint32",
    "F32": "float32", "C64": "complex64", "F64": "float64", "I64": "int64", "U64": "uint64",
}  # fmt: skip


_MOST_DIMENSIONS = 32  # numpy has no more


class TensorEntry(NamedTuple):
    """One tensor of a file: its dtype as the format spells it, its shape, and its bytes [begin, end) in the buffer."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def check_safetensors(path: Path) -> dict[str, TensorEntry]:
    """Read a file's header and check everything that it claims. Returns the entries in the order of the buffer.

    Raises:
        CheckpointError: the file is too short for its header or its tensors, the header is oversized or not what the
            format asks for, a name occurs twice, or a tensor's range does not fit its dtype, shape or neighbours.
    """
    try:
        with path.open("rb") as file:
            return read_header(file, path)[0]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None


def read_header(file: BinaryIO, path: Path) -> tuple[dict[str, TensorEntry], int]:
    """The entries of an open file as `check_safetensors` gives them, and the position in the file where the buffer
    begins.

    Raises:
        CheckpointError: as `check_safetensors`. OSError: the file cannot be read.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise CheckpointError(
            f"{path}: the first 8 bytes announce a header of {length} bytes, but the file has only {size}. It is "
            "truncated or not a safetensors file; download it again"
        )
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path}: the header has {length} bytes, more than the format's limit of {MAX_HEADER_BYTES}"
        )
    header = _parse(path, file.read(length))
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, value) for name, value in header.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
    _check_coverage(path, ordered, size - 8 - length)
    return ordered, 8 + length


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) != len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise CheckpointError(
                f"{path}: the header names {brief(twice)} twice, so it is not clear which one is right"
            )
        return keys

    try:
        header = parse_json(text, pairs=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is a JSON {type(header).__name__}, not an object")
    return header


def _entry(path: Path, name: str, value: Any) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(
            f"{path}: {name}: the header must give exactly dtype, shape and data_offsets, but gives {str(value)[:80]}"
        )
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(
            f"{path}: {name}: dtype {str(dtype)[:80]!r} is unknown; known are {', '.join(DTYPE_BITS)}"
        )
    if not _sizes(shape):
        raise CheckpointError(f"{path}: {name}: shape {str(shape)[:80]} is not a list of sizes")
    if not _sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{path}: {name}: data_offsets {str(offsets)[:80]} are not [begin, end]")
    begin, end = offsets
    need, odd = divmod(math.prod(shape) * DTYPE_BITS[dtype], 8)
    if odd or end - begin != need:
        raise CheckpointError(
            f"{path}: {name}: data_offsets [{begin}, {end}] hold {end - begin} bytes, but {dtype} of shape {shape} "
            f"needs {need}{' and a fraction' if odd else ''}"
        )
    if len(shape) > _MOST_DIMENSIONS or math.prod(size for size in shape if size) >= 2**60:  # of nothing, or of ones
        raise CheckpointError(f"{path}: {name}: the shape {str(shape)[:80]} is too large for a tensor")
    return TensorEntry(dtype, tuple(shape), begin, end)


def _sizes(value: Any) -> bool:
    """Whether this is a list of non-negative integers that fit 64 bits. `True` is an int to Python but not to JSON."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_coverage(path: Path, ordered: dict[str, TensorEntry], buffer: int) -> None:
    reached, before = 0, "the start"
    for name, entry in ordered.items():
        if entry.begin != reached:
            fault = "overlaps" if entry.begin < reached else "leaves a hole after"
            raise CheckpointError(
                f"{path}: {name} begins at byte {entry.begin} and {fault} {before}, which ends at {reached}"
            )
        reached, before = entry.end, name
    if reached != buffer:
        fault = "it is truncated, so download it again" if reached > buffer else "the other bytes belong to no tensor"
        raise CheckpointError(f"{path}: the tensors need {reached} bytes, but the file holds {buffer}; {fault}")
