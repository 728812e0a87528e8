"""Headers that lie are refused; files that the safetensors library writes are read as it reads them."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bitwright.errors import CheckpointError
from bitwright.files import safetensors
from bitwright.files.safetensors import check_safetensors

F32 = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def write(path: Path, header: Any, buffer: int = 24, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(buffer))
    return path


def test_agrees_with_the_library(minilm_dir):
    entries = check_safetensors(minilm_dir / "model.safetensors")
    with safe_open(minilm_dir / "model.safetensors", framework="pt") as file:
        assert set(entries) == set(file.keys())
        for name, entry in entries.items():
            stored = file.get_slice(name)
            assert (list(entry.shape), entry.dtype) == (stored.get_shape(), stored.get_dtype())


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "int8", "uint8", "int64", "bool", "float8_e4m3fn"])
def test_every_dtype_of_the_library_is_known(tmp_path, dtype):
    tensors = {
        "a": torch.zeros(3, 5).to(getattr(torch, dtype)),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(1.0),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    entries = check_safetensors(tmp_path / "x.safetensors")
    assert {name: entry.shape for name, entry in entries.items()} == {n: tuple(t.shape) for n, t in tensors.items()}


def test_every_truncation_is_refused(tmp_path):
    whole = write(tmp_path / "whole", {"a": F32}).read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="truncated"):
            check_safetensors(tmp_path / "cut")


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": F32 | changes}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (entry(data_offsets=[0, 20]), "hold 20 bytes, but F32 of shape [2, 3] needs 24"),
        (entry(data_offsets=[24, 0]), "hold -24 bytes"),
        (entry(data_offsets=[-24, 0]), "are not [begin, end]"),
        (entry(data_offsets=[0, 8, 24]), "are not [begin, end]"),
        (entry(data_offsets=[0.0, 24.0]), "are not [begin, end]"),
        (entry(data_offsets=[4, 28]), "leaves a hole after the start"),
        (entry(shape=[2, -3]), "is not a list of sizes"),
        (entry(shape=[2, True]), "is not a list of sizes"),
        (entry(shape=[2**64, 0]), "is not a list of sizes"),
        (entry(shape=[2**40, 2**40]), "needs 4835703278458516698824704"),
        (entry(shape="2x3"), "is not a list of sizes"),
        (entry(dtype="F31"), "dtype 'F31' is unknown; known are"),
        (entry(dtype=["F32"]), "is unknown; known are"),
        (entry(shape=[0, 2**62], data_offsets=[0, 0]), "the shape [0, 4611686018427387904] is too large"),
        (entry(shape=[1] * 70 + [6]), "the shape [1, 1,"),
        (entry(dtype="F4", shape=[3], data_offsets=[0, 1]), "and a fraction"),
        ({"a": F32, "b": F32}, "b begins at byte 0 and overlaps a, which ends at 24"),
        ({"a": F32, "b": F32 | {"data_offsets": [12, 36]}}, "b begins at byte 12 and overlaps a"),
        ({"a": {"dtype": "F32", "shape": [6]}}, "must give exactly dtype, shape and data_offsets"),
        (entry(extra=1), "must give exactly dtype, shape and data_offsets"),
        ({"a": None}, "must give exactly dtype, shape and data_offsets"),
        ([F32], "a JSON list, not an object"),
        ({}, "tensors need 0 bytes, but the file holds 24; the other bytes belong to no tensor"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": ' + json.dumps(F32).encode() + b', "a": ' + json.dumps(F32).encode() + b"}", "names 'a' twice"),
        (b'{"a": {"dtype": "F32", "dtype": "F64"}}', "names 'dtype' twice"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header, message):
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        check_safetensors(write(tmp_path / "x.safetensors", header))
    assert "x.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_header_longer_than_the_file_is_not_allocated(tmp_path):
    with pytest.raises(CheckpointError, match="announce a header of 9223372036854775807"):
        check_safetensors(write(tmp_path / "x", {"a": F32}, length=2**63 - 1))


def test_oversized_header_is_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors, "MAX_HEADER_BYTES", 50)
    with pytest.raises(CheckpointError, match="more than the format's limit of 50"):
        check_safetensors(write(tmp_path / "x", {"a": F32}))


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        check_safetensors(tmp_path / "absent")
