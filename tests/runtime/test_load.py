"""Quantized decoders, written and loaded: the numbers of the model in memory, and no float copy of a linear."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bitwright.checkpoints.write import QuantizedParts, write_checkpoint
from bitwright.errors import CheckpointError, InputError, ModelError
from bitwright.files.directory import ModelDirectory
from bitwright.kernels import dispatch
from bitwright.kernels.linear import HalfLinear, QuantLinear
from bitwright.models.load import load_model
from bitwright.models.names import model_names
from bitwright.numerics.linear import QuantizedLinear, ready
from bitwright.runtime.generic_model import GenericModel, float_model
from bitwright.runtime.load import load
from bitwright.runtime.swap import set_compute, swap_linears

pytestmark = [
    pytest.mark.skipif(not dispatch.available(), reason="the native kernels are not built"),
]
IDS = torch.randint(5, 200, (2, 11), generator=torch.Generator().manual_seed(2))

Written = Callable[..., tuple[GenericModel, Path]]


@pytest.fixture
def write(
    tiny_decoder: Callable[..., Path], round_linears: Callable[..., dict[str, QuantizedLinear]], tmp_path: Path
) -> Written:
    """`write(family, scheme, dtype, half=(), **config)`: (the quantized model in memory, the directory written)."""

    def make(
        family: str = "llama",
        scheme: str = "w4a16_g32",
        dtype: torch.dtype = torch.bfloat16,
        *,
        half: tuple[str, ...] = (),
        transformed: bool = False,
        **config: object,
    ) -> tuple[GenericModel, Path]:
        source = tiny_decoder(family, dtype, **config)
        loaded = load_model(source)
        names = model_names(loaded.model, loaded.architecture)
        layers = round_linears(loaded.model, family, scheme, transformed=transformed)
        layers = {name: layer for name, layer in layers.items() if name not in half}
        parts = QuantizedParts({name: ready(layer) for name, layer in layers.items()}, half=half)
        write_checkpoint(ModelDirectory(source), tmp_path / "out", parts, names, model_card="card")
        swap_linears(loaded.model, layers, dict.fromkeys(half, torch.bfloat16), loaded.architecture)
        set_compute(loaded.model, "float32")
        return float_model(loaded), tmp_path / "out"

    return make


@pytest.mark.parametrize("family", ["gemma3_text", "gpt2", "llama", "mixtral", "opt", "qwen3_moe"])
@pytest.mark.parametrize("scheme", ["w4a16_g32", "w8a8"])
def test_loaded_is_as_in_memory(write: Written, family: str, scheme: str) -> None:
    memory, out = write(family, scheme)
    model = load(out)
    assert model.task == "text-generation"
    assert torch.equal(model.generic.logits(IDS), memory.logits(IDS))
    assert model.encode(IDS.tolist())[0].shape == (2, 10)


@pytest.mark.parametrize(("scheme", "transformed"), [("nf4_g32", False), ("w4a16_g32", True), ("w8a8", True)])
def test_what_only_we_can_read_is_read(write: Written, scheme: str, transformed: bool) -> None:
    memory, out = write("llama", scheme, transformed=transformed)
    assert torch.equal(load(out).generic.logits(IDS), memory.logits(IDS))


def test_no_float_copy_of_a_quantized_linear_is_made(write: Written) -> None:
    memory, out = write("mixtral")
    model = load(out)
    quantized = {name for name, module in memory.hf.named_modules() if isinstance(module, QuantLinear)}
    assert len(quantized) == 2 * (4 + 4 * 3)
    assert {name for name, module in model.hf.named_modules() if isinstance(module, QuantLinear)} == quantized
    assert not any(tensor.is_meta for tensor in (*model.hf.parameters(), *model.hf.buffers()))
    wide = sum(p.numel() for p in model.hf.parameters() if p.ndim == 2)
    embeddings, head, routers = 200 * 64, 200 * 64, 2 * 4 * 64
    assert wide == embeddings + head + routers


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_heads_stay_tied_where_they_were(write: Written, tied: bool, compute: str) -> None:
    _, out = write(tie_word_embeddings=tied)
    model = load(out, compute=compute)
    head, table = model.hf.get_output_embeddings(), model.hf.get_input_embeddings()
    assert isinstance(head, nn.Linear)
    assert (head.weight is table.weight) == tied
    assert head.weight.dtype == getattr(torch, compute)
    assert torch.equal(head.weight, head.weight.bfloat16().to(head.weight.dtype))


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_generates(write: Written, family: str, compute: str) -> None:
    memory, out = write(family)
    hf = load(out, compute=compute).hf
    tokens = hf.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=6, do_sample=False)
    assert tokens.shape == (2, 17)
    if compute == "float32":
        want = memory.hf.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=6, do_sample=False)
        assert torch.equal(tokens, want)


def test_generating_with_a_cache_is_the_forward_step_by_step(write: Written) -> None:
    model = load(write("llama")[1])
    with torch.inference_mode():
        whole: Tensor = model.hf(IDS).logits
        first = model.hf(IDS[:, :7], use_cache=True)
        rest = model.hf(IDS[:, 7:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(torch.cat([first.logits, rest], 1), whole, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_close_to_float32(write: Written) -> None:
    _, out = write("mixtral", "w4a16_g32")
    wide, narrow = (load(out, compute=compute).logits(IDS).float() for compute in ("float32", "bfloat16"))
    assert (narrow - wide).norm() < 0.03 * wide.norm()


def test_linears_in_16_bit_and_float_heads(write: Written) -> None:
    half = ("model.layers.0.mlp.down_proj", "lm_head")
    memory, out = write("llama", half=half, tie_word_embeddings=False)
    model = load(out)
    kept = {name for name, module in model.hf.named_modules() if isinstance(module, HalfLinear)}
    assert kept == {"model.layers.0.mlp.down_proj"}
    assert torch.equal(model.generic.logits(IDS), memory.logits(IDS))


def test_a_float32_head_is_rounded_as_it_will_be_stored(
    tiny_decoder: Callable[..., Path], round_linears: Callable[..., dict[str, QuantizedLinear]]
) -> None:
    loaded = load_model(tiny_decoder("llama", tie_word_embeddings=False))
    before = loaded.model.get_submodule("lm_head")
    swap_linears(loaded.model, {}, {"lm_head": torch.bfloat16}, loaded.architecture)
    after = loaded.model.get_submodule("lm_head")
    assert torch.equal(after.weight, before.weight.bfloat16().float())
    assert not torch.equal(after.weight, before.weight)


def test_a_missing_tensor_is_named(write: Written) -> None:
    from safetensors.torch import load_file, save_file

    _, out = write("llama")
    tensors = load_file(out / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"config.json needs 'model.norm.weight' \(64,\)"):
        load(out, compute="float32")
    with pytest.raises(CheckpointError, match=r"the files hold no 'model.norm.weight'"):
        load(out)


def test_compute_is_one_of_three(write: Written) -> None:
    _, out = write("llama")
    with pytest.raises(InputError, match="compute = 'int8'"):
        load(out, compute="int8")


def test_code_of_others_is_refused_before_anything_is_loaded(write: Written) -> None:
    """Of a float model and of a quantized one; with trust the kernel would be fetched, which nobody does here."""
    _, out = write("llama")
    config = json.loads((out / "config.json").read_text())
    for quantized in (True, False):
        kept = {key: value for key, value in config.items() if quantized or key != "quantization_config"}
        for key, value in (("auto_map", {"AutoModel": "m.M"}), ("attn_implementation", "someone/kernel")):
            (out / "config.json").write_text(json.dumps(kept | {key: value}))
            with pytest.raises(ModelError, match=rf"config\.json: {key} = .*--trust-remote-code"):
                load(out)
