"""Parameters of a model found in files that name, shape, stack or repeat them otherwise."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bitwright.errors import ModelError
from bitwright.files.directory import ModelDirectory
from bitwright.models.source_tensors import SourceTensors, name_in
from bitwright.models.tensor_files import TensorFiles


@pytest.fixture
def files(tmp_path):
    def write(**tensors: Tensor) -> TensorFiles:
        named = {name.replace("__", "."): tensor.contiguous() for name, tensor in tensors.items()}
        save_file(named, tmp_path / "model.safetensors")
        return TensorFiles(ModelDirectory(tmp_path))

    return write


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def test_a_name_with_without_and_despite_the_prefix():
    assert name_in(["a.w", "bert.a.w"], "bert.a.w", "bert") == "bert.a.w"
    assert name_in(["a.w"], "bert.a.w", "bert") == "a.w"
    assert name_in(["bert.a.w"], "a.w", "bert") == "bert.a.w"
    assert name_in(["bert.a.w"], "a.w", "") is None
    assert name_in(["ert.a.w"], "bert.a.w", "b") is None


def test_plain_names_prefixes_and_what_is_left(files):
    w, gamma, other = random(3, 2), random(4), random(2)
    source = SourceTensors(
        files(layer__w=w.bfloat16(), bert__LayerNorm__weight=gamma, mtp__w=other),
        {"bert.layer.w": (3, 2), "bert.LayerNorm.weight": (4,), "bert.b": (2,)},
        prefix="bert",
    )
    assert set(source) == {"bert.layer.w", "bert.LayerNorm.weight"}
    assert torch.equal(source["bert.layer.w"], w.bfloat16())
    assert torch.equal(source["bert.LayerNorm.weight"], gamma)
    assert (source.shape("bert.layer.w"), source.dtype("bert.layer.w")) == ((3, 2), torch.bfloat16)
    assert source.file_name("bert.layer.w") == "layer.w"
    assert source.missing == ("bert.b",)
    assert source.kept == ("mtp.w",)


def test_renamed_and_transposed(files):
    w1, conv = random(3, 2), random(4, 6)
    source = SourceTensors(
        files(moe__w1=w1, conv__weight=conv),
        {"mlp.gate": (3, 2), "conv.weight": (6, 4)},
        renames={"mlp.gate": "moe.w1"},
        transposed=["conv.weight"],
    )
    assert torch.equal(source["mlp.gate"], w1)
    assert torch.equal(source["conv.weight"], conv.T)
    assert source["conv.weight"].is_contiguous()
    assert source.shape("conv.weight") == (6, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stacked_experts_are_taken_apart(files, dtype):
    gate_up, down = random(3, 10, 4, dtype=dtype), random(3, 4, 5, dtype=dtype)
    shapes: dict[str, tuple[int, ...]] = {}
    for index in range(3):
        shapes |= {f"m.experts.{index}.{part}_proj.weight": (5, 4) for part in ("gate", "up")}
        shapes[f"m.experts.{index}.down_proj.weight"] = (4, 5)
    source = SourceTensors(files(m__experts__gate_up_proj=gate_up, m__experts__down_proj=down), shapes)
    assert source.missing == source.kept == ()
    for index in range(3):
        gate, up = gate_up[index].chunk(2)
        assert torch.equal(source[f"m.experts.{index}.gate_proj.weight"], gate)
        assert torch.equal(source[f"m.experts.{index}.up_proj.weight"], up)
        assert torch.equal(source[f"m.experts.{index}.down_proj.weight"], down[index])
    assert source.file_name("m.experts.1.up_proj.weight") == "m.experts.gate_up_proj"


def test_shapes_that_differ_are_refused(files):
    opened = files(w=random(3, 2), m__experts__down_proj=random(3, 4, 5))
    with pytest.raises(
        ModelError, match=r"model\.safetensors: w is \(3, 2\) in the weights, but config.json asks for \(2, 3\)"
    ):
        SourceTensors(opened, {"w": (2, 3)})
    with pytest.raises(ModelError, match=r"down_proj is \(3, 4, 5\) .* \(more than 0, 5, 4\): experts, rows"):
        SourceTensors(opened, {"m.experts.0.down_proj.weight": (5, 4)})
    with pytest.raises(ModelError, match="more than 3, 4, 5"):
        SourceTensors(opened, {"m.experts.3.down_proj.weight": (4, 5)})


SHAPES = {"embed.w": (3, 2), "head.w": (3, 2)}


@pytest.mark.parametrize("present", ["embed", "head"])
def test_a_tied_parameter_is_whichever_is_there(files, present):
    w = random(3, 2)
    source = SourceTensors(files(**{f"{present}__w": w}), SHAPES, tied={"head.w": "embed.w"})
    assert source.missing == source.untied == source.kept == ()
    assert torch.equal(source["embed.w"], w)
    assert torch.equal(source["head.w"], w)


def test_a_tied_parameter_that_is_repeated(files):
    w = random(3, 2)
    source = SourceTensors(files(embed__w=w, head__w=w.clone()), SHAPES, tied={"head.w": "embed.w"})
    assert source.untied == ()
    assert source.file_name("head.w") == source.file_name("embed.w")


def test_tied_parameters_of_different_values_are_not_tied(files):
    embed, head = random(3, 2), random(3, 2)
    source = SourceTensors(files(embed__w=embed, head__w=head), SHAPES, tied={"head.w": "embed.w"})
    assert source.untied == ("head.w",)
    assert torch.equal(source["head.w"], head)
    assert torch.equal(source["embed.w"], embed)


def test_tied_parameters_that_are_both_absent_are_missing(files, tmp_path: Path):
    source = SourceTensors(files(other=random(1)), SHAPES, tied={"head.w": "embed.w"})
    assert source.missing == ("embed.w", "head.w")
