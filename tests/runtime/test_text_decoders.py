"""Decoders that embed texts or score pairs: on the engine as in sentence-transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

import bitwright
from bitwright.errors import EngineError
from bitwright.recipe import make_recipe
from bitwright.runtime.engine_model import EngineModel
from bitwright.runtime.generic_model import GenericModel

TinyModel = Callable[..., Path]
Embedder = Callable[..., Path]

# Heads of 16 values, which the engine takes.
_HEADS = {"head_dim": 16, "max_position_embeddings": 256}
_LAYERS = {"layer_types": ["sliding_attention", "full_attention"]}
_BOTH_WAYS = {"use_bidirectional_attention": True} | _LAYERS
# Of the length of a vector: values between the linears are bf16 here. A window that is one token wider, or the token
# before the last, is 0.1 apart or more.
_TOLERANCE = 0.04


@pytest.fixture
def embedder(tiny_model: TinyModel, tmp_path: Path) -> Embedder:
    """`embedder(family, pooling, dense=False, side="left", **config)`: a directory of sentence-transformers."""

    def make(family: str, pooling: str, *, dense: bool = False, side: str = "left", **config: Any) -> Path:
        transformer = Transformer(str(tiny_model(family, "embedding", **(_HEADS | config))), max_seq_length=64)
        transformer.tokenizer.padding_side = side
        width = transformer.get_embedding_dimension()
        modules = [transformer, Pooling(width, pooling_mode=pooling)]
        if dense:
            modules += [Dense(a, b, bias=False, activation_function=None) for a, b in ((width, 64), (64, width))]
        library = SentenceTransformer(modules=[*modules, Normalize()], prompts={"query": "find: ", "document": ""})
        library.save(str(tmp_path / "embedder"))
        return tmp_path / "embedder"

    return make


def farthest(found: np.ndarray, expected: np.ndarray) -> float:
    """Of any vector, relative to its length."""
    return float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


@pytest.mark.parametrize(
    ("family", "pooling", "how"),
    [
        ("qwen3", "lasttoken", {}),  # Qwen3-Embedding
        ("qwen3", "lasttoken", {"side": "right"}),
        ("qwen2", "lasttoken", {"is_causal": False}),  # gte-Qwen2, whose own code sees both ways
        ("mistral", "lasttoken", {"sliding_window": 6}),  # e5-mistral
        ("mistral", "mean", {"sliding_window": 6, "is_causal": False, "side": "right"}),
        ("llama", "weightedmean", {}),
        ("gemma3_text", "mean", {"dense": True, "sliding_window": 8} | _BOTH_WAYS),  # EmbeddingGemma
        ("gemma3_text", "mean", {"sliding_window": 7} | _LAYERS),
    ],
)
def test_embeddings_are_those_of_sentence_transformers(
    embedder: Embedder, texts: list[str], family: str, pooling: str, how: dict[str, Any]
) -> None:
    path, some = embedder(family, pooling, **how), texts[:30]
    library, model = SentenceTransformer(str(path), device="cpu"), bitwright.load(path, compute="engine")
    assert isinstance(model, EngineModel)
    found = model.encode(some, batch_size=7)
    assert farthest(found, library.encode(some, batch_size=7)) < _TOLERANCE
    assert farthest(model.encode_query(some), library.encode_query(some)) < _TOLERANCE
    order = 1e-6 if "dense" in how else 0  # numpy sums in an order that depends on how many texts there are
    np.testing.assert_allclose(model.encode(some[::-1], threads=2), found[::-1], rtol=0, atol=order)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16_g32"])
def test_a_quantized_embedder_runs_on_the_engine(
    embedder: Embedder, texts: list[str], tmp_path: Path, scheme: str
) -> None:
    path = embedder("qwen3", "lasttoken", hidden_size=64, intermediate_size=96)
    recipe = make_recipe({"scheme": scheme, "targets": ["bitwright"]})
    bitwright.quantize(path, out=tmp_path / "out", recipe=recipe, samples=40, judged=False)
    model = bitwright.load(tmp_path / "out")
    assert isinstance(model, EngineModel)
    assert farthest(model.encode(texts[:30]), model.generic.encode(texts[:30])) < 0.1


@pytest.mark.parametrize("padding", [0, 3])  # 3 ends each text, too: the classifier reads the token before it
def test_scores_are_those_of_a_cross_encoder(
    tiny_model: TinyModel, texts: list[str], tmp_path: Path, padding: int
) -> None:
    source = tiny_model("qwen3", "sequence-classification", num_labels=1, **_HEADS)
    path = Path(shutil.copytree(source, tmp_path / "reranker"))
    edit(path / "config.json", pad_token_id=padding)
    edit(path / "tokenizer_config.json", pad_token="[PAD]" if padding == 0 else "[SEP]")
    library, model = CrossEncoder(str(path), device="cpu"), bitwright.load(path, compute="engine")
    assert isinstance(model, EngineModel)
    raw, pairs = torch.nn.Identity(), list(zip(texts[:20], texts[5:25], strict=True))
    found, expected = (one.predict(pairs, activation_fn=raw) for one in (model, library))
    assert np.linalg.norm(found - expected) < _TOLERANCE * np.linalg.norm(expected)
    np.testing.assert_allclose(model.predict(pairs), library.predict(pairs), atol=0.05)
    ours, theirs = (one.rank(texts[0], texts[1:9]) for one in (model, library))
    assert ours[0]["corpus_id"] == theirs[0]["corpus_id"]
    ids = [[5, 6, padding, padding], [padding] * 3, [5, padding, 6]]
    np.testing.assert_array_equal(model.encode(ids), model.encode([[5, 6], [padding], [5, padding, 6]]))


@pytest.mark.parametrize(
    ("family", "task", "config", "says"),
    [
        ("qwen3", "token-classification", {}, "no decoder for token-classification"),
        ("qwen3", "sequence-classification", {"is_causal": False}, "no classifier whose tokens see those after them"),
        ("qwen3", "embedding", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ("gemma3_text", "embedding", {"is_causal": False} | _BOTH_WAYS, "is_causal = False"),
        ("gemma3_text", "text-generation", _BOTH_WAYS, "generates no text"),
        ("mixtral", "embedding", {}, "does not run model_type 'mixtral'"),
    ],
)
def test_what_the_engine_does_not_run_says_why(
    tiny_model: TinyModel, family: str, task: str, config: dict[str, Any], says: str
) -> None:
    with pytest.raises(EngineError, match=says):
        bitwright.load(tiny_model(family, task, **(_HEADS | config)), compute="engine")


def test_a_result_that_the_engine_does_not_run_says_why(tiny_model: TinyModel, tmp_path: Path) -> None:
    source = tiny_model("qwen3", "token-classification", **_HEADS)
    bitwright.quantize(source, out=tmp_path / "out", judged=False)
    model = bitwright.load(tmp_path / "out")
    assert isinstance(model, GenericModel)
    assert "not on the engine: the engine runs no decoder for token-classification" in model.backend


def edit(file: Path, **keys: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))
