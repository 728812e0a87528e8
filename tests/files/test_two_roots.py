"""A Transformer in a folder of its own: each file is read where sentence-transformers reads it, and nowhere else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer

from bitwright.errors import CheckpointError, ModelError
from bitwright.files.directory import ModelDirectory, config_file, source_bytes, weight_files
from bitwright.files.sentences import read_sentences
from bitwright.files.task import find_task
from bitwright.models.load import load_model
from bitwright.runtime.load import load
from tests.nested import FOLDER, TEXTS, flat_embedder, flat_reranker, nested, rows

TinyModel = Callable[..., Path]


@pytest.fixture
def flat(tiny_model: TinyModel, tmp_path: Path) -> Path:
    return flat_embedder(tiny_model("bert"), tmp_path / "flat")


@pytest.fixture
def apart(flat: Path, tmp_path: Path) -> Path:
    return nested(flat, tmp_path / "apart")


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def set_path(model: Path, path: str, kind: str = "Transformer") -> Path:
    """The model with another folder in the first row of modules.json."""
    modules = json.loads((model / "modules.json").read_text())
    write(model / "modules.json", [*rows((kind, path)), *modules[1:]])
    return model


@pytest.mark.parametrize("folder", [FOLDER, f"{FOLDER}/", "the model", "a/b", "a//b", "./a", "0_Ünï"])
def test_all_is_read_as_of_the_flat_twin(flat: Path, tmp_path: Path, folder: str) -> None:
    one, two = ModelDirectory(flat), ModelDirectory(nested(flat, tmp_path / "apart", folder))
    assert (one.is_flat, two.is_flat) == (True, False)
    assert two.transformer.path == tmp_path / "apart" / folder
    assert one.config == two.config
    assert one.fingerprint == two.fingerprint
    assert [file.name for file in one.weight_files] == [file.name for file in two.weight_files]
    assert find_task(one) == find_task(two) == "embedding"
    read = read_sentences(two, "embedding")
    assert read == read_sentences(one, "embedding")
    assert (read.max_tokens, read.default_prompt, read.truncate_dim, read.similarity) == (48, "query", 24, "dot")
    assert read.pooling.modes == ("cls",)
    assert load_model(two).max_tokens == load_model(one).max_tokens == 48


def test_what_is_asked_by_path_is_found(flat: Path, apart: Path) -> None:
    assert config_file(apart) == apart / FOLDER / "config.json"
    assert weight_files(apart) == [apart / FOLDER / "model.safetensors"]
    assert source_bytes(apart) == source_bytes(flat)


def test_outputs_are_the_library_s(apart: Path) -> None:
    theirs = SentenceTransformer(str(apart), device="cpu")
    ours = load(apart)
    assert ours.path == apart
    assert abs(ours.encode(TEXTS) - theirs.encode(TEXTS)).max() < 1e-6
    assert ours.encode(TEXTS).shape == (3, 24)


def test_a_model_beside_modules_json_is_not_read(tiny_model: TinyModel, flat: Path, apart: Path) -> None:
    """Old repositories have one there, for other programs. Its tokenizer, limit and weights say nothing either."""
    for file in tiny_model("bert", noise=2.0).iterdir():
        shutil.copy(file, apart / file.name)
    write(apart / "sentence_bert_config.json", {"max_seq_length": 8, "do_lower_case": True})
    write(apart / "added_tokens.json", {"text": 5})
    (apart / "chat_template.jinja").write_text("{{ messages }}")
    assert ModelDirectory(apart).fingerprint == ModelDirectory(flat).fingerprint
    theirs = SentenceTransformer(str(apart), device="cpu").encode(TEXTS)
    assert (load(apart).encode(TEXTS) == load(flat).encode(TEXTS)).all()
    assert abs(load(apart).encode(TEXTS) - theirs).max() < 1e-6


def test_settings_of_the_library_in_the_folder_are_not_read(flat: Path, apart: Path) -> None:
    write(apart / FOLDER / "modules.json", rows(("Transformer", ""), ("Pooling", "x")))
    write(apart / FOLDER / "config_sentence_transformers.json", {"prompts": {"other": "x"}, "truncate_dim": 2})
    assert read_sentences(ModelDirectory(apart), "embedding") == read_sentences(ModelDirectory(flat), "embedding")


def test_a_cross_encoder_is_the_library_s(tiny_model: TinyModel, tmp_path: Path) -> None:
    flat = flat_reranker(tiny_model("bert", "sequence-classification", num_labels=1), tmp_path / "flat")
    apart = nested(flat, tmp_path / "apart")
    pairs = [("a question", text) for text in TEXTS]
    ours = load(apart)
    assert ours.task == "sequence-classification"
    theirs = CrossEncoder(str(apart), device="cpu").predict(pairs)
    assert abs(ours.predict(pairs) - theirs).max() < 1e-6
    assert (ours.encode(pairs) == load(flat).encode(pairs)).all()


@pytest.mark.parametrize("said", [None, {"model_type": "SentenceTransformer"}])
def test_where_the_library_looks_elsewhere_is_refused(tiny_model: TinyModel, tmp_path: Path, said: Any) -> None:
    """CrossEncoder follows modules.json only if that is a CrossEncoder's; else it reads a model beside it."""
    flat = flat_reranker(tiny_model("bert", "sequence-classification", num_labels=1), tmp_path / "flat")
    apart = nested(flat, tmp_path / "apart")
    (apart / "config_sentence_transformers.json").unlink()
    if said is not None:
        write(apart / "config_sentence_transformers.json", said)
    with pytest.raises((OSError, ValueError), match=r"config\.json"):
        CrossEncoder(str(apart), device="cpu", local_files_only=True)
    with pytest.raises(ModelError, match=f"CrossEncoder .* does not follow modules.json. Give {apart / FOLDER}"):
        load(apart, task="sequence-classification")
    load(apart / FOLDER)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("../flat", "outside the model's directory"),
        ("a/../../flat", "outside the model's directory"),
        ("/tmp", "outside the model's directory"),
        ("/", "outside the model's directory"),
        (f"{FOLDER}\0", "outside the model's directory"),
        (".", "the path of a module is '.'"),
        ("./.", r"the path of a module is './.'"),
        (".hidden", "which is hidden"),
        ("a/.hidden", "which is hidden"),
        ("absent", "there is no such folder"),
        (f"{FOLDER}/config.json", "there is no such folder"),
        ("a" * 5000, "there is no such folder"),
        ("1_Pooling", "and Pooling in '1_Pooling'"),
    ],
)
def test_a_folder_that_is_none_is_refused(apart: Path, path: str, message: str) -> None:
    for hidden in (".hidden", "a/.hidden"):
        shutil.copytree(apart / FOLDER, apart / hidden)
    set_path(apart, path)
    for how in (load, load_model, weight_files, config_file):
        with pytest.raises(ModelError, match=message) as caught:
            how(apart)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("path", ["", ".", FOLDER])
