"""Ternary and binary weights on the engine: held in their bits, and the numbers of the generic path."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import bitwright
from bitwright.engine.decoders import Arithmetic, lower_decoder
from bitwright.engine.ops import MultiplyW4A8
from bitwright.engine.program import Program
from bitwright.engine.weights import open_weights
from bitwright.files.directory import ModelDirectory
from bitwright.recipe import make_recipe
from bitwright.runtime.generic import load_generic
from bitwright.runtime.swap import round_groups
from tests.engine.running import Running

TinyModel = Callable[..., Path]
SIZE = {"head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 128,
        "intermediate_size": 256, "max_position_embeddings": 256}  # fmt: skip
IDS = np.random.default_rng(3).integers(4, 200, 60).tolist()
BITS = {"ternary_a8_tensor": 2, "ternary_a8_channel": 2, "ternary_a8_g64": 2, "ternary_tensor": 2, "binary": 1}


@pytest.fixture
def quantized(tiny_model: TinyModel, tmp_path: Path) -> Callable[[str, str], Path]:
    """`quantized(family, scheme)`: rounded to nearest."""

    def make(family: str, scheme: str) -> Path:
        recipe = make_recipe({"scheme": scheme, "method": "rtn"})
        bitwright.quantize(tiny_model(family, **SIZE), out=tmp_path / scheme, recipe=recipe, samples=8, judged=False)
        return tmp_path / scheme

    return make


def weights(program: Program) -> list[MultiplyW4A8]:
    return [op for op in program.ops if isinstance(op, MultiplyW4A8)]


@pytest.mark.parametrize("scheme", BITS)
@pytest.mark.parametrize("family", ["llama", "bitnet"])
def test_weights_are_held_in_their_bits(quantized: Callable[[str, str], Path], family: str, scheme: str) -> None:
    folder = quantized(family, scheme)
    program = lower_decoder(open_weights(ModelDirectory(folder)), arithmetic=Arithmetic(head="16"))
    found = weights(program)
    assert sum(op.linears for op in found) == 2 * 7
    assert program.added == (0 if "a8" in scheme else 2 * 7)
    assert {op.weight.bits for op in found} == {BITS[scheme]}
    assert all(op.weight.codes.nbytes == op.n * op.source.width * BITS[scheme] // 8 for op in found)


@pytest.mark.parametrize("scheme", BITS)
@pytest.mark.parametrize("family", ["llama", "bitnet"])
def test_logits_are_those_of_the_generic_path(quantized: Callable[[str, str], Path], family: str, scheme: str) -> None:
    """Inputs are rounded by token where the file says so, else by token and group."""
    folder = quantized(family, scheme)
    generic = load_generic(ModelDirectory(folder), compute="float32")
    round_groups(generic.hf, on=True)
    with torch.inference_mode():
        want = generic.hf(torch.tensor([IDS])).logits[0].numpy()
    running = Running(folder, arithmetic=Arithmetic(head="16"))
    found = running.logits(IDS, [])
    apart = np.linalg.norm(found - want) / np.linalg.norm(want - want.mean(axis=1, keepdims=True))
    assert apart < 0.06, apart  # values between the linears are bf16, so that some inputs take the next code
    np.testing.assert_array_equal(running.logits(IDS, [1, 2, 17, 40], 2), found)
