"""Both doors run what other tools write: the logits of the float model whose weights are what the codes stand for."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

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


def fp8_blocks(n: int, k: int, seed: int) -> tuple[tools.Tensors, np.ndarray]:
    tensors, expected = tools.fp8(n, k, (-(-n // 32), -(-k // 32)), (32, 32))
    return {"weight": tensors["weight"], "weight_scale_inv": tensors["weight_scale"] / 50}, expected / 50


def nvfp4(n: int, k: int, seed: int) -> tuple[tools.Tensors, np.ndarray]:
    codes, values, raw = tools.fp4(n, k, 16, seed)
    scale = torch.tensor(raw % 40).view(torch.float8_e4m3fn)
    part = {"weight": codes, "weight_scale": scale, "weight_scale_2": torch.tensor(0.25)}
    return part, values * np.repeat(scale.float().numpy(), 16, axis=1) / 4


MXFP4 = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}
MXFP4_GROUP = {"targets": ["Linear"], "weights": MXFP4, "input_activations": MXFP4}


def mxfp4(n: int, k: int, seed: int) -> tuple[tools.Tensors, np.ndarray]:
    codes, values, raw = tools.fp4(n, k, 32, seed)
    raw = raw % 4 + 120
    part = {"weight_packed": codes, "weight_scale": torch.tensor(raw)}
    return part, values * np.repeat(2.0 ** (raw.astype(int) - 127), 32, axis=1)


# Name -> what config.json says, and the tensors of a linear with the numbers that they stand for.
FORMATS: dict[str, tuple[dict[str, Any], Callable[[int, int, int], tuple[tools.Tensors, np.ndarray]]]] = {
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True},
        lambda n, k, s: tools.gptq(n, k, seed=s),
    ),
    "gptq, act-order": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False},
        lambda n, k, s: tools.gptq(n, k, sym=False, order=True, seed=s),
    ),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32}, lambda n, k, s: tools.awq(n, k, seed=s)),
    "mlx": ({"bits": 4, "group_size": 32}, lambda n, k, s: tools.mlx(n, k, seed=s)),
    "mlx, tied": ({"bits": 4, "group_size": 32}, lambda n, k, s: tools.mlx(n, k, seed=s)),
    "mlx, 6 bits": ({"bits": 6, "group_size": 32}, lambda n, k, s: tools.mlx(n, k, bits=6, seed=s)),
    "fp8": ({"quant_method": "fp8", "weight_block_size": [32, 32]}, fp8_blocks),
    "mxfp4": (
        {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized", "config_groups": {"g": MXFP4_GROUP}},
        mxfp4,
    ),
    "nvfp4": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, nvfp4),
}  # fmt: skip


def write(source: Path, out: Path, name: str) -> Any:
    """The model with other linears, as a tool writes it; and the float model of the same numbers."""
    said, encode = FORMATS[name]
    shutil.copytree(source, out)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    tensors = load_file(source / "model.safetensors")
    mlx = name.startswith("mlx")
    modules = [n.removesuffix(".weight") for n, t in tensors.items() if ".layers." in n and t.ndim == 2]
    for seed, module in enumerate([*modules, *(["model.embed_tokens"] if mlx else [])]):
        n, k = tensors.pop(f"{module}.weight").shape
        part, numbers = encode(n, k, seed)
        tensors |= {f"{module}.{suffix}": tensor for suffix, tensor in part.items()}
        with torch.no_grad():
            model.get_submodule(module).weight.copy_(torch.tensor(numbers))
    save_file(tensors, out / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"quantization" if mlx else "quantization_config": said}))
    return model


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def on_engine(program: Program) -> np.ndarray:
    executor = Executor(program, dispatch.native_isa(), cache_kind="bf16")
    assert executor.cache is not None
    cache = Cache(executor.cache, 64)
    held = cache.begin([])
    cache.grow(held, len(IDS))
    return executor.step(cache.step([(held, IDS, len(IDS))]), 1)


@pytest.mark.parametrize("name", FORMATS)
def test_both_doors_give_the_logits_of_the_numbers(tiny_model: TinyModel, tmp_path: Path, name: str) -> None:
    source = tiny_model("llama", tie_word_embeddings="tied" in name, **SIZE)
    model = write(source, tmp_path / "out", name)
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
    write(tiny_model("llama", **SIZE), tmp_path / "out", name)
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
    model = write(tiny_model("llama", **SIZE), tmp_path / "out", "fp8")
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
