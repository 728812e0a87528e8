import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bitwright.files.safetensors import check_safetensors
from bitwright.files.safetensors_writer import pending, shard, shard_index, write_safetensors

TENSORS = {
    "b.weight": torch.arange(6, dtype=torch.int8).reshape(2, 3),
    "b.weight_scale": torch.tensor([[0.5], [2.0]]),
    "a.weight": torch.tensor([1.0, -2.0], dtype=torch.bfloat16),
    "é": torch.zeros(0, 4),
    "ids": torch.arange(3),
    "half": torch.tensor([0.5], dtype=torch.float16),
    "one": torch.tensor(7.0, dtype=torch.float64),
    "yes": torch.tensor([True, False, True]),
}


def test_bytes_are_those_of_the_formats_own_writer(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", {name: pending(tensor) for name, tensor in TENSORS.items()})
    assert (tmp_path / "x.safetensors").read_bytes() == safetensors.torch.save(TENSORS, {"format": "pt"})


def test_golden_bytes(tmp_path: Path) -> None:
    """Every byte of a small file, written out."""
    tensors = {"m.weight": torch.tensor([[1, -1], [127, -127]], dtype=torch.int8), "m.weight_scale": torch.ones(2, 1)}
    write_safetensors(tmp_path / "x.safetensors", {name: pending(tensor) for name, tensor in tensors.items()})
    header = (
        b'{"__metadata__":{"format":"pt"},'
        b'"m.weight_scale":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},'
        b'"m.weight":{"dtype":"I8","shape":[2,2],"data_offsets":[8,12]}}'
    )
    header += b" " * (-len(header) % 8)
    codes = b"\x01\xff\x7f\x81"
    expected = len(header).to_bytes(8, "little") + header + b"\x00\x00\x80\x3f" * 2 + codes
    assert (tmp_path / "x.safetensors").read_bytes() == expected


def test_every_tensor_is_aligned_to_its_values(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", {name: pending(tensor) for name, tensor in TENSORS.items()})
    for name, entry in check_safetensors(tmp_path / "x.safetensors").items():
        assert entry.begin % TENSORS[name].dtype.itemsize == 0, name


def test_a_transposed_tensor_is_written_in_its_own_order(tmp_path: Path) -> None:
    transposed = torch.arange(6.0).reshape(2, 3).t()
    write_safetensors(tmp_path / "x.safetensors", {"t": pending(transposed)})
    assert torch.equal(safetensors.torch.load_file(tmp_path / "x.safetensors")["t"], transposed)


@pytest.mark.parametrize("max_bytes", [1, 8, 20, 10_000])
def test_shards_hold_everything_once_and_keep_to_the_limit(max_bytes: int) -> None:
    tensors = {name: pending(tensor) for name, tensor in TENSORS.items()}
    shards = shard(tensors, max_bytes)
    assert sorted(name for part in shards.values() for name in part) == sorted(tensors)
    for part in shards.values():
        assert len(part) == 1 or sum(tensor.n_bytes for tensor in part.values()) <= max_bytes


def test_one_shard_has_the_plain_name_and_several_an_index() -> None:
    tensors = {name: pending(tensor) for name, tensor in TENSORS.items()}
    assert list(shard(tensors, 10_000)) == ["model.safetensors"]
    shards = shard(tensors, 20)
    index = json.loads(shard_index(shards))
    assert index["weight_map"].keys() == tensors.keys()
    assert set(index["weight_map"].values()) == set(shards)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in TENSORS.values())
