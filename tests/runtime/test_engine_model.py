"""The engine's model beside the generic one: the same tokens, nearly the same outputs, the same count of linears."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitwright
from bitwright.errors import InputError
from bitwright.kernels.dispatch import active_isa, chosen
from bitwright.recipe import make_recipe
from bitwright.runtime.engine_model import EngineModel
from bitwright.runtime.verify import compared

TinyModel = Callable[..., Path]

# Of the length of outputs: both paths round activations to int8, and not the same way (`runtime.tolerances`).
ENGINE_TOLERANCE = 0.1


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


def test_texts_that_are_too_long_are_cut_or_refused(quantized: Callable[..., EngineModel], texts: list[str]) -> None:
    model = quantized("bert")
    short, long = ["a class", "a function"], " ".join(texts[:20])
    assert len(model.tokenize([long])[0]) == model.max_tokens
    for path in (model, model.generic):
        np.testing.assert_array_equal(path.encode(short, truncate=False), path.encode(short))
        with pytest.raises(InputError, match=f"text 2 has more than {model.max_tokens} tokens"):
            path.encode([*short, long], truncate=False)
        with pytest.raises(InputError, match="text 0 has more than"):
            path.encode([(short[0], long)], truncate=False)


@pytest.mark.parametrize("task", ["embedding", "sequence-classification", "token-classification", "question-answering"])
@pytest.mark.parametrize(("family", "n_types"), [("bert", 2), ("deberta-v2", 2), ("deberta-v2", 0), ("mpnet", None)])
def test_pairs_of_texts(
    quantized: Callable[..., EngineModel], texts: list[str], family: str, n_types: int | None, task: str
) -> None:
    model = quantized(family, task, **({} if n_types is None else {"type_vocab_size": n_types}))
    pairs = [*zip(texts[:20], texts[20:40], strict=True), (texts[0], ""), ("", texts[0])]
    pairs += [(" ".join(texts[:9]), texts[9]), (texts[9], " ".join(texts[:9]))]  # cut
    ids = model.tokenize(pairs)
    assert ids == model.generic.tokenize(pairs)
    assert max(map(len, ids)) == model.max_tokens
    mine = model.encode(pairs)
    for got, want in zip(mine, model.generic.encode(pairs), strict=True):
        assert got.shape == want.shape
        assert np.linalg.norm(got - want) < ENGINE_TOLERANCE * np.linalg.norm(want)
    untyped = model.encode(ids)
    if not n_types:
        assert all(map(np.array_equal, mine, untyped))
        return
    assert not any(map(np.array_equal, mine, untyped))
    types = [[int(i > row.index(3)) for i in range(len(row))] for row in ids]  # 1 after the first separator
    assert all(map(np.array_equal, mine, model.encode(ids, types=types)))


def test_bad_types(quantized: Callable[..., EngineModel]) -> None:
    model = quantized("bert")
    for other in (model, model.generic):
        for items, types, message in (
            (["a text"], [[0]], "types can be given only with token ids"),
            ([[5, 6]], [[0, 2]], "item 0: token type 2, but this model has only 0 to 1"),
            ([[5, 6], [7]], [[0, 1], [0, 1]], "item 1 has 1 tokens but 2 token types"),
            ([[5, 6]], [[0, 1], [0]], "token types for 2 items, but 1"),
            ([("a", "b"), "c"], None, "pair 1 is str, not two texts"),
            ([("a", "b"), ("c",)], None, "pair 1 is tuple, not two texts"),
            ([[5, 6]], [None], "item 0: token types must be a sequence of whole numbers, but this is None"),
            ([[5, 6]], [[0, 0.5]], "item 0: token types must be a sequence of whole numbers"),
            ([[5, 6]], np.array([[0, 2]]), "item 0: token type 2, but this model has only 0 to 1"),
        ):
            with pytest.raises(InputError, match=message):
                other.encode(items, types=types)
        given = np.array([[5, 6]]), np.array([[0, 1]])
        want = other.encode([[5, 6]], types=[[0, 1]])
        assert np.isfinite(want).all()
        np.testing.assert_array_equal(other.encode(given[0], types=given[1]), want)


def test_bad_input(quantized: Callable[..., EngineModel]) -> None:
    model = quantized("bert")
    for items, message in (
        ([[1, 300]], "token id 300"), ([[]], "item 0 has 0 tokens"),
        ([[1.7]], "item 0 is list"),
        ([[2**70]], "item 0: token id 1180"), ({"a": 1}, "this is dict"), ({"a"}, "this is set"),
        ((text for text in ["a", 1]), "text 1 is int"), (["a", "\ud800"], "text 1 holds"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            model.encode(items)
    with pytest.raises(InputError, match="threads = 0"):
        model.encode(["a text"], threads=0)
    for path in (model, model.generic):
        with pytest.raises(InputError, match=r"batch_size = 1\.5: give a whole number"):
            path.encode(["a text"], batch_size=1.5)
    with pytest.raises(InputError, match="threads = 0"):
        bitwright.load(model.path, threads=0)
    assert model.encode([]).shape == (0, 32)
    assert np.isfinite(model.encode([""])).all()


def test_texts_beyond_the_programs_positions_take_the_generic_path(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """transformers cuts no text of a model without a table of positions, if its tokenizer names no limit."""
    source = Path(shutil.copytree(tiny_model("deberta-v2", "token-classification"), tmp_path / "source"))
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": int(1e30)}))
    bitwright.quantize(source, out=tmp_path / "out", judged=False, samples=8)
    model, texts = bitwright.load(tmp_path / "out"), ["a list of words", "word " * 100, "b"]
    assert isinstance(model, EngineModel)
    assert [len(ids) for ids in model.tokenize(texts)] == [len(ids) for ids in model.generic.tokenize(texts)]
    assert len(model.tokenize(texts)[1]) > model.executor.program.max_tokens
    found, alone = model.encode(texts), [model.encode([text])[0] for text in texts]
    np.testing.assert_array_equal(found[1], model.generic.encode(texts[1:2])[0])
    for a, b in zip(found, alone, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"attention": "int8"}, ", int8 attention"),
        ({}, ""),  # what it costs was not measured
        (
            {"attention": "int8", "rules": [{"match": "*.0.*", "attention": "float"}]},
            ", int8 attention in 1 of 2 layers",
        ),
    ],
)
def test_the_backend_says_how_attention_is_computed(
    quantized: Callable[..., EngineModel], texts: list[str], recipe: dict[str, Any], words: str
) -> None:
    model = quantized("bert", recipe=recipe)
    assert model.backend == f"engine:{active_isa()}{words}"
    plain = EngineModel(model.directory, float_attention=True)
    assert plain.backend == f"engine:{active_isa()}"
    same = np.array_equal(np.stack(model.encode(texts[:8])), np.stack(plain.encode(texts[:8])))
    assert same == (words == "" or chosen("attention_int8") == "amx")  # which computes it in bf16
    assert "attention" not in bitwright.load(model.path, compute="float32").backend
