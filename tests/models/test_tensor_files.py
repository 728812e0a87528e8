"""Tensors by name: read from the right bytes, whole or in part, without the file's pages staying with the process."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bitwright.errors import CheckpointError
from bitwright.files.directory import ModelDirectory
from bitwright.models.tensor_files import TensorFiles
from bitwright.numerics.linear import PendingFloat


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "bf16": torch.randn(4, 6, 5).bfloat16(),
        "bool": torch.rand(7) > 0.5,
        "empty": torch.zeros(0, 3),
        "f64": torch.randn(3, 3, dtype=torch.float64),
        "fp8": torch.randn(5, 2).to(torch.float8_e4m3fn),
        "int": torch.arange(11),
        "scalar": torch.tensor(2.5),
        "turned": torch.randn(5, 8).t(),
    }


@pytest.fixture(params=["model.safetensors", "pytorch_model.bin"])
def files(request, tensors, tmp_path) -> TensorFiles:
    if request.param.endswith("bin"):
        torch.save(tensors, tmp_path / request.param)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / request.param)
    return TensorFiles(ModelDirectory(tmp_path))


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.float(), b.float())


def test_every_tensor_is_read_as_it_was_written(files, tensors):
    assert set(files) == set(tensors)
    for name, tensor in tensors.items():
        assert same(files[name], tensor), name
        assert files[name].is_contiguous()
        assert (files.shape(name), files.dtype(name)) == (tuple(tensor.shape), tensor.dtype)


def test_part_of_a_tensor(files, tensors):
    for start, shape in [(0, (6, 5)), (30, (2, 6, 5)), (17, (9,)), (119, (1,)), (60, (0, 5))]:
        count = torch.Size(shape).numel()
        assert same(files.values_at("bf16", start, shape), tensors["bf16"].flatten()[start : start + count].view(shape))
    assert same(files.values_at("turned", 5, (2, 5)), tensors["turned"].flatten()[5:15].view(2, 5))


def test_what_is_read_belongs_to_the_caller(files, tensors):
    files["f64"].zero_()
    assert same(files["f64"], tensors["f64"])


def test_a_file_that_shrinks_after_it_was_opened(tensors, tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"f64": tensors["f64"]}, file)
    opened = TensorFiles(ModelDirectory(tmp_path))
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: f64: the file ends 5 bytes too early; it has changed"
    ):
        opened["f64"]


_READ = """
import resource, sys
from pathlib import Path
from bitwright.files.directory import ModelDirectory
from bitwright.models.tensor_files import TensorFiles
from bitwright.numerics.linear import PendingFloat
files = TensorFiles(ModelDirectory(Path(sys.argv[1])))
files["0"]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in files:
    files[name].sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_reading_all_tensors_takes_the_memory_of_one(tmp_path: Path):
    one = torch.zeros(4 << 20)  # 16 MiB
    save_file({str(index): one.clone() for index in range(12)}, tmp_path / "model.safetensors")
    run = subprocess.run(
        [sys.executable, "-c", _READ, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(run.stdout) * 1024 < 2.5 * one.nbytes


def test_pieces_are_the_whole(files, tensors, monkeypatch):
    monkeypatch.setattr("bitwright.models.tensor_files._PIECE", 4)
    for name, tensor in tensors.items():
        pieces = list(files.pieces(name, 0, tensor.numel()))
        assert [len(piece) for piece in pieces[:-1]] == [4] * (len(pieces) - 1)
        whole = torch.cat(pieces) if pieces else torch.empty(0, dtype=tensor.dtype)
        assert whole.dtype == tensor.dtype
        assert torch.equal(whole.float(), tensor.flatten().float()), name
    assert torch.equal(torch.cat(list(files.pieces("int", 3, 6))), tensors["int"][3:9])


def test_what_is_made_is_made_once_and_comes_in_pieces_as_large(tensors, tmp_path, monkeypatch):
    monkeypatch.setattr("bitwright.models.tensor_files._PIECE", 4)
    save_file({"int": tensors["int"]}, tmp_path / "model.safetensors")
    loads = []
    made = PendingFloat((3, 5), "float32", "", lambda: loads.append(1) or np.arange(15, dtype=np.float32).reshape(3, 5))
    pieces = list(TensorFiles(ModelDirectory(tmp_path), {"made": made}).pieces("made", 0, 15))
    assert [len(piece) for piece in pieces] == [4, 4, 4, 3]
    assert torch.cat(pieces).tolist() == list(range(15))
    assert len(loads) == 1


def test_a_table_that_is_looked_up_has_the_same_values_and_is_the_processs_own(files, tensors, tmp_path):
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    seen = []
    for name, tensor in tensors.items():
        found = files.looked_up(name, seen.append)
        if found is None:  # read as ever
            continue
        assert found.dtype == tensor.dtype
        assert torch.equal(found.float(), tensor.float()), name
        found.zero_()
    assert (len(seen) > 5) == (tmp_path / "model.safetensors").is_file()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


_LOOK_UP = """
import sys
from pathlib import Path
import torch
from bitwright.files.directory import ModelDirectory
from bitwright.models.tensor_files import TensorFiles
from bitwright.numerics.linear import PendingFloat

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))

files = TensorFiles(ModelDirectory(Path(sys.argv[1])))
before = resident()
table = files.looked_up("table", torch.Tensor.sum)
table[torch.tensor([0, 5000])].sum()
print(resident() - before)
"""


def test_a_table_takes_the_memory_of_the_rows_that_are_looked_up(tmp_path: Path):
    table = torch.zeros(1 << 14, 1 << 10)  # 64 MiB
    save_file({"table": table}, tmp_path / "model.safetensors")
    run = subprocess.run(
        [sys.executable, "-c", _LOOK_UP, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(run.stdout) * 1024 < table.nbytes / 8
