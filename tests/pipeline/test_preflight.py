"""What a target cannot have is refused before anything is calibrated, and what it can is written without a loss."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitwright.checkpoints.convert import convert
from bitwright.checkpoints.gguf_write import write_gguf
from bitwright.errors import BitwrightError, TargetError
from bitwright.files.directory import ModelDirectory
from bitwright.pipeline import quantize
from bitwright.pipeline.exporting import verify_formats
from bitwright.pipeline.opened import open_model
from bitwright.recipe import make_recipe
from tests.gguf_files import give_tokens

TinyModel = Callable[..., Path]
FORMATS = ("gptq", "awq", "bitnet", "gguf")
# Scheme -> the formats that hold all of it.
HELD = {
    "w4a16_g32": {"gptq", "awq", "gguf"},
    "w4a16_channel": {"gptq", "awq", "gguf"},
    "w4a16_g32_asym": {"gptq", "awq"},
    "w3a16_g32": {"gptq", "gguf"},
    "w8a16": set[str](),  # a scale of 32 bits
    "w4a8_g32": set[str](),  # inputs
    "nf4_g32": set[str](),
    "ternary_a8_tensor": {"bitnet"},
    "ternary_tensor": set[str](),  # its inputs are rounded there
}
SIZE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}


def recipe(target: str, **how: Any) -> Any:
    return make_recipe({"targets": [target], **how})


def refused(source: Path, target: str, **how: Any) -> str:
    """Why a target cannot have a plan; "" if it can."""
    try:
        open_model(source).resolve(recipe(target, **how))
    except TargetError as error:
        return str(error)
    return ""


def converts(source: Path, to: str, out: Path) -> bool:
    try:
        if to == "gguf":
            write_gguf(ModelDirectory(source), out)
        else:
            convert(ModelDirectory(source), to, out)
    except BitwrightError:
        return False
    return True


@pytest.fixture(scope="module")
def llama(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    path = tmp_path_factory.mktemp("model") / "llama"
    shutil.copytree(tiny_model("llama", **SIZE), path)
    return give_tokens(path, texts)


@pytest.mark.parametrize(
    "scheme",
    [name if name in ("w4a16_g32", "w4a8_g32") else pytest.param(name, marks=pytest.mark.full) for name in HELD],
)
def test_a_format_is_refused_before_the_work_if_and_only_if_it_loses_something(
    llama: Path, tmp_path: Path, scheme: str
) -> None:
    accepted = {target for target in FORMATS if not refused(llama, target, scheme=scheme)}
    assert accepted == HELD[scheme]
    quantize(llama, out=tmp_path / "out", recipe=recipe("bitwright", scheme=scheme), judged=False, samples=8)
    assert {to for to in FORMATS if converts(tmp_path / "out", to, tmp_path / to)} == accepted
    assert {row.target for row in verify_formats(tmp_path / "out", FORMATS) if row.ok} == accepted


def test_a_refusal_says_what_to_change(llama: Path, tiny_model: TinyModel) -> None:
    why = refused(llama, "awq", scheme="w3a16_g32")
    assert "awq: 14 × it has codes of 3 bits; AutoAWQ's have 4" in why
    assert "of N, K = [64, 64] it holds w4a16_g64, w4a16_g32, w4a16_channel" in why.lower().replace(
        "of n, k", "of N, K"
    )
    odd = tiny_model("llama", intermediate_size=40, head_dim=16, hidden_size=64)
    why = refused(odd, "gptq", scheme="w4a16_channel")
    assert "N, K = [40, 64] are not multiples of 32" in why
    ffn = [{"match": "*.mlp.*", "scheme": "16bit"}]
    assert not refused(odd, "gptq", scheme="w4a16_channel", rules=ffn)
    assert "vllm takes packed codes only in multiples of 32" in refused(odd, "vllm", scheme="w4a16_channel", rules=[
        {"match": "*.gate_proj", "scheme": "16bit"}, {"match": "*.up_proj", "scheme": "16bit"}])  # fmt: skip
    assert not refused(odd, "vllm", scheme="w4a16_channel", rules=ffn)
    assert "int8" in refused(llama, "gptq", scheme="w4a16_g32", embeddings="int8")


def test_a_model_that_llama_cpp_has_no_words_for(tiny_model: TinyModel, llama: Path) -> None:
    assert "model_type is 'bert'; Bitwright writes GGUF" in refused(tiny_model("bert"), "gguf", scheme="w4a16")
    assert "tokenizer of type 'WordPiece'" in refused(tiny_model("llama"), "gguf", scheme="w4a16")


def test_groups_that_a_graph_cannot_cut(tiny_model: TinyModel) -> None:
    odd = tiny_model("bert", intermediate_size=40)
    assert "groups of 40 values are no multiple of 16" in refused(odd, "onnx", scheme="w4a16_channel")
    assert not refused(odd, "onnx", scheme="w8a8")


def test_the_engine_is_asked_before(tiny_model: TinyModel, llama: Path) -> None:
    assert not refused(llama, "engine", scheme="w4a16_g32")
    assert not refused(tiny_model("bert"), "engine", scheme="w8a8")
    assert "the engine does not" in refused(tiny_model("mixtral"), "engine", scheme="w4a16")
    assert "no linear is quantized" in refused(llama, "engine", scheme="16bit")
