"""`bitwright export` and `bitwright verify`: what they write, keep in the record, and exit with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bitwright
from bitwright.cli.verify import TARGET_NAMES
from bitwright.kernels import dispatch
from bitwright.pipeline.exporting import TARGETS
from bitwright.recipe import make_recipe
from bitwright.record import read_record

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(not dispatch.available(), reason="the native kernels are not built")


@pytest.mark.full  # a process for each runtime
def test_export_then_verify(run: Callable[..., Any], tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    result, out = tmp_path / "result", tmp_path / "onnx"
    recipe = make_recipe({"scheme": "w8a8_static", "targets": ["bitwright"]})
    bitwright.quantize(tiny_model("bert"), out=result, recipe=recipe, samples=40, judged=False)
    found = run("export", result, "--to", "onnx", "--out", out, "--json", "--quiet")
    assert found.code == 0, found.err
    told = json.loads(found.out)
    assert told["linears"] == {"static": 12}
    assert told["verify"]["ok"] is True
    assert (out / "onnx/model.onnx").stat().st_size == told["bytes"]
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    for folder in (result, out):
        assert [row.target for row in read_record(folder).verify or ()] == ["onnx"]
    found = run("verify", result, "--target", "bitwright", "--target", "onnx", "--export", out)
    assert found.code == 0, found.err
    assert found.out.count("as it must") == 2
    assert [row.target for row in read_record(result).verify or ()] == ["onnx", "bitwright"]
    assert run("export", result, "--out", out).code == 2


@pytest.mark.full
def test_verify_a_converted_checkpoint(
    run: Callable[..., Any], tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    source, result, out = (
        tiny_model("llama", hidden_size=64, intermediate_size=96, head_dim=16),
        tmp_path / "r",
        tmp_path / "g",
    )
    recipe = make_recipe({"scheme": "w4a16_g32", "targets": ["bitwright"]})
    bitwright.quantize(source, out=result, recipe=recipe, samples=40, judged=False)
    assert run("convert", result, "--to", "gptq", "--out", out).code == 0
    for checked in ([out, "--target", "gptq"], [result, "--target", "gptq", "--target", "awq", "--export", out]):
        found = run("verify", *checked, "--json", "--quiet")
        rows = {row["target"]: row for row in json.loads(found.out)}
        assert rows["gptq"]["ok"], rows
        assert {"relative_error", "engine_top1_agreement", "seconds"} <= rows["gptq"]["checks"].keys()
    assert rows["awq"]["ok"] is False  # that export is none
    found = run("verify", result, "--target", "engine", "--source", source)
    assert found.code == 0, found.out
    assert {"gptq", "engine"} <= {row.target for row in read_record(result).verify or ()}


def test_targets_are_those_of_the_pipeline() -> None:
    assert TARGET_NAMES == TARGETS
