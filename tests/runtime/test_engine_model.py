"""The engine's model beside the generic one: the same tokens, nearly the same outputs, the same count of linears."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitwright
from bitwright.errors import InputError
from bitwright.recipe import make_recipe
from bitwright.runtime.engine_model import EngineModel
from bitwright.runtime.verify import ENGINE_TOLERANCE, compared

TinyModel = Callable[..., Path]


@pytest.fixture
def quantized(tiny_model: TinyModel, tmp_path: Path) -> Callable[..., EngineModel]:
    def quantize(family: str, task: str = "embedding", scheme: str = "w8a8", **config: Any) -> EngineModel:
        recipe = make_recipe({"scheme": scheme, "targets": ["bitwright"], **config.pop("recipe", {})})
        source = tiny_model(family, task, **config)
        bitwright.quantize(source, out=tmp_path / "out", recipe=recipe, samples=40, judged=False)
        model = bitwright.load(tmp_path / "out")
        assert isinstance(model, EngineModel), model.backend
        return model

    return quantize


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8_static"])
@pytest.mark.parametrize("family", ["albert", "bert", "deberta-v2", "distilbert", "modernbert", "mpnet", "roberta"])
def test_embeddings(quantized: Callable[..., EngineModel], texts: list[str], family: str, scheme: str) -> None:
    model = quantized(family, scheme=scheme)
    assert model.tokenize(texts[:50]) == model.generic.tokenize(texts[:50])
    got, want = np.stack(model.encode(texts[:50])), np.stack(model.generic.encode(texts[:50]))
    assert np.linalg.norm(got - want) < ENGINE_TOLERANCE * np.linalg.norm(want)
    ids = torch.randint(5, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    assert compared(model, ids)[1] + model.executor.program.folded == compared(model.generic, ids)[1] > 0
    assert model.executor.program.folded == (4 if family == "deberta-v2" else 0)  # of two blocks


@pytest.mark.parametrize("task", ["sequence-classification", "token-classification", "question-answering"])
def test_heads(quantized: Callable[..., EngineModel], texts: list[str], task: str) -> None:
    model = quantized("bert", task)
    for got, want in zip(model.encode(texts[:20]), model.generic.encode(texts[:20]), strict=True):
        assert got.shape == want.shape
        assert np.linalg.norm(got - want) < ENGINE_TOLERANCE * np.linalg.norm(want)


@pytest.mark.parametrize("method", ["rtn", "smoothquant_shift"])
@pytest.mark.parametrize("config", [{}, {"pos_att_type": ["c2p"]}, {"share_att_key": False, "type_vocab_size": 2}])
def test_disentangled_attention(
    quantized: Callable[..., EngineModel], texts: list[str], config: dict[str, Any], method: str
) -> None:
    model = quantized("deberta-v2", "token-classification", "w8a8_static", recipe={"method": method}, **config)
    got, want = np.concatenate(model.encode(texts[:50])), np.concatenate(model.generic.encode(texts[:50]))
    # Tables projected without the transform of their linear's input are 0.1 off, 0.04 if there is but one kind.
    assert np.linalg.norm(got - want) < 0.03 * np.linalg.norm(want)
    ids = torch.randint(5, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    assert compared(model, ids)[1] + model.executor.program.folded == compared(model.generic, ids)[1] > 0


def test_bad_input(quantized: Callable[..., EngineModel]) -> None:
    model = quantized("bert")
    for items, message in (("text", "one string"), ([[1, 300]], "token id 300"), ([[]], "item 0 has 0 tokens")):
        with pytest.raises(InputError, match=message):
            model.encode(items)
    with pytest.raises(InputError, match="threads = 0"):
        model.encode(["a text"], threads=0)
    with pytest.raises(InputError, match="threads = 0"):
        bitwright.load(model.path, threads=0)
    assert model.encode([]).shape == (0, 32)
    assert np.isfinite(model.encode([""])).all()
