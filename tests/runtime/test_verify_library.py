"""Runtimes of others as judges: transformers for what compressed-tensors, GPTQ, AutoAWQ and GGUF hold."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import bitwright
from bitwright.checkpoints.convert import convert
from bitwright.checkpoints.gguf_write import write_gguf
from bitwright.files.directory import ModelDirectory
from bitwright.kernels import dispatch
from bitwright.recipe import make_recipe
from bitwright.runtime.expected import Expected, expect
from bitwright.runtime.library_formats import floats_of_codes
from bitwright.runtime.verify_library import Given, beside_engine, check_library, rounds_inputs
from tests.checkpoints import other_tools as tools
from tests.families import write_model
from tests.gguf_files import give_tokens

TinyModel = Callable[..., Path]
WIDE = {"hidden_size": 64, "intermediate_size": 96}
native = pytest.mark.skipif(not dispatch.available(), reason="the native kernels are not built")


def given(expected: Expected) -> Given:
    return Given(expected.ids_BT, expected.plain_BV, expected.generic_BV)


def spoil(folder: Path, out: Path, suffix: str) -> Path:
    """A copy in which one linear's scales are half too large."""
    out.mkdir()
    for file in folder.iterdir():
        if file.is_file():
            (out / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(tensors) if name.endswith(suffix))
    tensors[name] = (tensors[name].float() * 1.5).to(tensors[name].dtype)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@native
def test_a_mixture_whose_inputs_are_rounded_is_judged_as_a_rounding(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Fallbacks to 8 bits beside 4 bits: transformers rounds the inputs of those, as the file says."""
    pytest.importorskip("compressed_tensors")
    rules = [{"match": "*.1.*", "scheme": "w8a8"}]
    recipe = make_recipe({"scheme": "w4a16_g32", "rules": rules, "targets": ["bitwright", "transformers"]})
    out = tmp_path / "out"
    source = tiny_model("bert", **WIDE)
    bitwright.quantize(source, out=out, recipe=recipe, samples=40, judged=False)
    assert rounds_inputs(ModelDirectory(out).config)
    expected = expect(ModelDirectory(out))
    right = check_library(out, "transformers", given(expected))
    assert right.ok, right.detail
    assert right.checks["distance"] > 1e-3  # more than the order of sums
    wrong = check_library(spoil(out, tmp_path / "wrong", "weight_scale"), "transformers", given(expected))
    assert wrong.ok is False
    assert "differ by" in wrong.detail


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_codes_of_gptq_become_their_numbers(tmp_path: Path, bits: int, version: str) -> None:
    made = {"order": bits == 4, "index": bits != 2}
    tensors, numbers = tools.gptq(64, 96, bits=bits, sym=False, less_one=version == "gptq", **made)
    said = {"quant_method": "gptq", "bits": bits, "checkpoint_format": version}
    folder = tools.save(tmp_path, {"quantization_config": said}, {"m": tensors}, bias=torch.ones(2))
    found = floats_of_codes(str(folder))
    assert np.array_equal(found["m.weight"].numpy(), numbers)
    assert set(found) == {"m.weight", "bias"}


def test_codes_of_autoawq_become_their_numbers(tmp_path: Path) -> None:
    tensors, numbers = tools.awq(32, 64)
    folder = tools.save(tmp_path, {"quantization_config": {"quant_method": "awq"}}, {"m": tensors})
    assert np.array_equal(floats_of_codes(str(folder))["m.weight"].numpy(), numbers)


@native
def test_each_format_gives_the_numbers_of_the_result(texts: list[str], tmp_path: Path) -> None:
    source, result = tmp_path / "source", tmp_path / "result"
    write_model(source, "llama", "text-generation", texts, **WIDE, head_dim=16)
    give_tokens(source, texts)
    recipe = make_recipe({"scheme": "w4a16_g32", "targets": ["bitwright"]})
    bitwright.quantize(source, out=result, recipe=recipe, samples=40, judged=False)
    opened = ModelDirectory(result)
    expected = expect(opened)
    for to in ("gptq", "awq"):
        convert(opened, to, tmp_path / to)
        right = check_library(tmp_path / to, to, given(expected))
        assert right.ok, right.detail
        wrong = check_library(spoil(tmp_path / to, tmp_path / f"{to}-wrong", "scales"), to, given(expected))
        assert wrong.ok is False
    pytest.importorskip("gguf")
    write_gguf(opened, tmp_path / "model.gguf")
    right = check_library(tmp_path / "model.gguf", "gguf", given(expected))
    assert right.ok, right.detail
    assert right.outputs is not None
    beside = beside_engine(right.outputs, expected.engine_BV, "text-generation")
    assert 0 <= beside["engine_top1_agreement"] <= 1  # of random weights
    assert 0 < beside["engine_logit_error"] < 0.2


@native
def test_bitnet_gives_what_the_result_gives(texts: list[str], tmp_path: Path) -> None:
    source, result = tmp_path / "source", tmp_path / "result"
    write_model(source, "bitnet", "text-generation", texts, **WIDE, head_dim=16)
    recipe = make_recipe({"scheme": "ternary_a8_tensor", "method": "rtn", "targets": ["bitnet"]})
    bitwright.quantize(source, out=result, recipe=recipe, samples=40, judged=False)
    expected = expect(ModelDirectory(result))
    convert(ModelDirectory(result), "bitnet", tmp_path / "bitnet")
    right = check_library(tmp_path / "bitnet", "bitnet", given(expected))
    assert right.ok, right.detail
    wrong = check_library(spoil(tmp_path / "bitnet", tmp_path / "wrong", "weight_scale"), "bitnet", given(expected))
    assert wrong.ok is False


def test_a_file_that_transformers_cannot_load_fails(tmp_path: Path) -> None:
    tensors, _ = tools.gptq(32, 64)
    del tensors["scales"]
    folder = tools.save(tmp_path, {"quantization_config": {"quant_method": "gptq", "bits": 4}}, {"m": tensors})
    (folder / "config.json").write_text('{"model_type": "bert", "quantization_config": {"quant_method": "gptq"}}')
    nothing = np.zeros((1, 3), np.float32)
    found = check_library(folder, "gptq", Given(np.ones((1, 3), np.int64), nothing, nothing))
    assert found.ok is False
    assert found.detail.startswith("loading or running failed: ")
