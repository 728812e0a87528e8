"""GGUF headers: what is read, and every lie that is refused before it costs anything."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitwright.errors import BitwrightError, CheckpointError
from bitwright.files.gguf.directory import GgufDirectory
from bitwright.files.gguf.header import read_gguf_header
from tests.gguf_files import LLAMA, Tensor, encoded, floats, small_llama, text, typed

FILE = Path("model.gguf")
_MOST = 2**64 - 1


def read(data: bytes) -> Any:
    return read_gguf_header(memoryview(data), FILE)


def test_values_and_places_are_those_that_were_written() -> None:
    metadata = {"a": 3, "b": 0.5, "c": True, "d": "ä", "e": ["x", "yz"], "f": [1.5, 2.5], "g": [-1, 7]}
    header = read(encoded(metadata, [floats("t", 3, 5), Tensor("u", 8, (32, 2), bytes(68))]))
    found = header.metadata
    assert (found.number("a"), found.real("b"), found.flag("c"), found.text("d")) == (3, 0.5, True, "ä")
    assert (found.texts("e"), found.numbers("f").tolist(), found.numbers("g").tolist()) == (
        ["x", "yz"],
        [1.5, 2.5],
        [-1, 7],
    )
    first, second = header.tensors.values()
    assert (first.shape, first.type.name, first.end - first.begin) == ((3, 5), "F32", 60)
    assert (second.shape, second.type.name, second.end - second.begin) == ((2, 32), "Q8_0", 68)
    assert first.begin % 32 == 0
    assert second.begin == first.begin + 64


def string(length: int) -> bytes:
    """A text that claims a length."""
    return struct.pack("<IQ", 8, length)


def array(kind: int, count: int) -> bytes:
    return struct.pack("<IIQ", 9, kind, count)


def start(tensors: int, entries: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "the magic number needs 4 bytes, but 0 are left"),
        (b"PK\x03\x04" + bytes(60), "not a GGUF file"),
        (start(0, 0, 1), "version 1 of the format"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "big-endian"),
        (start(_MOST, 0), "the number of tensors is 18446744073709551615, but at most 0"),
        (start(0, _MOST), "the number of metadata entries is 18446744073709551615"),
        (start(0, 1) + struct.pack("<Q", 2**60) + bytes(40), "a metadata key has 1152921504606846976 bytes"),
        (start(0, 1) + text("k") + string(2**62), "k needs 4611686018427387904 bytes, but 0 are left"),
        (start(0, 1) + text("k") + string(2**63), "k needs 9223372036854775808 bytes, but 0 are left"),
        (start(0, 1) + text("k") + array(8, 2**40), "k: the number of items is 1099511627776, but at most 0"),
        (start(0, 1) + text("k") + array(0, 2**40), "k: the number of items is 1099511627776, but at most 0"),
        (start(0, 1) + text("k") + array(9, 1) + struct.pack("<IQ", 9, 1) * 2 + bytes(64), "k: the value is a list"),
        (start(0, 1) + text("k") + array(77, 1) + bytes(8), "k: the items are of type 77"),
        (start(0, 1) + text("k") + struct.pack("<I", 13) + bytes(8), "k: the value is of type 13"),
        (start(0, 1) + text(b"\xff\xfe") + typed(1), "a metadata key is not UTF-8"),
        (start(0, 2) + (text("k") + typed(1)) * 2, "the metadata has 'k' twice"),
        (encoded({"general.alignment": 24}, []), "general.alignment: it is 24"),
        (encoded({"general.alignment": 0}, []), "general.alignment: it is 0"),
        (encoded({"general.alignment": "x"}, []), "general.alignment: it is 'x'"),
        (encoded({}, [floats("t", 2), floats("t", 2)]), "two tensors 't'"),
        (encoded({}, [Tensor("t", 99, (32,), b"")]), "t is of type 99"),
        (encoded({}, [Tensor("t", 4, (32,), b"")]), "t is of type 4"),
        (encoded({}, [Tensor("t", 0, (2,) * 5, bytes(128))]), "t has 5 dimensions"),
        (encoded({}, [Tensor("t", 0, (), bytes(4))]), "t has 0 dimensions"),
        (encoded({}, [Tensor("t", 0, (4, 0), b"")]), r"t has the shape \[4, 0\]"),
        (encoded({}, [Tensor("t", 0, (2**62, 2**62), b"")]), "t has the shape"),
        (encoded({}, [Tensor("t", 2, (33,), bytes(18))]), "rows of 33 values are not whole blocks of 32"),
        (encoded({}, [Tensor("t", 0, (1000,), bytes(64))]), "t ends at byte .* truncated"),
        (encoded({}, [Tensor("t", 0, (4,), bytes(16), offset=2**63)]), "t ends at byte"),
        (encoded({}, [Tensor("t", 0, (4,), bytes(16), offset=4)]), "t: its offset 4 is no multiple"),
        (encoded({}, [floats("t", 16), Tensor("u", 0, (4,), bytes(16), offset=32)]), "u begins at byte .* overlaps t"),
    ],
)  # fmt: skip
def test_lies_are_refused(data: bytes, says: str) -> None:
    with pytest.raises(CheckpointError, match=says) as caught:
        read(data)
    assert str(caught.value).startswith(str(FILE))


def opened(tmp_path: Path, metadata: Mapping[str, Any], tensors: Sequence[Tensor]) -> GgufDirectory:
    path = tmp_path / "model.gguf"
    path.write_bytes(encoded(metadata, tensors))
    return GgufDirectory(path)


def changed(**entries: Any) -> dict[str, Any]:
    return LLAMA | {key.replace("__", "."): value for key, value in entries.items()}


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        (changed(general__architecture="mamba"), "general.architecture: Bitwright does not read 'mamba'"),
        ({key: value for key, value in LLAMA.items() if "eps" not in key}, "epsilon: the metadata lacks it"),
        (changed(llama__attention__head_count=0), "head_count: 0 heads"),
        (changed(llama__attention__head_count="2"), "head_count: it is '2', but must be a whole number"),
        (changed(llama__attention__head_count=[2, 2]), "head_count: it is .* must be a whole number"),
        (changed(llama__expert_count=8), "no mixtures of experts"),
        (changed(split__count=3), "split.count: .*llama-gguf-split --merge"),
        (changed(llama__rope__scaling__type="longrope"), "rope.scaling.type: 'longrope' is unknown"),
        (changed(llama__rope__dimension_count=8), "not all 16 values of a head rotate"),
        (changed(llama__attention__value_length=8), "value_length: keys have 16"),
    ],
)
def test_metadata_that_cannot_be_is_refused(tmp_path: Path, metadata: Mapping[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        _ = opened(tmp_path, metadata, small_llama()).config


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (floats("blk.0.attn_surprise.weight", 4), "blk.0.attn_surprise.weight: the architecture 'llama' has no such"),
        (floats("blk.-1.attn_q.weight", 4), "no such tensor"),
        (floats("blk.1.attn_q.weight", 6, 4), "6 rows are not pairs of 2 heads"),
        (Tensor("blk.1.attn_v.weight", 2, (32,), bytes(18)), "is Q4_0 with 1 dimensions"),
    ],
)
def test_tensors_that_cannot_be_are_refused(tmp_path: Path, tensor: Tensor, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        _ = opened(tmp_path, LLAMA, [*small_llama(), tensor]).tensors


@pytest.mark.parametrize("cases", [500, pytest.param(20_000, marks=pytest.mark.full)])
def test_files_with_random_changes_are_read_or_refused(tmp_path: Path, cases: int) -> None:
    """Bytes of the header are changed, or the file is cut. Nothing else than our errors comes out."""
    from bitwright.checkpoints.formats import read_checkpoint

    vocabulary = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": ["a", "b", "ab", "c"],
        "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.token_type": [1, 1, 1, 3], "tokenizer.ggml.eos_token_id": 3,
    }  # fmt: skip
    whole = encoded(LLAMA | vocabulary, small_llama())
    header = whole.index(b"blk.0.ffn_down.weight") + 60
    path, random, refusals = tmp_path / "model.gguf", np.random.default_rng(5), []
    for _ in range(cases):
        data = bytearray(whole)
        for place in random.integers(4, header, random.integers(1, 4)):
            data[place] = random.choice([0, 1, 127, 128, 255, random.integers(256)])
        if random.random() < 0.1:
            del data[random.integers(len(data)) :]
        path.write_bytes(data)
        try:
            directory = GgufDirectory(path)
            for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
                directory.package.json(name)
            checkpoint = read_checkpoint(directory)
            for name in sorted(checkpoint.others):
                _ = checkpoint.tensors[name]
            for linear in checkpoint.linears.values():
                linear.load()
        except BitwrightError as error:
            refusals.append(str(error))
    assert cases // 4 < len(refusals) < cases
    assert all(str(path) in refusal for refusal in refusals)
