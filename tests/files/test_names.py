"""Names of an older spelling: files are read, and results written, under those of today."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import bitwright
from bitwright.errors import CheckpointError
from bitwright.files.names import renamed


def test_only_the_ends_that_transformers_renames() -> None:
    found = renamed({"a.LayerNorm.gamma": 1, "LayerNorm.beta": 2, "sa_layer_norm.gamma": 3, "x": 4}, Path("m"))
    assert found == {"a.LayerNorm.weight": 1, "LayerNorm.bias": 2, "sa_layer_norm.gamma": 3, "x": 4}


@pytest.mark.parametrize("names", [("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.weight", "LayerNorm.gamma")])
def test_both_names_of_one_tensor(names: tuple[str, str]) -> None:
    with pytest.raises(CheckpointError, match="two names for one tensor"):
        renamed(dict.fromkeys(names, 0), Path("m"))


def old_spelling(path: Path) -> None:
    file = path / "model.safetensors"
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(file).items()
    }
    assert any(name.endswith("LayerNorm.gamma") for name in tensors)
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("pickled", [False, True])
def test_a_result_has_the_names_of_today_and_runs(
    tiny_model: Callable[..., Path], tmp_path: Path, pickled: bool
) -> None:
    source = Path(shutil.copytree(tiny_model("bert"), tmp_path / "source"))
    bitwright.quantize(source, out=tmp_path / "today", judged=False, samples=8)
    old_spelling(source)
    if pickled:
        torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
        (source / "model.safetensors").unlink()
    bitwright.quantize(source, out=tmp_path / "old", judged=False, samples=8)
    weights = "model.safetensors"
    assert (tmp_path / "old" / weights).read_bytes() == (tmp_path / "today" / weights).read_bytes()
