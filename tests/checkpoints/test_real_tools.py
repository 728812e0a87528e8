"""What other tools really write is read right: their own readers are the reference (`real_tools.py`).

Each tool has an environment in build/tools, which nothing else needs; a tool without one is skipped by name:

    python -m venv build/tools/llmcompressor
    build/tools/llmcompressor/bin/pip install -c constraints.txt torch
    build/tools/llmcompressor/bin/pip install llmcompressor
"""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from bitwright.checkpoints.formats import read_checkpoint
from bitwright.files.directory import ModelDirectory
from bitwright.numerics.arrays import Bf16
from tests.checkpoints.real_tools import REFERENCE
from tests.families import write_model
from tests.pages import ROOT

SIZE = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 64, "num_hidden_layers": 1}  # fmt: skip
# Tool -> what it is asked for, and the format that our reader must see.
CASES = {
    "llmcompressor": {
        "W4A16": "compressed-tensors", "W4A16_ASYM": "compressed-tensors", "W8A16": "compressed-tensors",
        "W8A8": "compressed-tensors", "FP8_DYNAMIC": "compressed-tensors", "FP8_BLOCK": "compressed-tensors",
        "NVFP4A16": "compressed-tensors", "MXFP4A16": "compressed-tensors", "MXFP8A16": "compressed-tensors",
        "MXFP6A16": "compressed-tensors",
    },
    "auto_round": {
        "auto_round,sym,4": "auto-round", "auto_round,asym,4": "auto-round", "auto_round,sym,2": "auto-round",
        "auto_round:auto_awq,asym,4": "auto-round", "auto_gptq,sym,4": "gptq", "auto_awq,asym,4": "awq",
    },
    "gptqmodel": {
        "sym,plain,4": "gptq", "asym,plain,4": "gptq", "sym,order,4": "gptq", "sym,plain,3": "gptq",
        "sym,plain,8": "gptq",
    },
    "modelopt": {
        "FP8_DEFAULT_CFG": "modelopt", "NVFP4_DEFAULT_CFG": "modelopt", "MXFP8_DEFAULT_CFG": "modelopt",
        "MXFP4_DEFAULT_CFG": "modelopt", "W4A8_MXFP4_FP8_CFG": "modelopt",
    },
    "mlx": {"4,32": "mlx", "8,64": "mlx", "3,32": "mlx"},
}  # fmt: skip
# What some release of a tool fails to write on a CPU, or with packages that its environment lacks. All else that it
# does not write is a fault of `real_tools.py`.
MAY_FAIL = {
    ("llmcompressor", "MXFP6A16"), ("auto_round", "auto_round,asym,4"),
    ("auto_round", "auto_round:auto_awq,asym,4"), ("auto_round", "auto_gptq,sym,4"), ("auto_round", "auto_awq,asym,4"),
    *(("modelopt", form) for form in CASES["modelopt"] if form != "FP8_DEFAULT_CFG"),  # CUDA rounds to them
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    write_model(folder, "llama", "text-generation", ["a text of words", "and one more"], **SIZE)
    return folder


@pytest.mark.full
@pytest.mark.parametrize(("tool", "form"), [(tool, form) for tool, forms in CASES.items() for form in forms])
def test_weights_are_those_of_the_tool(source: Path, tmp_path: Path, tool: str, form: str) -> None:
    python = ROOT / "build" / "tools" / tool / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{tool} has no environment in build/tools")
    out = tmp_path / "out"
    script = str(ROOT / "tests" / "checkpoints" / "real_tools.py")
    done = subprocess.run([python, script, tool, form, source, out], capture_output=True, text=True, check=False)
    if done.returncode and (tool, form) in MAY_FAIL:
        pytest.skip(f"{tool} cannot write {form} here: {done.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stderr
    expected = load_file(tmp_path / REFERENCE)
    folder = next(file.parent for file in [out / "config.json", *sorted(out.rglob("config.json"))] if file.is_file())
    checkpoint = read_checkpoint(ModelDirectory(folder))
    assert checkpoint.format == CASES[tool][form]
    found = set(checkpoint.linears) | set(checkpoint.dequantized)
    blocks = {name for name in expected if ".layers." in name}
    assert len(blocks) == 7
    assert blocks <= found
    for name in blocks:
        if name in checkpoint.linears:
            weight = checkpoint.linears[name].load().weight.dequantize()
        else:
            values = checkpoint.dequantized[name].load()
            weight = values.widen() if isinstance(values, Bf16) else values
        apart = np.abs(weight - expected[name]).max() / np.abs(expected[name]).max()
        assert apart <= 2**-8, (name, apart)  # of weights that the tool's own reader rounds to bf16
