"""Reads and checks the header of a GGUF file without reading a tensor.

A file is: "GGUF"; version, uint32; how many tensors and how many metadata entries, uint64 each; the entries (key, type,
value); the tensors (name, number of dimensions, those, innermost first, type, offset); padding; the tensors' bytes.
Everything is little-endian, and a string is its length, uint64, and UTF-8
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitwright.errors import CheckpointError, brief
from bitwright.numerics.ggml import BY_NUMBER, TYPES, BlockType

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # which differ in byte order alone; version 1 has shorter counts
ALIGNMENT = 32  # of tensors, unless general.alignment says otherwise
_MOST_ENTRIES, _MOST_TENSORS, _MOST_ITEMS = 1 << 16, 1 << 17, 1 << 22
_LONGEST_NAME, _LONGEST_KEY = 512, 1 << 16  # bytes
_MOST_DIMENSIONS, _DEEPEST = 4, 2

# Types of metadata: number -> struct's letter.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_SMALLEST = {_STRING: 8, _ARRAY: 12} | {kind: struct.calcsize(f"<{letter}") for kind, letter in _SCALARS.items()}


class GgufEntry(NamedTuple):
    """One tensor: its type, its shape as numpy has it (outermost first), and its bytes [begin, end) in the file."""

    type: BlockType
    shape: tuple[int, ...]
    begin: int
    end: int


class Metadata:
    """The metadata of a file: values by key, each read as what it must be.

    where: the file, for messages.
    """

    def __init__(self, values: Mapping[str, Any], where: Path) -> None:
        self.values, self.where = values, where

    def __contains__(self, key: object) -> bool:
        return key in self.values

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number that is not negative.

        Raises:
            CheckpointError: it is missing and has no default, or is something else.
        """
        return self._of(key, default, "a whole number", lambda x: type(x) is int and 0 <= x < 2**53)  # type: ignore[no-any-return]

    def real(self, key: str, default: float | None = None) -> float:
        """A finite number. Raises as `number`."""
        fits: Callable[[Any], bool] = lambda x: type(x) in (int, float) and math.isfinite(x)  # noqa: E731
        return float(self._of(key, default, "a finite number", fits))

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false. Raises as `number`."""
        return bool(self._of(key, default, "true or false", lambda x: type(x) is bool))

    def text(self, key: str, default: str | None = None) -> str:
        """A text. Raises as `number`."""
        return str(self._of(key, default, "a text", lambda x: isinstance(x, str)))

    def texts(self, key: str) -> list[str]:
        """A list of texts. Raises as `number`."""
        fits: Callable[[Any], bool] = lambda x: isinstance(x, list) and all(isinstance(one, str) for one in x)  # noqa: E731
        return list(self._of(key, None, "a list of texts", fits))

    def numbers(self, key: str) -> np.ndarray:
        """A list of numbers. Raises as `number`."""
        found = self._of(key, None, "a list of numbers", lambda x: isinstance(x, np.ndarray) and x.dtype != bool)
        return np.asarray(found)

    def refuse(self, key: str, why: str) -> CheckpointError:
        """The error that this entry gives rise to."""
        return CheckpointError(f"{self.where}: {key}: {why}")

    def _of(self, key: str, default: Any, what: str, fits: Callable[[Any], bool]) -> Any:
        if key not in self.values:
            if default is None:
                raise self.refuse(key, "the metadata lacks it")
            return default
        value = self.values[key]
        if not fits(value):
            raise self.refuse(key, f"it is {brief(value)}, but must be {what}")
        return value


class GgufHeader(NamedTuple):
    """What stands before the tensors. tensors: by the names in the file, in the order of their bytes."""

    metadata: Metadata
    tensors: dict[str, GgufEntry]


def read_gguf_header(data: memoryview, path: Path) -> GgufHeader:
    """The header of a file, everything in it checked.

    data: the bytes of the whole file, mapped. path: for messages.

    Raises:
        CheckpointError: no GGUF file; a count, length, type or offset that cannot be; a name that occurs twice; a file
            that ends early.
    """
    cursor = _Cursor(data, path)
    if bytes(cursor.take(4, "the magic number")) != MAGIC:
        raise CheckpointError(f"{path}: this is not a GGUF file, because it does not begin with {MAGIC.decode()!r}")
    version = cursor.scalar("I", "the version")
    if version not in VERSIONS:
        other = version & 0xFFFF == 0 and version != 0
        raise CheckpointError(
            f"{path}: {'it is big-endian' if other else f'it has version {version} of the format'}; Bitwright reads "
            f"little-endian files of versions {' and '.join(map(str, VERSIONS))}"
        )
    n_tensors = cursor.count(_MOST_TENSORS, 24, "the number of tensors")
    n_entries = cursor.count(_MOST_ENTRIES, 13, "the number of metadata entries")
    values: dict[str, Any] = {}
    for _ in range(n_entries):
        key = cursor.text("a metadata key", _LONGEST_KEY)
        if key in values:
            raise CheckpointError(f"{path}: the metadata has {brief(key)} twice")
        values[key] = cursor.value(cursor.scalar("I", key), key)
    metadata = Metadata(values, path)
    alignment = metadata.number("general.alignment", ALIGNMENT)
    if alignment < 8 or alignment & alignment - 1 or alignment > 1 << 20:
        raise metadata.refuse("general.alignment", f"it is {alignment}, but must be a power of two from 8 on")
    stored: dict[str, tuple[BlockType, tuple[int, ...], int]] = {}
    for _ in range(n_tensors):
        name = cursor.text("the name of a tensor", _LONGEST_NAME)
        if name in stored:
            raise CheckpointError(f"{path}: the file has two tensors {brief(name)}")
        stored[name] = cursor.tensor(name)
    begin = -(-cursor.place // alignment) * alignment
    return GgufHeader(metadata, _placed(path, stored, begin, alignment, len(data)))


def _placed(
    path: Path, stored: Mapping[str, tuple[BlockType, tuple[int, ...], int]], begin: int, alignment: int, size: int
) -> dict[str, GgufEntry]:
    """The tensors in the order of their bytes, which must lie in the file and not overlap."""
    placed: dict[str, GgufEntry] = {}
    reached, before = begin, "the header"
    for name, (kind, shape, offset) in sorted(stored.items(), key=lambda item: item[1][2]):
        if offset % alignment:
            raise CheckpointError(f"{path}: {name}: its offset {offset} is no multiple of the alignment {alignment}")
        first = begin + offset
        end = first + math.prod(shape) // kind.values * kind.bytes
        if end > size:
            raise CheckpointError(
                f"{path}: {name} ends at byte {end}, but the file has {size}. It is truncated, or the offset "
                f"{offset} is wrong; download it again"
            )
        if first < reached:
            raise CheckpointError(
                f"{path}: {name} begins at byte {first} and overlaps {before}, which ends at {reached}"
            )
        placed[name] = GgufEntry(kind, shape, first, end)
        reached, before = end, name
    return placed


class _Cursor:
    """Where the header is read; each read is checked against the end of the file first."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self.data, self.path, self.place = data, path, 0

    def take(self, size: int, what: str) -> memoryview:
        left = len(self.data) - self.place
        if size > left:
            raise CheckpointError(
                f"{self.path}: {brief(what)[1:-1]} needs {size} bytes, but {left} are left in the file"
            )
        found = self.data[self.place : self.place + size]
        self.place += size
        return found

    def scalar(self, letter: str, what: str) -> Any:
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}"), what))[0]

    def count(self, most: int, smallest: int, what: str) -> int:
        """A number of things, each of which takes `smallest` bytes at least."""
        number = int(self.scalar("Q", what))
        room = (len(self.data) - self.place) // smallest
        if number > min(most, room):
            raise CheckpointError(
                f"{self.path}: {brief(what)[1:-1]} is {number}, but at most {min(most, room)} can be right"
            )
        return number

    def text(self, what: str, longest: int | None = None) -> str:
        length = self.scalar("Q", what)
        if longest is not None and length > longest:
            raise CheckpointError(f"{self.path}: {what} has {length} bytes; it has at most {longest}")
        try:
            return str(self.take(length, what), "utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path}: {brief(what)[1:-1]} is not UTF-8 (byte {error.start})") from None

    def value(self, kind: int, key: str, depth: int = _DEEPEST) -> Any:
        """One value. Lists of numbers are arrays of numpy."""
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind], key)
        if kind == _STRING:
            return self.text(key)
        if kind != _ARRAY or not depth:
            what = "a list in a list" if kind == _ARRAY else f"of type {kind}, which is unknown"
            raise CheckpointError(f"{self.path}: {brief(key)[1:-1]}: the value is {what}")
        inner = self.scalar("I", key)
        if inner not in _SMALLEST:
            raise CheckpointError(f"{self.path}: {brief(key)[1:-1]}: the items are of type {inner}, which is unknown")
        number = self.count(_MOST_ITEMS, _SMALLEST[inner], f"{key}: the number of items")
        if inner in _SCALARS:
            dtype = np.dtype(f"<{_SCALARS[inner]}")
            return np.frombuffer(self.take(number * dtype.itemsize, key), dtype).copy()  # the file may be unmapped
        return (
            self._texts(number, key) if inner == _STRING else [self.value(inner, key, depth - 1) for _ in range(number)]
        )

    def _texts(self, number: int, key: str) -> list[str]:
        """As many texts: a vocabulary has hundreds of thousands."""
        data, length_at, found = self.data, struct.Struct("<Q").unpack_from, []
        begin, size = self.place, len(self.data)
        try:
            for _ in range(number):
                end = begin + 8 + length_at(data, begin)[0]
                if end > size:
                    break
                found.append(str(data[begin + 8 : end], "utf-8"))
                begin = end
        except (struct.error, UnicodeDecodeError):
            pass
        self.place = begin
        while len(found) < number:  # the one that cannot be says why
            found.append(self.text(key))
        return found

    def tensor(self, name: str) -> tuple[BlockType, tuple[int, ...], int]:
        """Type, shape and offset of a tensor."""
        where = f"{self.path}: {brief(name)[1:-1]}"
        dimensions = self.scalar("I", name)
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise CheckpointError(f"{where} has {dimensions} dimensions; a tensor has 1 to {_MOST_DIMENSIONS}")
        sizes = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions, name))
        number, offset = self.scalar("I", name), int(self.scalar("Q", name))
        if 0 in sizes or math.prod(sizes) >= 2**48:
            raise CheckpointError(f"{where} has the shape {list(sizes)}, which no tensor has")
        if number not in BY_NUMBER:
            raise CheckpointError(
                f"{where} is of type {number}, which Bitwright cannot read; it reads {', '.join(TYPES)}"
            )
        kind = BY_NUMBER[number]
        if sizes[0] % kind.values:
            raise CheckpointError(
                f"{where}: rows of {sizes[0]} values are not whole blocks of {kind.values}, as {kind.name} has them"
            )
        return kind, tuple(reversed(sizes)), offset
