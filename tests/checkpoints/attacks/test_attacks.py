"""Files that lie. Each must raise CheckpointError, and none may be unpickled, executed, or read beyond its end."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitwright.errors import CheckpointError
from bitwright.numerics.linear import QuantizedLinear

Read = Callable[[Path], dict[str, QuantizedLinear]]
CONFIG = {
    "model_type": "bert",
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "strategy": "channel"},
                "input_activations": {"num_bits": 8, "strategy": "token", "dynamic": True},
            }
        },
    },
}
HEADER: dict[str, Any] = {
    "m.weight_scale": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
    "m.weight": {"dtype": "I8", "shape": [2, 2], "data_offsets": [8, 12]},
}
BODY = struct.pack("<2f", 1.0, 1.0) + bytes([1, 2, 3, 4])


def build(header: Any, body: bytes = BODY) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def with_entry(name: str, **changes: Any) -> bytes:
    return build({**HEADER, name: {**HEADER[name], **changes}})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_the_honest_file_is_read(directory: Path, read_linears: Read) -> None:
    (directory / "model.safetensors").write_bytes(build(HEADER))
    assert read_linears(directory)["m"].weight.codes_NK.tolist() == [[1, 2], [3, 4]]


HONEST = build(HEADER)
ATTACKS: dict[str, bytes] = {
    "empty": b"",
    "no header": b"\x08\x00\x00",
    "truncated header": HONEST[:40],
    "truncated buffer": HONEST[:-1],
    "trailing bytes": HONEST + b"\x00",
    "oversized header length": struct.pack("<Q", 2**63 - 1) + HONEST[8:],
    "header length over the limit": struct.pack("<Q", 2**40) + HONEST[8:],
    "overlapping tensors": with_entry("m.weight", data_offsets=[4, 8]),
    "hole between tensors": build(
        {**HEADER, "m.weight": {**HEADER["m.weight"], "data_offsets": [12, 16]}}, BODY + b"1234"
    ),
    "tensor beyond the end": with_entry("m.weight", data_offsets=[8, 2**40]),
    "backward range": with_entry("m.weight", data_offsets=[12, 8]),
    "negative offset": with_entry("m.weight", data_offsets=[-4, 0]),
    "negative shape": with_entry("m.weight", shape=[-2, -2]),
    "shape larger than the range": with_entry("m.weight", shape=[2, 4]),
    "shape that overflows": with_entry("m.weight", shape=[2**62, 2**62]),
    "shape of floats": with_entry("m.weight", shape=[2.0, 2.0]),
    "unknown dtype": with_entry("m.weight", dtype="PICKLE"),
    "codes said to be bool": with_entry("m.weight", dtype="BOOL"),
    "codes said to be unsigned": with_entry("m.weight", dtype="U8"),
    "the same name twice": build(b'{"m.weight":{"dtype":"I8","shape":[2],"data_offsets":[0,2]},' * 2 + b'"x":1}'),
    "header is a list": build([1, 2, 3]),
    "header is not JSON": build(b"{" * 64),
    "header is not text": build(b"\xff" * 64),
    "deeply nested header": build(b"[" * 200_000),
    "entry is a number": build({"m.weight": 7}, b""),
    "pickle in disguise": b"\x80\x04\x95" + b"cos\nsystem\n(S'true'\ntR." * 4,
    "zip in disguise": b"PK\x03\x04" + bytes(200),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_lying_file_is_refused(directory: Path, read_linears: Read, attack: str) -> None:
    (directory / "model.safetensors").write_bytes(ATTACKS[attack])
    with pytest.raises(CheckpointError):
        read_linears(directory)


INDEXES: dict[str, Callable[[Path], object]] = {
    "not JSON": lambda d: (d / "model.safetensors.index.json").write_text("{"),
    "no weight_map": lambda d: (d / "model.safetensors.index.json").write_text("{}"),
    "missing shard": lambda d: index(d, {"m.weight": "gone.safetensors"}),
    "escape": lambda d: index(d, {"m.weight": "../model.safetensors"}),
    "absolute": lambda d: index(d, {"m.weight": str(d.parent / "x.safetensors")}),
    "shard that is no name": lambda d: index(d, {"m.weight": 7}),
    "name in two shards": lambda d: two_shards(d),
}


def index(directory: Path, weight_map: dict[str, Any]) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def two_shards(directory: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        (directory / name).write_bytes(HONEST)
    index(directory, {"m.weight": "a.safetensors", "m.weight_scale": "b.safetensors"})


@pytest.mark.parametrize("attack", INDEXES)
def test_a_lying_index_is_refused(directory: Path, read_linears: Read, attack: str) -> None:
    INDEXES[attack](directory)
    with pytest.raises(CheckpointError):
        read_linears(directory)


def test_every_truncation_is_refused(directory: Path, read_linears: Read) -> None:
    for length in range(len(HONEST)):
        (directory / "model.safetensors").write_bytes(HONEST[:length])
        with pytest.raises(CheckpointError):
            read_linears(directory)