def test_a_module_where_the_transformer_will_be_is_refused(apart: Path, path: str) -> None:
    write(apart / "modules.json", rows(("Transformer", FOLDER), ("Pooling", path)))
    with pytest.raises(ModelError, match=r"give Pooling a folder of its own|the path of a module is"):
        load(apart)


def test_links_out_of_the_model_are_refused(flat: Path, apart: Path, tmp_path: Path) -> None:
    (apart / "linked").symlink_to(flat)
    with pytest.raises(ModelError, match="outside the model's directory"):
        ModelDirectory(set_path(apart, "linked"))
    (apart / "linked").unlink()
    (apart / FOLDER / "vocab.txt").symlink_to("/etc/hostname")
    with pytest.raises(ModelError, match="outside the model's directory"):
        ModelDirectory(set_path(apart, FOLDER))


def test_shards_stay_in_the_folder(apart: Path) -> None:
    (apart / FOLDER / "model.safetensors").rename(apart / "model.safetensors")
    index = apart / FOLDER / "model.safetensors.index.json"
    write(index, {"weight_map": {"a": "../model.safetensors"}})
    with pytest.raises(CheckpointError, match="is not the name of a weight file"):
        load(apart)
    index.unlink()
    with pytest.raises(ModelError, match=f"{FOLDER}: there are no weights"):
        load(apart)


def test_a_link_inside_the_model_is_followed(flat: Path, apart: Path) -> None:
    (apart / FOLDER).rename(apart / "real")
    (apart / FOLDER).symlink_to("real", target_is_directory=True)
    assert (load(apart).encode(TEXTS) == load(flat).encode(TEXTS)).all()


def test_a_snapshot_of_the_hub_is_read(flat: Path, apart: Path, tmp_path: Path) -> None:
    """Its files are links to blobs, which lie outside of it; a tokenizer may name those that it has."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / ("0" * 40), tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    settings = json.loads((apart / FOLDER / "tokenizer_config.json").read_text())
    write(apart / FOLDER / "tokenizer_config.json", settings | {"vocab_file": "vocab.txt"})
    (apart / FOLDER / "vocab.txt").write_text("a\n")
    for number, file in enumerate(sorted(file for file in apart.rglob("*") if file.is_file())):
        shutil.copy(file, blobs / str(number))
        link = snapshot / file.relative_to(apart)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / str(number))
    assert (load(snapshot).encode(TEXTS) == load(flat).encode(TEXTS)).all()


def test_another_first_module_says_what_is_read(apart: Path) -> None:
    for file in (apart / FOLDER).iterdir():
        shutil.copy(file, apart)
    with pytest.raises(ModelError, match=r"the first module is CLIPModel\. Bitwright reads a Transformer, then"):
        load(set_path(apart, "0_CLIPModel", "CLIPModel"))


def test_without_modules_json_the_folder_is_named(apart: Path) -> None:
    (apart / "modules.json").unlink()
    with pytest.raises(ModelError, match=rf"no config.json; {apart / FOLDER} has one, .* give that directory"):
        load(apart)
    shutil.rmtree(apart / FOLDER)
    with pytest.raises(ModelError, match="a transformers model directory has one"):
        load(apart)
