"""A GGUF file is quantized as the float model that its codes stand for."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bitwright.checkpoints.gguf_write import write_gguf
from bitwright.errors import CheckpointError
from bitwright.files.directory import ModelDirectory
from bitwright.pipeline import quantize
from bitwright.pipeline.decoded import float_source
from bitwright.pipeline.exporting import verify_result
from bitwright.progress import Quiet
from bitwright.recipe import make_recipe
from bitwright.report.verdict import verdict_notes
from tests.gguf_files import LLAMA, give_tokens, small_llama, write_file

TinyModel = Callable[..., Path]


@pytest.fixture(scope="module")
def file(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A llama in 4 bits, as llama.cpp has it."""
    path = tmp_path_factory.mktemp("model")
    shutil.copytree(tiny_model("llama", hidden_size=64, intermediate_size=96, head_dim=16), path / "float")
    recipe = make_recipe({"scheme": "w4a16_g32", "targets": ["gguf"]})
    quantize(give_tokens(path / "float", texts), out=path / "out", recipe=recipe, judged=False, samples=8)
    write_gguf(ModelDirectory(path / "out"), path / "tiny.gguf")
    return path / "tiny.gguf"


def test_the_floats_are_those_that_others_read(file: Path, tmp_path: Path) -> None:
    """By the `gguf` package, which llama.cpp's authors keep; and by transformers, which also names the tensors."""
    gguf, transformers = pytest.importorskip("gguf"), pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    with float_source(file, None, Quiet()) as source:
        assert isinstance(source, ModelDirectory)
        values = load_file(source.path / "model.safetensors")
        ours = transformers.AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32)
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name
        folder = source.path
    assert not folder.exists()
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    down = gguf.dequantize(tensors["blk.1.ffn_down.weight"].data, tensors["blk.1.ffn_down.weight"].tensor_type)
    np.testing.assert_array_equal(values["model.layers.1.mlp.down_proj.weight"].numpy(), down)


@pytest.mark.parametrize(("name", "kind"), [("Q4_0", 2), ("Q4_1", 3), ("Q5_0", 6), ("Q8_0", 8), ("IQ4_NL", 20)])
def test_random_blocks_of_each_type(tmp_path: Path, name: str, kind: int) -> None:
    gguf = pytest.importorskip("gguf")
    random = np.random.default_rng(kind)
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    block = random.integers(0, 256, size, np.uint8)
    block[:4] = np.array([0.75, -0.5], np.float16).view(np.uint8)  # a scale, and a minimum or codes
    write_file(tmp_path / "m.gguf", LLAMA, small_llama(kind, block.tobytes()))
    with float_source(tmp_path / "m.gguf", None, Quiet()) as source:
        assert isinstance(source, ModelDirectory)
        found = load_file(source.path / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    want = gguf.dequantize(block[None], gguf.GGMLQuantizationType(kind))
    np.testing.assert_array_equal(found.numpy(), np.broadcast_to(want, (32, 32)))


def test_a_run_says_that_its_original_was_codes(file: Path, tmp_path: Path) -> None:
    recipe = make_recipe({"scheme": "w8a16", "targets": ["bitwright"]})
    record = quantize(file, out=tmp_path / "out", recipe=recipe, judged=False, samples=8).measured
    assert (record.model.name, record.model.source) == ("tiny.gguf", str(file))
    assert record.model.decoded == ("Q4_0",)
    assert record.size.source_bytes == file.stat().st_size
    assert "the original is what the codes of tiny.gguf (Q4_0) stand for" in " ".join(record.warnings)
    assert any("codes of tiny.gguf" in note for note in verdict_notes(record))
    assert str(file) in str(record.command)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.full
def test_a_result_is_judged_by_those_floats_and_verified_with_them_later(file: Path, tmp_path: Path) -> None:
    recipe = make_recipe({"scheme": "w8a16", "targets": ["bitwright"], "budget": {"max_loss": 0.5}})
    found = quantize(file, out=tmp_path / "out", recipe=recipe, samples=16, speed=False).measured.evaluation
    assert found is not None
    assert str(found.judge).startswith("transformers")
    [row] = verify_result(tmp_path / "out", ["bitwright"], progress=Quiet())  # finds the file again
    assert row.ok, row.detail


def test_what_a_killed_run_left_goes(file: Path, tmp_path: Path) -> None:
    left = tmp_path / ".out.bitwright" / "floats"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    with float_source(file, tmp_path / "out", Quiet()) as source:
        assert isinstance(source, ModelDirectory)
        assert source.path == left
        assert len(source.tensors) > 0
    assert not list(tmp_path.iterdir())
    file_without = tmp_path / "bad.gguf"
    file_without.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"bad\.gguf"), float_source(file_without, tmp_path / "out", Quiet()):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["bad.gguf"]
