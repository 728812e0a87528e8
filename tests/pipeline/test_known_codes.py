"""A model that was trained for 4 bits keeps its codes, and is told so."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitwright.checkpoints.formats import read_checkpoint
from bitwright.errors import RecipeError
from bitwright.files.directory import ModelDirectory
from bitwright.numerics.arrays import as_torch
from bitwright.pipeline import quantize
from bitwright.pipeline.opened import open_model
from bitwright.recipe import make_recipe

TinyModel = Callable[..., Path]
SIZE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def on_grid(w_NK: torch.Tensor, *, signed: bool) -> torch.Tensor:
    """As training for Q4_0 leaves a weight: per 32 values, the largest is −8 of a scale, or 7 of a positive one."""
    groups = w_NK.float().reshape(len(w_NK), -1, 32)
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    scale = (largest / -8 if signed else largest.abs() / 7).half().float()
    return (torch.round(groups / scale).clamp(-8, 7) * scale).reshape(w_NK.shape).to(w_NK.dtype)


@pytest.fixture(params=[True, False], ids=["Q4_0", "absmax / 7"])
def trained(tiny_model: TinyModel, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, bool]:
    """A llama in bf16 whose linears lie on a grid, but for one."""
    shutil.copytree(tiny_model("llama", dtype=torch.bfloat16, **SIZE), tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if "proj" in name and "layers.1.mlp.down" not in name:
            tensors[name] = on_grid(tensor, signed=request.param)
    save_file(tensors, file, metadata={"format": "pt"})
    return tmp_path / "source", request.param


def recipe(**how: Any) -> Any:
    return make_recipe({"targets": ["bitwright"], **how})


@pytest.mark.parametrize("method", ["rtn", pytest.param("gptq", marks=pytest.mark.full)])
def test_its_codes_stay(trained: tuple[Path, bool], tmp_path: Path, method: str) -> None:
    source, signed = trained
    asked = recipe(scheme="w4a16_asym" if signed else "w4a16", method=method, calibration={"samples": 8})
    record = quantize(source, out=tmp_path / "out", recipe=asked, judged=False, samples=8).measured
    before = load_file(source / "model.safetensors")
    linears = read_checkpoint(ModelDirectory(tmp_path / "out")).linears
    weights = {name: as_torch(pending.load().weight.dequantize()).bfloat16() for name, pending in linears.items()}
    kept = {name for name, weight in weights.items() if torch.equal(weight, before[f"{name}.weight"])}
    other = "model.layers.1.mlp.down_proj"
    assert kept == linears.keys() - {other}
    rows = {row.name: row for row in record.plan if row.is_linear}
    scheme = f"w4a16_g32{'_asym' * signed}"
    assert {(rows[name].scheme, rows[name].method) for name in kept} == {(scheme, "reproduce")}
    assert (rows[other].scheme, rows[other].method) == (f"w4a16_g128{'_asym' * signed}", method)
    assert f"the weights of 13 linears are codes of {scheme} already" in " ".join(record.warnings)
    assert "already, and stay so" in rows[next(iter(kept))].reason


def test_a_scheme_that_changes_them_is_told(trained: tuple[Path, bool]) -> None:
    source, signed = trained
    opened = open_model(source)
    notes = opened.known.notes(opened.resolve(recipe(scheme="w4a16_g64")).plan)
    assert notes == [
        "the weights of 13 linears (such as model.layers.0.self_attn.q_proj) are codes of 4 bits already, which this "
        "scheme changes; w4a16_g32_asym would keep them"
    ]
    told = opened.known.notes(opened.resolve(recipe(scheme="w4a16_g32")).plan)
    assert any("would keep them" in note for note in told) == signed
    assert opened.known.notes(opened.resolve(recipe(scheme="w8a16")).plan) == []


def test_other_models_have_no_codes_to_keep(tiny_model: TinyModel) -> None:
    opened = open_model(tiny_model("llama", **SIZE))
    assert opened.known.notes(opened.resolve(recipe(scheme="w4a16_g32")).plan) == []
    with pytest.raises(RecipeError, match="method: reproduce, but its weights are no codes of w4a16_g32"):
        opened.resolve(recipe(scheme="w4a16_g32", method="reproduce"))
