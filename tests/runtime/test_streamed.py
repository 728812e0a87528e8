"""A model that runs block by block gives what the same model gives whole, float or changed."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bitwright.kernels import dispatch
from bitwright.methods.rtn import rtn
from bitwright.models.load import LoadedModel, load_model, open_lazily
from bitwright.models.sites import find_linears
from bitwright.numerics import RANGES
from bitwright.numerics.linear import InputTransform, QuantizedLinear
from bitwright.numerics.schemes import SCHEMES
from bitwright.runtime import streamed
from bitwright.runtime.changes import Changes
from bitwright.runtime.generic_model import float_model
from bitwright.runtime.streamed import StreamedModel
from bitwright.runtime.swap import swap_linears

WINDOWS = torch.randint(5, 200, (3, 21), generator=torch.Generator().manual_seed(2))
FAMILIES = ["llama", "gpt2", "mixtral"]


def logits_of(loaded: LoadedModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = loaded.model(input_ids=WINDOWS, use_cache=False).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_float(tiny_decoder: Callable[..., Path], family: str) -> None:
    whole = load_model(tiny_decoder(family))
    model = StreamedModel(whole, 64)
    assert torch.allclose(model.logits(WINDOWS), logits_of(whole), atol=1e-5)
    for mine, theirs in zip(model.encode(WINDOWS.tolist()), float_model(whole).encode(WINDOWS.tolist()), strict=True):
        assert mine.shape == (2, 20)
        assert np.allclose(mine[0], theirs[0], atol=1e-5)
        assert (mine[1] == theirs[1]).all()
    assert model.tokenizer is whole.tokenizer


@pytest.mark.skipif(not dispatch.available(), reason="the native kernels are not built")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_changed(tiny_decoder: Callable[..., Path], family: str, tied: bool) -> None:
    """Quantized linears, others in 16 bit, changed norms and biases, tables in 16 bit, an input transform."""
    whole = load_model(tiny_decoder(family, tie_word_embeddings=tied))
    model, scheme = whole.model, SCHEMES["w4a16_g32"]
    assert scheme.weight is not None
    sites = [site.name for site in find_linears(model, whole.architecture) if site.block is not None]
    quantized, half = sites[::2], dict.fromkeys(sites[1::4], torch.bfloat16)
    changed = {
        name: (parameter.detach() * 1.25).clone()
        for name, parameter in model.named_parameters()
        if "norm" in name or "ln_" in name or name.endswith(".bias")
    }
    assert changed
    layers = {
        name: QuantizedLinear(
            rtn(model.get_parameter(f"{name}.weight").detach(), None, scheme.weight, RANGES["mse"]).qtensor,
            changed.get(f"{name}.bias"),
            transform=InputTransform(torch.linspace(0.5, 2, model.get_parameter(f"{name}.weight").shape[1])),
        )
        for name in quantized
    }
    tables = [name for name, _ in model.named_parameters() if "embed" in name or "wte" in name or "lm_head" in name]
    changes = Changes(
        layers={name: partial(layers.__getitem__, name) for name in layers}, half=half,
        changed={name: partial(changed.__getitem__, name) for name in changed},
        in_16_bit=dict.fromkeys(tables, torch.bfloat16),
    )  # fmt: skip
    found = StreamedModel(whole, 64, changes).logits(WINDOWS)
    before = logits_of(whole)  # which streaming left alone
    with torch.no_grad():
        for name, value in changed.items():
            model.get_parameter(name).copy_(value)
        for name in tables:
            model.get_parameter(name).copy_(model.get_parameter(name).bfloat16())
    swap_linears(model, layers, half, whole.architecture)
    assert torch.allclose(found, logits_of(whole), atol=1e-4)
    assert not torch.allclose(found, before, atol=1e-2)


def test_one_block_is_there_at_a_time(tiny_decoder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """And the outputs come window by window."""
    whole = load_model(tiny_decoder("llama", num_hidden_layers=3))
    kept, most = [], 0

    def watching(loaded: LoadedModel, path: str, *, act: Callable[..., None]) -> None:
        nonlocal most
        act(loaded, path)
        real = [p for name, p in loaded.model.named_parameters() if ".layers." in name and not p.is_meta]
        most = max(most, sum(p.numel() for p in real))
        kept.append(path)

    for name in ("materialise", "release"):
        monkeypatch.setattr(streamed, name, partial(watching, act=getattr(streamed, name)))
    rows = StreamedModel(whole, 64).encode(WINDOWS.tolist())
    assert kept == [f"model.layers.{i}" for i in (0, 0, 1, 1, 2, 2)]
    assert most == sum(p.numel() for p in whole.model.model.layers[0].parameters())
    assert len(rows) == 3
    assert all(math.isfinite(row[0].sum()) for row in rows)


ENCODER_TEXTS = ["a list", "how to copy a dictionary, and what it holds", "the end"]


def encoder_changes(whole: LoadedModel) -> Changes:
    """Every second linear quantized, the others and the tables in 16 bit, norms changed."""
    spec = SCHEMES["w8a8"]
    sites = [site.name for site in find_linears(whole.model, whole.architecture)]

    def quantized(name: str) -> QuantizedLinear:
        linear = whole.model.get_submodule(name)
        assert spec.weight is not None
        weight = rtn(linear.weight.detach(), None, spec.weight, RANGES["min_max"]).qtensor
        return QuantizedLinear(weight, None if linear.bias is None else linear.bias.detach(), spec.input)

    norms = {name: p.detach() * 1.25 for name, p in whole.model.named_parameters() if "norm" in name.lower()}
    return Changes(
        layers={name: partial(quantized, name) for name in sites[::2]},
        half=dict.fromkeys(sites[1::2], torch.float16),
        changed={name: partial(norms.__getitem__, name) for name in norms},
        in_16_bit={name: torch.bfloat16 for name, _ in whole.model.named_parameters() if "embeddings.weight" in name},
    )


@pytest.mark.skipif(not dispatch.available(), reason="the native kernels are not built")
@pytest.mark.parametrize("family", ["albert", "bert", "deberta-v2", "distilbert", "modernbert", "mpnet", "roberta"])
def test_encoder_gives_the_same_bits(tiny_model: Callable[..., Path], family: str) -> None:
    whole = load_model(tiny_model(family))
    streams, generic = StreamedModel(open_lazily(whole.path, runnable=False), whole.max_tokens), float_model(whole)
    changes = encoder_changes(whole)
    before, after = streams.encode(ENCODER_TEXTS), streams.changed(changes).encode(ENCODER_TEXTS)
    assert np.array_equal(before, generic.encode(ENCODER_TEXTS))
    assert np.array_equal(after, generic.changed(changes).encode(ENCODER_TEXTS))
    assert not np.allclose(before, after, atol=1e-3)
    for name in ("task", "max_tokens", "vocabulary", "n_types", "width", "special_ids", "tokens_at_once", "pads"):
        assert getattr(streams, name) == getattr(generic, name)


@pytest.mark.parametrize("task", ["sequence-classification", "token-classification", "question-answering"])
def test_encoder_with_a_head_gives_the_same_bits(tiny_model: Callable[..., Path], task: str) -> None:
    whole = load_model(tiny_model("bert", task))
    pairs = list(zip(ENCODER_TEXTS, reversed(ENCODER_TEXTS), strict=True))
    found, expected = (model.encode(pairs) for model in (StreamedModel(whole, 64), float_model(whole)))
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_many_texts_run_through_the_whole_encoder(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their hidden states would take more memory than it does."""
    whole = load_model(tiny_model("bert"))
    monkeypatch.setattr(streamed, "stream_outputs", lambda *args, **kwargs: pytest.fail("block by block"))
    texts = [f"{text} {i}" for i in range(60) for text in ENCODER_TEXTS]
    assert np.array_equal(StreamedModel(whole, 64).encode(texts), float_model(whole).encode(texts))
