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
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

import bitwright
from bitwright.errors import EngineError, InputError, ModelError
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


# As Qwen3-Reranker has it: a system message is the instruction, and the answer is begun.
_TEMPLATE = """{%- set ns = namespace(task="find it") -%}
{%- for m in messages if m.role == "system" %}{% set ns.task = m.content %}{% endfor -%}
[CLS] judge: {{ ns.task }} [SEP] {% for m in messages if m.role == "query" %}{{ m.content }}{% endfor %} [SEP] \
{%- for m in messages if m.role == "document" %} {{ m.content }}{% endfor %} [SEP] \
{{- " so" if add_generation_prompt }}"""


@pytest.fixture
def answering(tiny_model: TinyModel, tmp_path: Path) -> Callable[..., Path]:
    """`answering(tied, no)`: a language model as a reranker, as the official Qwen3-Reranker is written."""

    def make(*, tied: bool, no: int | None, chats: bool = True, **more: Any) -> Path:
        source = tiny_model("qwen3", tie_word_embeddings=tied, hidden_size=64, **_HEADS)
        path = Path(shutil.copytree(source, tmp_path / "source"))
        if chats:
            (path / "chat_template.jinja").write_text(_TEMPLATE)
        chat = {"processing_kwargs": {"chat_template": {"add_generation_prompt": True}}} if chats else {}
        transformer = Transformer(str(path), transformer_task="text-generation", **chat)
        library = CrossEncoder(modules=[transformer, LogitScore(21, no)], device="cpu", **more)
        library.save(str(tmp_path / "answering"))
        return tmp_path / "answering"

    return make


@pytest.mark.parametrize(
    ("tied", "no", "chats", "more"),
    [
        (True, 33, True, {"prompts": {"web": "search"}, "default_prompt_name": "web"}),
        (False, None, True, {"activation_fn": torch.nn.Tanh()}),
        (False, 33, False, {}),
    ],
)
def test_answers_of_a_language_model_are_scores(
    answering: Callable[..., Path], texts: list[str], tied: bool, no: int | None, chats: bool, more: dict[str, Any]
) -> None:
    path = answering(tied=tied, no=no, chats=chats, **more)
    library, raw = CrossEncoder(str(path), device="cpu"), torch.nn.Identity()
    pairs = list(zip(texts[:20], texts[5:25], strict=True))
    pairs.append((texts[0], " ".join(texts[:8])))  # which is cut, and ends as the template does
    expected = library.predict(pairs, activation_fn=raw)
    for compute, tolerance in (("auto", 1e-5), ("engine", _TOLERANCE)):
        model = bitwright.load(path, compute=compute)
        assert [row.tolist() for row in map(np.array, model.tokenize(pairs))] == [
            library.preprocess([pair], prompt=library.prompts.get(library.default_prompt_name))["input_ids"][0].tolist()
            for pair in pairs
        ]
        found = model.predict(pairs, activation_fn=raw)
        assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)
        np.testing.assert_allclose(model.predict(pairs), library.predict(pairs), atol=0.05)
        ours, theirs = (one.rank(texts[0], texts[1:9]) for one in (model, library))
        assert ours[0]["corpus_id"] == theirs[0]["corpus_id"]
        np.testing.assert_array_equal(model.predict(pairs[3]), model.predict(pairs[3:4])[0])
    assert isinstance(model, EngineModel)
    if chats:
        with pytest.raises(InputError, match=r"leaves out the message of the role 'user'.*reads pairs"):
            model.predict(["one text"])


def test_a_language_model_is_a_reranker_if_the_user_says_so(
    answering: Callable[..., Path], tmp_path: Path, texts: list[str]
) -> None:
    """As the official Qwen3-Reranker was before sentence-transformers had LogitScore."""
    path = answering(tied=True, no=33).parent / "source"
    words = json.loads((path / "tokenizer.json").read_text())
    (yes, no), vocabulary = ("yes", "no"), words["model"]["vocab"]
    for word in (yes, no):
        if word not in vocabulary:
            taken = next(w for w in reversed(list(vocabulary)) if w not in (yes, no))
            vocabulary[word] = vocabulary.pop(taken)
    (path / "tokenizer.json").write_text(json.dumps(words))
    pairs = list(zip(texts[:9], texts[5:14], strict=True))
    library = CrossEncoder(str(path), device="cpu")
    model = bitwright.load(path, task="sequence-classification", compute="engine")
    np.testing.assert_allclose(model.predict(pairs), library.predict(pairs), atol=0.02)
    assert bitwright.load(path, compute="engine").task == "text-generation"
    (path / "chat_template.jinja").write_text("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}x")
    model = bitwright.load(path, task="sequence-classification")
    with pytest.raises(InputError, match="leaves out the message of the role 'query'"):
        model.predict(pairs)


@pytest.mark.full
def test_a_reranker_of_answers_is_quantized_as_such(answering: Callable[..., Path], tmp_path: Path) -> None:
    path = answering(tied=True, no=33)
    recipe = make_recipe({"scheme": "w8a8", "method": "smoothquant", "targets": ["bitwright", "transformers"]})
    result = bitwright.quantize(path, out=tmp_path / "out", recipe=recipe, samples=40, judged=False)
    assert not any(row["role"] == "held" for row in result.record["plan"])
    model, raw = bitwright.load(tmp_path / "out"), torch.nn.Identity()
    assert isinstance(model, EngineModel)
    pairs = [("which river is long", "the nile is a river"), ("who wrote it", "nobody knows")]
    theirs = CrossEncoder(str(tmp_path / "out"), device="cpu").predict(pairs, activation_fn=raw)
    np.testing.assert_allclose(model.predict(pairs, activation_fn=raw), theirs, atol=0.3)
    assert "model = CrossEncoder(MODEL)" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("file", "keys", "says"),
    [
        ("1_LogitScore/config.json", {"true_token_id": 200}, "true_token_id is 200; it must be a token id"),
        ("1_LogitScore/config.json", {"module_input_name": "scores"}, "module_input_name is 'scores'"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"max_length": 9}}}, "follows only variables"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task is 'fill-mask'"),
    ],
)
def test_a_logit_score_that_is_not_followed(
    answering: Callable[..., Path], file: str, keys: dict[str, Any], says: str
) -> None:
    path = answering(tied=True, no=None)
    edit(path / file, **keys)
    with pytest.raises(ModelError, match=says):
        bitwright.load(path)


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
    bitwright.quantize(source, out=tmp_path / "out", judged=False, samples=8)
    model = bitwright.load(tmp_path / "out")
    assert isinstance(model, GenericModel)
    assert "not on the engine: the engine runs no decoder for token-classification" in model.backend


def edit(file: Path, **keys: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))
