"""Files of a model directory: what is read of them, and what is refused before anything is loaded."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitwright.errors import CheckpointError, ModelError
from bitwright.files import reading
from bitwright.files.directory import ModelDirectory, license_of, source_bytes, source_files, weight_files
from bitwright.models.load import load_model


@pytest.fixture
def copy(tiny_model, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model("bert"), tmp_path / "model"))


def shard(path: Path) -> list[str]:
    """Split the weights of a model directory in two, with an index."""
    tensors = load_file(path / "model.safetensors")
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    where = {tensor: names[i % 2] for i, tensor in enumerate(sorted(tensors))}
    for name in names:
        save_file({t: tensors[t] for t in tensors if where[t] == name}, path / name, metadata={"format": "pt"})
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (path / "model.safetensors").unlink()
    return names


def test_sharded_weights_load_as_the_single_file_does(tiny_model, copy):
    names = shard(copy)
    assert [file.name for file in ModelDirectory(copy).weight_files] == names
    ours, whole = load_model(copy).model.state_dict(), load_model(tiny_model("bert")).model.state_dict()
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "not an index of shards"),
        ("[]", "not an index of shards"),
        ('{"weight_map": []}', "not an index of shards"),
        ('{"weight_map": {"a": ["b"]}}', "not an index of shards"),
        ('{"weight_map": {}}', "names no shard"),
        ('{"weight_map": {"a": "../secret.safetensors"}}', "not the name of a weight file in this directory"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "not the name of a weight file in this directory"),
        ('{"weight_map": {"a": 1}}', "not the name of a weight file in this directory"),
        ('{"weight_map": {"a": "absent.safetensors"}}', "shard absent.safetensors of 1 is missing"),
    ],
)
def test_an_index_that_lies_is_refused(copy, index, message):
    shard(copy)
    (copy / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=message):
        _ = ModelDirectory(copy).tensors


def test_size_counts_only_what_is_loaded(copy):
    size = (copy / "model.safetensors").stat().st_size
    torch.save({}, copy / "pytorch_model.bin")
    (copy / "onnx").mkdir()
    (copy / "onnx" / "model.onnx").write_bytes(bytes(1000))
    assert source_bytes(copy) == size


def test_files_are_all_but_the_hidden_ones(copy):
    (copy / ".cache").mkdir()
    (copy / ".cache" / "lock").touch()
    (copy / "1_Pooling").mkdir()
    (copy / "1_Pooling" / "config.json").touch()
    names = [file.relative_to(copy).as_posix() for file in source_files(copy)]
    assert "1_Pooling/config.json" in names
    assert not any(name.startswith(".") for name in names)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(names)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_fingerprint_changes_with_one_byte_of_config_or_weights(copy, name):
    before = ModelDirectory(copy).fingerprint
    assert before == ModelDirectory(copy).fingerprint
    content = bytearray((copy / name).read_bytes())
    content[-1] ^= 1
    (copy / name).write_bytes(content)
    assert ModelDirectory(copy).fingerprint != before


def test_fingerprint_is_of_the_model_not_of_its_place_or_readme(tiny_model, copy):
    (copy / "README.md").write_text("hello")
    assert ModelDirectory(copy).fingerprint == ModelDirectory(tiny_model("bert")).fingerprint


def test_fingerprint_is_the_hash_of_names_sizes_and_bytes(copy):
    """As ever: records and caches of earlier releases hold it."""
    for _ in range(2):
        digest = hashlib.sha256()
        for file in [copy / "config.json", *sorted(copy.glob("model*.safetensors"))]:
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode() + file.read_bytes())
        assert ModelDirectory(copy).fingerprint == digest.hexdigest()
        if (copy / "model.safetensors").exists():
            shard(copy)


def test_side_files_are_parsed_once_and_the_bytes_of_the_config_are_kept(copy, monkeypatch):
    read = []
    real = reading.read_bytes
    for module in ("directory", "folder"):
        name = f"bitwright.files.{module}.read_bytes"
        monkeypatch.setattr(name, lambda path: (read.append(path.name), real(path))[1])
    directory = ModelDirectory(copy)
    for _ in range(2):
        assert directory.config["model_type"] == "bert"
        assert directory.transformer.object("tokenizer_config.json") is not None
        assert directory.package.json("modules.json") is None
        assert not directory.is_quantized
        directory.check_float()
        _ = directory.fingerprint, directory.tensors
    assert sorted(read) == ["config.json", "tokenizer_config.json"]
    assert directory.tensors is directory.tensors


@pytest.mark.parametrize(
    ("files", "license_"),
    [
        ({"README.md": "---\ntags:\n- x\nlicense: apache-2.0\n---\n# T"}, "apache-2.0"),
        ({"README.md": '---\nlicense: "mit"\n---\n', "LICENSE": "Apache License"}, "mit"),
        ({"README.md": "license: mit", "LICENSE.txt": "  Apache License\n Version 2.0"}, "apache-2.0"),
        ({"LICENSE": "Ask my aunt."}, "LICENSE"),
        ({"README.md": "---\nlanguage: en\n---\n"}, None),
        ({}, None),
    ],
)
def test_license(tmp_path, files, license_):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert license_of(tmp_path) == license_


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "no config.json"),
        ("{", "cannot be read as JSON"),
        ("\ud800", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "config.json: this file must hold a JSON object"),
        ("{}", "no model_type"),
        ('{"model_type": 5}', "no model_type"),
        (
            '{"model_type": "bert", "quantization_config": {"quant_method": "gptq"}}',
            r"already quantized \(quant_method 'gptq'\); give the original",
        ),
    ],
)
def test_a_config_that_is_none_is_refused(tmp_path, config, message):
    if config is not None:
        (tmp_path / "config.json").write_bytes(config.encode("utf-8", "surrogatepass"))
    with pytest.raises(ModelError, match=message):
        ModelDirectory(tmp_path).check_float()


def test_missing_directory_and_missing_weights_say_what_to_do(tmp_path, copy):
    with pytest.raises(ModelError, match="no such directory; give a model directory or a hub name"):
        ModelDirectory(tmp_path / "absent")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no weights; one of these files is needed: model\.safetensors, "):
        _ = ModelDirectory(copy).tensors


def test_a_relative_path_is_meant_where_it_was_opened(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, elsewhere = copy.parent / "here", copy.parent / "elsewhere"
    for folder in (here, elsewhere / "inner"):
        folder.mkdir(parents=True)
    (here / "link").symlink_to(copy)
    (here / "out").symlink_to(elsewhere / "inner")
    (elsewhere / "model").symlink_to(copy)
    monkeypatch.chdir(here)
    opened = [ModelDirectory(Path(name)) for name in ("link", "./link/.", "../model", "out/../model", str(copy))]
    with pytest.raises(ModelError, match=r"^absent: no such directory"):
        ModelDirectory(Path("absent"))
    monkeypatch.chdir("/")
    assert [one.path for one in opened] == [here / "link", here / "link", copy, elsewhere / "model", copy]
    assert all(one.config["model_type"] == "bert" and one.tensors for one in opened)


def test_a_name_that_no_file_can_have_is_a_file_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert ModelDirectory(tmp_path).package.json("a" * 5000) is None
    for name, why in (("a" * 5000, "is missing"), ("\ud800", "is not an index of shards")):
        index = {"weight_map": {"x": f"{name}.safetensors"}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match=why):
            weight_files(tmp_path)
