"""Every file of a source model is kept, or listed with the reason; nothing that can run code is kept."""

import json
import os
from pathlib import Path

import pytest

from bitwright.checkpoints.leftovers import MAX_COPIED_BYTES, split_source_files
from bitwright.checkpoints.result import write_file
from bitwright.files.directory import ModelDirectory

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
