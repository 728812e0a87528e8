"""A GGUF file with one thing changed: what the metadata says, a tensor's name, type, shape, offset or bytes."""

import struct
from random import Random
from typing import Any

from tests.fuzz.values import WORDS, odd_leaf
from tests.gguf_files import Tensor, encoded, typed

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of numbers, by type
_STRING, _ARRAY, _ALIGNMENT = 8, 9, 32
_COUNTS = (0, 1, 2, 31, 33, 1 << 16, 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def split_gguf(content: bytes) -> tuple[dict[str, bytes], list[Tensor]]:
    """Metadata, each value as it is stored behind its type, and the tensors of a good file."""
    n_tensors, n_entries = struct.unpack_from("<QQ", content, 8)
    at, metadata, found = 24, {}, []
    for _ in range(n_entries):
        key, at = _text(content, at)
        begin, at = at, _end(content, at + 4, struct.unpack_from("<I", content, at)[0])
        metadata[key] = content[begin:at]
    for _ in range(n_tensors):
        name, at = _text(content, at)
        (axes,) = struct.unpack_from("<I", content, at)
        *shape, kind, offset = struct.unpack_from(f"<{axes}QIQ", content, at + 4)
        found.append((name, kind, shape, offset))
        at += 4 + 8 * axes + 12
    data = content[at + -at % _ALIGNMENT :]
    ends = [*sorted(offset for *_, offset in found), len(data)]
    return metadata, [
        Tensor(name, kind, shape, data[offset : ends[ends.index(offset) + 1]]) for name, kind, shape, offset in found
    ]


def _text(content: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", content, at)
    return content[at + 8 : at + 8 + length].decode(), at + 8 + length


def _end(content: bytes, at: int, kind: int) -> int:
    """Where a value of this type ends."""
    if kind == _STRING:
        return _text(content, at)[1]
    if kind != _ARRAY:
        return at + _SIZES[kind]
    inner, count = struct.unpack_from("<IQ", content, at)
    at += 12
    for _ in range(min(count, len(content))):  # a file that was changed before may lie, and then ends early
        at = _end(content, at, inner)
    return at


def changed(content: bytes, rng: Random) -> bytes:
    """The file with one thing changed."""
    metadata, tensors = split_gguf(content)
    held: dict[str, Any] = dict(metadata)
    if rng.random() < 0.5:
        _change_metadata(held, rng)
    else:
        _change_tensor(tensors, rng)
    alignment = rng.choice((1, 8, 64, 0x7FFF)) if rng.random() < 0.02 else _ALIGNMENT
    full = bytearray(encoded(held, tensors, version=rng.choice((2, 3)), alignment=alignment))
    if rng.random() < 0.03:  # counts that lie
        struct.pack_into("<Q", full, rng.choice((8, 16)), rng.choice(_COUNTS))
    return bytes(full)


def _change_metadata(held: dict[str, Any], rng: Random) -> None:
    key, how = rng.choice(list(held)), rng.randrange(8)
    if how == 0:
        del held[key]
    elif how == 1:
        held[rng.choice((*held, *WORDS, "general.alignment", "\x1b[31m", "a" * 5000, ""))] = held.pop(key)
    elif how == 2:
        held[key] = held[rng.choice(list(held))]
    elif how == 3:  # another number, or other letters, of the same size
        at = rng.randrange(len(held[key]))
        held[key] = held[key][:at] + bytes([rng.randrange(256)]) + held[key][at + 1 :]
    elif how == 4:
        inner, count = rng.choice((*_SIZES, _STRING, _ARRAY, 13, 1 << 31)), rng.choice(_COUNTS)
        held[key] = struct.pack("<IIQ", _ARRAY, inner, count) + rng.randbytes(rng.choice((0, 8, 64)))
    elif how == 5:
        held[key] = struct.pack("<I", rng.choice((*_SIZES, _STRING, 13, 1 << 31))) + held[key][4:]
    elif how == 6:
        held[key] = struct.pack("<IQ", _STRING, rng.choice(_COUNTS))
    else:
        held[key] = _odd(rng)


def _odd(rng: Random) -> bytes:
    """A value, behind its type, that is none of these keys'."""
    value = odd_leaf(rng)
    if isinstance(value, str):
        return typed(value.encode("utf-8", "surrogatepass").decode("utf-8", "replace"))
    if isinstance(value, float):
        return struct.pack("<Id", 12, value)
    return struct.pack("<IQ", 10, int(value or 0) & (1 << 64) - 1)


def _change_tensor(tensors: list[Tensor], rng: Random) -> None:
    i, how = rng.randrange(len(tensors)), rng.randrange(9)
    tensor = tensors[i]
    if how == 0:
        del tensors[i]
    elif how == 1:
        name = rng.choice((tensors[0].name, tensor.name + "x", tensor.name.replace("0", "7"), "\x1b[31m", "a" * 600))
        tensors[i] = tensor._replace(name=name)
    elif how == 2:
        tensors[i] = tensor._replace(type=rng.choice((*range(42), 1 << 31)))
    elif how == 3:
        other = rng.choice(_COUNTS)
        shapes = ([], [0], [other], [*tensor.shape[::-1]], [*tensor.shape, 1], [other, 1], [1] * 5, [1] * 5000)
        tensors[i] = tensor._replace(shape=rng.choice(shapes))
    elif how == 4:
        tensors[i] = tensor._replace(offset=rng.choice((*_COUNTS, 32, 64, -32 & (1 << 64) - 1)))
    elif how == 5:
        tensors[i] = tensor._replace(data=tensor.data[: rng.randrange(len(tensor.data) + 1)])
    elif how == 6:
        tensors[i] = tensor._replace(data=rng.choice((b"\xff", b"\x00", b"\x7c", b"\x7f\x80")) * len(tensor.data))
    elif how == 7:
        at = rng.randrange(max(len(tensor.data), 1))
        tensors[i] = tensor._replace(data=tensor.data[:at] + rng.randbytes(8) + tensor.data[at + 8 :])
    else:
        tensors.append(tensor._replace(name=rng.choice(("output.weight", "rope_freqs.weight", "blk.9.ffn_up.weight"))))
