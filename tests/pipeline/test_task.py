"""A model is run, judged and written as what it is for: as sentence-transformers has it, or as the user says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

import bitwright
from bitwright.errors import ModelError
from bitwright.files.task import TASK_KEY
from bitwright.pipeline.job import open_job
from bitwright.pipeline.request import Texts, reproducing_command
from bitwright.recipe import Recipe, make_recipe

TinyModel = Callable[..., Path]


def edited(file: Path, **keys: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


@pytest.fixture(params=[("qwen2", "text-generation"), ("qwen3", "text-generation"), ("qwen3", "embedding")])
def embedder(request: pytest.FixtureRequest, tiny_model: TinyModel, tmp_path: Path) -> Path:
    """A language model, or one without its head, with the modules of an embedding model, which pads at the left."""
    path, (family, task) = tmp_path / "embedder", request.param
    shutil.copytree(tiny_model(family, task, tie_word_embeddings=True), path)
    parts = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    rows = [{"path": folder, "type": f"sentence_transformers.models.{kind}"} for folder, kind in parts.items()]
    rows = [{"idx": i, "name": str(i), **row} for i, row in enumerate(rows)]
    (path / "modules.json").write_text(json.dumps(rows))
    for folder in ("1_Pooling", "2_Normalize"):
        (path / folder).mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    edited(path / "tokenizer_config.json", padding_side="left")
    return path


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_an_embedder_made_of_a_language_model_gives_the_library_s_vectors(
    embedder: Path, tmp_path: Path, texts: list[str]
) -> None:
    some = [texts[0][:20], *texts[1:12]]
    theirs = SentenceTransformer(str(embedder), device="cpu").encode(some)
    np.testing.assert_allclose(bitwright.load(embedder).encode(some), theirs, atol=1e-6)
    bitwright.quantize(embedder, out=tmp_path / "out", judged=False, samples=8)
    ours = bitwright.load(tmp_path / "out")
    assert ours.task == "embedding"
    assert cosines(np.asarray(ours.encode(some)), theirs).min() > 0.98
    assert cosines(SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(some), theirs).min() > 0.98


@pytest.mark.parametrize("method", ["smoothquant", "gptq", "awq"])
def test_every_method_knows_its_blocks(embedder: Path, tmp_path: Path, texts: list[str], method: str) -> None:
    recipe = make_recipe({"method": method, "targets": ["bitwright"], "calibration": {"samples": 16}})
    bitwright.quantize(embedder, out=tmp_path / "out", recipe=recipe, judged=False, samples=8)
    some = texts[:8]
    found, wanted = (np.asarray(bitwright.load(path).encode(some)) for path in (tmp_path / "out", embedder))
    assert cosines(found, wanted).min() > 0.98


def test_it_is_judged_by_the_similarities_of_texts(embedder: Path) -> None:
    job = open_job(embedder, make_recipe({"targets": ["bitwright"]}), Texts(samples=20))
    assert not job.opened.streams
    assert job.scored.held_out.kind.outputs == "embeddings"
    assert {type(text) for text in job.scored.held_out.texts} == {str}


@pytest.fixture
def beheaded(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """A classifier whose config.json names the class without a head."""
    path = tmp_path / "source"
    shutil.copytree(tiny_model("bert", "sequence-classification"), path)
    edited(path / "config.json", architectures=["BertModel"])
    return path


@pytest.mark.parametrize("task", ["sequence-classification", "embedding"])
def test_a_result_knows_the_task_that_the_user_named(
    beheaded: Path, tmp_path: Path, texts: list[str], task: str
) -> None:
    with pytest.raises(ModelError, match=r"BertModel.*classifier\.weight \(3 × 32\).*--task"):
        bitwright.quantize(beheaded, out=tmp_path / "none", judged=False, samples=8)
    assert not (tmp_path / "none").exists()
    bitwright.quantize(beheaded, out=tmp_path / "out", judged=False, samples=8, task=task)
    model, source = bitwright.load(tmp_path / "out"), bitwright.load(beheaded, task=task)
    assert (model.task, source.task) == (task, task)
    assert cosines(np.asarray(model.encode(texts[:4])), np.asarray(source.encode(texts[:4]))).min() > 0.98
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    name = "BertModel" if task == "embedding" else "BertForSequenceClassification"
    assert (config["architectures"], config[TASK_KEY]) == ([name], task)
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "out")).__name__ == "BertModel"


def test_a_language_model_named_an_embedder_keeps_the_pooling_of_its_class(
    tiny_model: TinyModel, tmp_path: Path, texts: list[str]
) -> None:
    """Without modules.json sentence-transformers pools the last token of a ...ForCausalLM, and the mean of others."""
    path, out = tiny_model("qwen3", "text-generation"), tmp_path / "out"
    bitwright.quantize(path, out=out, judged=False, samples=8, task="embedding")
    theirs = SentenceTransformer(str(path), device="cpu").encode(texts[:4])
    for library in (bitwright.load(path, task="embedding"), bitwright.load(out), SentenceTransformer(str(out))):
        assert cosines(np.asarray(library.encode(texts[:4])), theirs).min() > 0.98
    assert json.loads((out / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]


def test_a_head_that_only_torch_could_read_does_not_make_the_result_s_task_unclear(
    tiny_model: TinyModel, tmp_path: Path, texts: list[str]
) -> None:
    path = tmp_path / "source"
    shutil.copytree(tiny_model("qwen3", "text-generation", tie_word_embeddings=False), path)
    edited(path / "config.json", architectures=["Qwen3Model"])
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    bitwright.quantize(path, out=tmp_path / "out", judged=False, samples=8)
    model = bitwright.load(tmp_path / "out")
    theirs = SentenceTransformer(str(path), device="cpu").encode(texts[:4])
    assert model.task == "embedding"
    assert cosines(np.asarray(model.encode(texts[:4])), theirs).min() > 0.98


def test_nothing_is_noted_where_nobody_named_a_task(tiny_model: TinyModel, tmp_path: Path) -> None:
    bitwright.quantize(tiny_model("bert", "token-classification"), out=tmp_path / "out", judged=False, samples=8)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"]
    assert TASK_KEY not in config


def test_the_command_that_repeats_a_run_names_the_task() -> None:
    assert "--task embedding" in reproducing_command("m", Path("out"), Recipe(), Texts(), "embedding")
    assert "--task" not in reproducing_command("m", Path("out"), Recipe(), Texts())
