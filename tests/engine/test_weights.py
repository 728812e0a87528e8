"""Directories whose files contradict one another: told, before native code sees an address."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitwright.engine.encoders import lower_encoder
from bitwright.engine.weights import Weights
from bitwright.errors import CheckpointError, EngineError, ModelError

TinyModel = Callable[..., Path]
BLOCK = "encoder.layer.0."


@pytest.fixture
def copy(tiny_model: TinyModel, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model("bert"), tmp_path / "copy"))


def change(directory: Path, name: str, value: torch.Tensor | None) -> None:
    tensors = load_file(directory / "model.safetensors")
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    save_file(tensors, directory / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("embeddings.position_embeddings.weight", torch.zeros(40, 32), "66 tokens, the table of positions has 40 rows"),
        ("embeddings.position_embeddings.weight", torch.zeros(66, 16), r"\[66, 16\]; rows of 32 values"),
        ("embeddings.token_type_embeddings.weight", torch.zeros(2, 8), r"\[2, 8\]; rows of 32 values"),
        ("embeddings.word_embeddings.weight", torch.zeros(32), r"\[32\]; a table has"),
        ("embeddings.LayerNorm.weight", torch.ones(31), r"\[31\]; \(32,\) is expected"),
        (f"{BLOCK}output.LayerNorm.bias", torch.ones(1, 32), r"\[1, 32\]; \(32,\) is expected"),
        (f"{BLOCK}intermediate.dense.bias", torch.ones(63), r"\[63\]; \(64,\) is expected"),
        (f"{BLOCK}output.dense.weight", torch.zeros(48, 64), r"\[32\]; \(48,\) is expected"),
        (f"{BLOCK}output.dense.weight", torch.zeros(64), r"\[64\]; a linear has"),
        (f"{BLOCK}output.dense.weight", torch.zeros(32, 64, dtype=torch.int32), "is I32, a float tensor is expected"),
        (f"{BLOCK}output.dense.weight", None, "the files hold no 'encoder.layer.0.output.dense.weight'"),
    ],
)
def test_tensors_that_do_not_fit(copy: Path, name: str, value: torch.Tensor | None, message: str) -> None:
    change(copy, name, value)
    with pytest.raises(CheckpointError, match=message):
        lower_encoder(Weights(copy))


def test_a_linear_of_another_input(copy: Path) -> None:
    change(copy, f"{BLOCK}intermediate.dense.weight", torch.zeros(64, 48))
    with pytest.raises(EngineError, match="K = 48 of an input of 32 values"):
        lower_encoder(Weights(copy))


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("num_attention_heads", 5, EngineError, "5 heads of 96 / 3 values"),
        ("num_attention_heads", "2", CheckpointError, "num_attention_heads is '2', not a number from 1 to"),
        ("num_hidden_layers", 3, CheckpointError, "the files hold no 'encoder.layer.2"),
        ("max_position_embeddings", 10**12, CheckpointError, "max_position_embeddings is 1000000000000, not a number"),
        ("layer_norm_eps", "small", CheckpointError, "layer_norm_eps is 'small', not a positive number"),
        ("architectures", ["BertForMultipleChoice"], EngineError, "BertForMultipleChoice has no builder"),
    ],
)
def test_configs_that_do_not_fit(copy: Path, key: str, value: object, error: type[Exception], message: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(error, match=message):
        lower_encoder(Weights(copy))


def test_no_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        Weights(copy)


def test_truncated(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        Weights(copy)


@pytest.mark.parametrize(
    ("family", "key", "value", "error", "message"),
    [
        ("roberta", "pad_token_id", -5, EngineError, "pad_token_id is -5, so positions have no beginning"),
        ("roberta", "pad_token_id", None, EngineError, "pad_token_id is None"),
        ("modernbert", "hidden_size", 16, CheckpointError, "heads of 16 values, and 4 angles for each"),
        ("modernbert", "layer_types", ["full_attention"], EngineError, "of 1 blocks have no builder"),
    ],
)
def test_configs_of_other_families(
    tiny_model: TinyModel, tmp_path: Path, family: str, key: str, value: object, error: type[Exception], message: str
) -> None:
    copy = Path(shutil.copytree(tiny_model(family), tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(error, match=message):
        lower_encoder(Weights(copy))


def test_a_block_that_runs_again_has_its_weights_once(tiny_model: TinyModel) -> None:
    program = lower_encoder(Weights(tiny_model("albert")))
    weights = [op.weights["weight"] for op in program.ops if op.kind == "linear" and "ffn_output" in op.name]
    assert len(weights) == 2
    assert weights[0] is weights[1]
