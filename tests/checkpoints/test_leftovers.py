"""Every file of a source model is kept, or listed with the reason; nothing that can run code is kept."""

import json
import os
from pathlib import Path

import pytest

from bitwright.checkpoints.leftovers import MAX_COPIED_BYTES, split_source_files
from bitwright.checkpoints.result import write_file
from bitwright.files.directory import ModelDirectory
from tests.nested import nested

KEPT = [
    "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "LICENSE", "LICENSE-2.0", "README.md",
    "assets/plot.png", "config.json", "modules.json", "spiece.model", "tokenizer.json", "tokenizer.model.v3",
    "vocab.txt",
]  # fmt: skip
READ = ["model.safetensors"]
LEFT_OUT = {
    "2_Dense/pytorch_model.bin": "weights",
    "RUN.PL": "unknown",
    "adapter_config.json": "weights",
    "colbert_linear.safetensors": "weights",
    "flax_model.msgpack": "copy",
    "handler.py": "code",
    "libcustom.so": "code",
    "model-00001-of-00002.safetensors": "copy",
    "model.fp16.safetensors": "copy",
    "model.safetensors.index.json": "copy",
    "model_head.pkl": "weights",
    "notes.pdf": "unknown",
    "onnx/config.json": "copy",
    "onnx/model.onnx": "copy",
    "openvino/openvino_model.xml": "copy",
    "pytorch_model.bin": "copy",
    "run": "unknown",
    "run.SH": "code",
    "rust_model.ot": "copy",
    "sparse_linear.pt": "weights",
    "tf_model.h5": "copy",
    "tokenizer.json.joblib": "weights",
    "training_args.bin": "training",
}
MODULES = [
    {"type": f"sentence_transformers.models.{kind}", "path": path}
    for kind, path in (("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in (*KEPT, *READ, *LEFT_OUT, ".gitattributes", ".git/config", ".cache/huggingface/x.metadata"):
        write_file(tmp_path / name, json.dumps(MODULES).encode() if name == "modules.json" else b"{}")
    return tmp_path


def test_every_file_of_the_source_is_accounted_for(source: Path) -> None:
    kept, left_out = split_source_files(ModelDirectory(source))
    assert [str(file) for file in kept] == KEPT
    assert {file.name: file.reason for file in left_out} == LEFT_OUT
    assert {file.bytes for file in left_out} == {2}


def test_what_was_read_is_not_left_over(source: Path) -> None:
    (source / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    left_out = {file.name for file in split_source_files(ModelDirectory(source))[1]}
    assert set(LEFT_OUT) - left_out == {"model-00001-of-00002.safetensors", "model.safetensors.index.json"}
    for name in ("model.safetensors.index.json", "model-00001-of-00002.safetensors"):
        (source / name).unlink()
    left_out = {file.name for file in split_source_files(ModelDirectory(source))[1]}
    assert "pytorch_model.bin" not in left_out


def test_what_is_large_and_of_no_tokenizer_is_not_copied(source: Path) -> None:
    for name in ("dump.json", "tokenizer.json"):
        (source / name).write_bytes(b"")
        os.truncate(source / name, MAX_COPIED_BYTES + 1)
    kept, left_out = split_source_files(ModelDirectory(source))
    assert [(file.name, file.bytes) for file in left_out if file.reason == "large"] == [("dump.json", (64 << 20) + 1)]
    assert Path("tokenizer.json") in kept


def test_a_name_that_is_no_text_can_be_told(source: Path) -> None:
    (source / os.fsdecode(b"\xff.pt")).write_bytes(b"")
    names = [file.name for file in split_source_files(ModelDirectory(source))[1]]
    assert "\\xff.pt" in names


def test_every_file_of_both_roots_is_accounted_for(source: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The Transformer's files move beside modules.json; what is like one of its files there is listed."""
    apart = nested(source, tmp_path_factory.mktemp("apart"))
    inner = {f"0_Transformer/{name}" for name in (*KEPT, *READ, *LEFT_OUT)}
    moved = {name: apart / "0_Transformer" / name for name in KEPT if (apart / "0_Transformer" / name).is_file()}
    kept, left_out = split_source_files(ModelDirectory(apart))
    expected = moved | {name: apart / name for name in KEPT if name not in moved}
    assert {str(name): file for name, file in kept.items()} == expected
    assert list(kept) == sorted(kept)
    assert {file.name.removeprefix("0_Transformer/"): file.reason for file in left_out} == LEFT_OUT
    assert all(file.name in inner or file.name.startswith("2_Dense/") for file in left_out)


def test_names_that_both_roots_have(source: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    apart = nested(source, tmp_path_factory.mktemp("apart"))
    folder = "0_Transformer"
    read = ["added_tokens.json", "chat_template.jinja", "additional_chat_templates/a.jinja", "tokenizer.json",
            "tokenizer.model.v3", "spiece.model", "config.json", "sentence_bert_config.json"]  # fmt: skip
    for name in (*read, "plot.png", "eval/x.json", "NOTICE.txt", "LICENSE", f"{folder}/LICENSE", f"{folder}/README.md",
                 f"{folder}/1_Pooling/config.json", f"{folder}/modules.json", f"{folder}/eval/x.json",
                 f"{folder}/config_sentence_transformers.json"):  # fmt: skip
        (apart / name).parent.mkdir(parents=True, exist_ok=True)
        (apart / name).write_bytes(b"[]")
    kept, left_out = split_source_files(ModelDirectory(apart))
    assert {file.name for file in left_out if file.reason == "unread"} == set(read)
    stay = {"plot.png", "eval/x.json", "NOTICE.txt", "LICENSE", "README.md", "modules.json", "1_Pooling/config.json"}
    assert {str(name): file for name, file in kept.items() if str(name) in stay} == {
        name: apart / name for name in stay
    }
    aside = {str(name) for name in kept if name.parts[0] == folder}
    assert aside == {
        f"{folder}/{name}"
        for name in ("LICENSE", "README.md", "1_Pooling/config.json", "modules.json", "eval/x.json",
                     "config_sentence_transformers.json")
    }  # fmt: skip
    assert all(kept[Path(name)] == apart / name for name in aside)
    assert kept[Path("config.json")] == apart / folder / "config.json"
    every = {file for file in apart.rglob("*") if file.is_file() and not any(p.startswith(".") for p in file.parts)}
    told = {apart / file.name for file in left_out} | set(kept.values())
    assert every - told == {apart / folder / "model.safetensors"}


@pytest.mark.parametrize("folder", ["1_Pooling/inner", "0_Transformer"])
def test_folders_inside_folders(source: Path, tmp_path_factory: pytest.TempPathFactory, folder: str) -> None:
    """A module's own folder stays, wherever it is: around the Transformer's, or inside it."""
    apart = nested(source, tmp_path_factory.mktemp("apart"), folder)
    if folder == "0_Transformer":
        (apart / "1_Pooling").rename(apart / folder / "1_Pooling")
        modules = json.loads((apart / "modules.json").read_text())
        (apart / "modules.json").write_text(json.dumps([modules[0], modules[1] | {"path": f"{folder}/1_Pooling"}]))
    directory = ModelDirectory(apart)
    kept, _ = split_source_files(directory)
    names = {str(name) for name in kept}
    assert {"config.json", "tokenizer.json"} <= names
    pooling = "1_Pooling/config.json" if folder != "0_Transformer" else "0_Transformer/1_Pooling/config.json"
    assert kept[Path(pooling)] == apart / pooling
    assert not any(name.startswith("1_Pooling/inner") for name in names)
