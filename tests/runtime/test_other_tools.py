"""Both doors run what other tools write: the logits of the float model whose weights are what the codes stand for."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bitwright.engine.decoders import FLOAT, lower_decoder
from bitwright.engine.executor import Executor
from bitwright.engine.ops import MultiplyW4A8
from bitwright.engine.program import Program
from bitwright.engine.weights import open_weights
from bitwright.errors import InputError
from bitwright.files.directory import ModelDirectory
from bitwright.generate.cache import Cache
from bitwright.kernels import dispatch
from bitwright.numerics.linear import QuantizedLinear
from bitwright.runtime.generic import load_generic
from bitwright.runtime.load import load
from bitwright.runtime.swap import round_groups
from tests.checkpoints import other_tools as tools

TinyModel = Callable[..., Path]
IDS = [2, 9, 40, 77, 5, 120, 33, 8, 64, 3]
SIZE = {"head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, "intermediate_size": 96}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def on_engine(program: Program) -> np.ndarray:
    executor = Executor(program, dispatch.native_isa(), cache_kind="bf16")
    assert executor.cache is not None
    cache = Cache(executor.cache, 64)
    held = cache.begin([])
    cache.grow(held, len(IDS))
    return executor.step(cache.step([(held, IDS, len(IDS))]), 1)


@pytest.mark.parametrize("name", tools.FORMATS)
def test_both_doors_give_the_logits_of_the_numbers(tiny_model: TinyModel, tmp_path: Path, name: str) -> None:
    source = tiny_model("llama", tie_word_embeddings="tied" in name, **SIZE)
    model = tools.write_model(source, tmp_path / "out", name)
    with torch.inference_mode():
        expected = model(torch.tensor([IDS])).logits[0].numpy()
    directory = ModelDirectory(tmp_path / "out")
    got = on_engine(lower_decoder(open_weights(directory), arithmetic=FLOAT))
    generic = load_generic(directory, compute="float32")
    with torch.inference_mode():
        by_torch = generic.hf(torch.tensor([IDS])).logits[0].numpy()
    rounded = name.startswith(("fp8", "mlx"))  # weights or a table in bf16
    assert distance(by_torch, expected) <= (0.02 if rounded else 1e-4)
    assert distance(got, expected) <= 0.05
    if name in ("fp8", "gptq, act-order"):
        assert "run as floats" in generic.backend


@pytest.mark.parametrize(("name", "held"), [("mxfp4", "fp4 g32×int8"), ("nvfp4", "fp4 g16×int8")])
def test_floats_of_4_bits_meet_inputs_in_int8(tiny_model: TinyModel, tmp_path: Path, name: str, held: str) -> None:
    """By default: all linears of the blocks are integer products, as `rounds_groups` has them in torch."""
    tools.write_model(tiny_model("llama", **SIZE), tmp_path / "out", name)
    directory = ModelDirectory(tmp_path / "out")
    program = lower_decoder(open_weights(directory), arithmetic=FLOAT._replace(inputs="int8"))
    assert {op.dtype for op in program.ops if isinstance(op, MultiplyW4A8)} == {held}
    assert program.added == 7 * 2
    generic = load_generic(directory, compute="float32")
    round_groups(generic.hf, on=True)
    with torch.inference_mode():
        expected = generic.hf(torch.tensor([IDS])).logits[0].numpy()
    assert distance(on_engine(program), expected) <= 0.04
    if name == "mxfp4":
        assert "inputs are int8 or floats of 16 bits" in load(directory.path).backend


def test_fp8_in_int8_when_asked_says_what_it_loses(tiny_model: TinyModel, tmp_path: Path) -> None:
    model = tools.write_model(tiny_model("llama", **SIZE), tmp_path / "out", "fp8")
    with torch.inference_mode():
        expected = model(torch.tensor([IDS])).logits[0].numpy()
    weights = open_weights(ModelDirectory(tmp_path / "out"), fp8="int8")
    program = lower_decoder(weights, arithmetic=FLOAT._replace(inputs="int8"))
    assert {op.source.group for op in program.ops if isinstance(op, MultiplyW4A8)} == {64, 32}
    assert program.added == 7 * 2
    assert 0.001 < distance(on_engine(program), expected) <= 0.05
    loaded = load(tmp_path / "out", fp8="int8")
    assert (found := re.search(r"14 × FP8 linears run as int8 .* changes their weights by (.*) %", loaded.backend))
    assert "run as floats" not in loaded.backend
    name = "model.layers.1.mlp.down_proj"
    rounded = weights.linear(name)
    assert isinstance(rounded, QuantizedLinear)
    numbers = model.get_submodule(name).weight.detach().bfloat16().float().numpy()
    assert 100 * distance(rounded.weight.dequantize(), numbers) == pytest.approx(float(found[1]), rel=0.3)
    with pytest.raises(InputError, match="fp8 = 'int4' is unknown"):
        load(tmp_path / "out", fp8="int4")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="compute = 'float32' takes the generic path"):
        load(tmp_path / "out", fp8="int8", compute="float32")
