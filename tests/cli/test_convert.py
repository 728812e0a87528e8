"""`bitwright inspect` and `bitwright convert` on what another tool wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitwright.checkpoints.convert import TARGETS
from bitwright.cli import app
from bitwright.cli.convert import FORMAT_NAMES
from bitwright.errors import InputError
from tests.checkpoints import other_tools as tools
from tests.checkpoints.other_tools import write_model
from tests.runtime.test_other_tools import SIZE


def run(*arguments: Any) -> None:
    app.main([str(argument) for argument in arguments], standalone_mode=False)


def test_the_formats_of_the_option_are_those_that_are_written() -> None:
    assert (*TARGETS, "gguf") == FORMAT_NAMES


def test_inspect_says_what_a_checkpoint_holds_and_how_it_runs(
    tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tiny_model("llama", tie_word_embeddings=False, **SIZE), tmp_path / "out", "gptq")
    run("inspect", tmp_path / "out", "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["runs_on"], found["problems"]) == ("gptq", "engine", [])
    assert 4 < found["bits_per_weight"] < 6  # codes, and a scale, a zero point and an index for 32
    row = next(row for row in found["layers"] if row["name"] == "model.layers.*.mlp.up_proj")
    assert (row["number"], row["scheme"], row["runs_as"]) == (2, "int4 g32", "int4 g32×int8")
    assert found["operators"]["attention"] == 2
    run("inspect", tmp_path / "out")
    text = capsys.readouterr().out
    assert "llama, text-generation: gptq" in text
    assert max(map(len, text.splitlines())) <= 80


def test_inspect_names_what_runs_in_another_way(
    tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tiny_model("llama", tie_word_embeddings=False, **SIZE), tmp_path / "out", "fp8")
    run("inspect", tmp_path / "out")
    told = capsys.readouterr()
    assert "14 × FP8 linears with a scale per 32×32 block run as floats" in " ".join(told.err.split())
    assert "floats" in told.out


def test_convert_tells_what_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = {"quant_method": "gptq", "bits": 8, "group_size": 32, "dynamic": {"+:.*down.*": {"bits": 4}}}
    modules = {
        f"model.layers.0.mlp.{name}": tools.gptq(64, 64, bits=bits)[0] for name, bits in (("up", 8), ("down", 4))
    }
    tools.save(tmp_path / "in", {"quantization_config": said}, modules)
    with pytest.raises(InputError, match="1 × it has codes of 8 bits"):
        run("convert", tmp_path / "in", "--to", "awq", "--out", tmp_path / "out")
    run("convert", tmp_path / "in", "--to", "awq", "--out", tmp_path / "out", "--allow-loss")
    told = capsys.readouterr()
    assert "awq, 1 quantized linears" in " ".join(told.out.split())
    assert "lost: 1 × it has codes of 8 bits; AutoAWQ's have 4, so it becomes 16-bit floats" in " ".join(
        told.err.split()
    )
    run("convert", tmp_path / "in", "--to", "compressed-tensors", "--out", tmp_path / "all", "--json")
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["losses"] == []
    assert f"writing {found['tensor_bytes']:,} bytes of tensors as compressed-tensors" in " ".join(told.err.split())
