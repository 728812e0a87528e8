"""`load()`: sentence-transformers' classes around our runtime give what our runtime gives."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitwright.errors import InputError
from bitwright.integrations.sentence_transformers import load
from bitwright.kernels import dispatch
from bitwright.runtime.engine_model import EngineModel
from bitwright.runtime.load import load as load_model

sentence_transformers = pytest.importorskip("sentence_transformers")

pytestmark = pytest.mark.skipif(not dispatch.available(), reason="the native kernels are not built")
Quantized = Callable[..., Path]

SETTINGS: dict[str, Any] = {
    "prompts": {"query": "the ", "passage": "a "},
    "similarity_fn_name": "dot",
    "truncate_dim": 24,
}


@pytest.fixture
def directory(quantized: Quantized) -> Path:
    return quantized("bert", "w8a8", transformed=True, pooling="mean_tokens", settings=dict(SETTINGS))


def test_encodes_as_the_engine(directory: Path, texts: list[str]) -> None:
    model, ours = load(directory), load_model(directory)
    assert isinstance(model, sentence_transformers.SentenceTransformer)
    assert isinstance(model[0].model, EngineModel)
    mixed = sorted(texts[:40], key=lambda text: text[3:])
    assert np.array_equal(model.encode(mixed, batch_size=7), ours.encode(mixed))
    assert np.array_equal(model.encode(mixed[0]), ours.encode(mixed[0]))
    assert np.array_equal(model.encode_query(mixed[:3]), ours.encode_query(mixed[:3]))
    assert np.array_equal(model.encode_document(mixed[:3]), ours.encode_document(mixed[:3]))
    for how in ({"prompt": "by: "}, {"prompt_name": "passage"}, {"truncate_dim": 9}):
        assert np.array_equal(model.encode(mixed[:5], **how), ours.encode(mixed[:5], **how))
    normalized = {"normalize_embeddings": True, "truncate_dim": 9}
    np.testing.assert_allclose(model.encode(mixed, **normalized), ours.encode(mixed, **normalized), rtol=1e-6)
    assert isinstance(model.encode(mixed[:2], convert_to_tensor=True), torch.Tensor)
    assert model.encode([]).shape == (0,)
    assert model.get_embedding_dimension() == 24


def test_similarity_is_what_the_files_say(directory: Path, texts: list[str]) -> None:
    model, ours = load(directory), load_model(directory)
    vectors = model.encode(texts[:4])
    assert model.similarity_fn_name == "dot"
    np.testing.assert_allclose(model.similarity(vectors, vectors), ours.similarity(vectors, vectors), rtol=1e-5)


def test_vectors_of_tokens(directory: Path, texts: list[str]) -> None:
    model = load(directory)
    found = model.encode(texts[:3], output_value="token_embeddings")
    lengths = [len(ids) for ids in load_model(directory).tokenize(texts[:3])]
    assert [tuple(row.shape) for row in found] == [(n, 64) for n in lengths]
    whole = model.encode(texts[:3], output_value=None, truncate_dim=64)
    for row, tokens in zip(whole, found, strict=True):
        pooled = tokens.mean(0)
        torch.testing.assert_close(row["sentence_embedding"], pooled / pooled.norm(), rtol=1e-4, atol=1e-5)
        assert torch.equal(row["token_embeddings"][: len(tokens)], tokens)


def test_the_prompt_need_not_count(quantized: Quantized, texts: list[str]) -> None:
    settings = {"prompts": {"query": "what is this about "}, "pooling": {"include_prompt": False}}
    path = quantized("bert", "w8a8", pooling="mean_tokens", settings=settings)
    model, ours = load(path), load_model(path)
    assert np.array_equal(model.encode_query(texts[:4]), ours.encode_query(texts[:4]))
    assert not np.array_equal(
        model.encode(texts[:4], prompt=settings["prompts"]["query"] + " "), ours.encode(texts[:4])
    )


def test_texts_are_cut_where_the_user_says(directory: Path, texts: list[str]) -> None:
    model = load(directory)
    assert model.max_seq_length == 32
    model.max_seq_length = 8
    assert model.preprocess(texts[:4])["input_ids"].shape[1] == 8
    model.max_seq_length = 10_000  # the model takes no more than its own
    assert model.preprocess(texts[:40])["input_ids"].shape[1] <= 32
    assert np.array_equal(model.encode(texts[:4]), load(directory).encode(texts[:4]))


def test_an_evaluator_runs(directory: Path, texts: list[str]) -> None:
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    queries = {f"q{i}": texts[i][:40] for i in range(4)}
    corpus = {f"d{i}": text for i, text in enumerate(texts[:12])}
    relevant = {f"q{i}": {f"d{i}"} for i in range(4)}
    evaluator = evaluation.InformationRetrievalEvaluator(queries, corpus, relevant, name="tiny")
    found = evaluator(load(directory))
    assert 0 <= found["tiny_dot_ndcg@10"] <= 1


def test_pickled_copied_and_printed(directory: Path, texts: list[str]) -> None:
    model = load(directory)
    model.max_seq_length = 8
    wanted = model.encode(texts[:3])
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert np.array_equal(twin.encode(texts[:3]), wanted)
    assert "engine" in str(model)
    assert model.tokenizer("a")["input_ids"]


def test_is_not_saved(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="copy its directory"):
        load(directory).save_pretrained(str(tmp_path / "out"))


def test_what_is_not_text_is_refused(directory: Path) -> None:
    model = load(directory)
    with pytest.raises(InputError, match="processing_kwargs"):
        model.encode(["a"], processing_kwargs={"text": {"max_length": 3}})
    with pytest.raises((InputError, ValueError)):
        model.encode([3.5])


@pytest.mark.parametrize("pooling", ["lasttoken", None])
def test_language_models_embed(quantized: Quantized, texts: list[str], pooling: str | None) -> None:
    path = quantized("qwen3", "w4a16_g32", pooling=pooling)
    model, ours = load(path), load_model(path, task="embedding")
    found = model.encode(texts[:5])
    assert found.shape == (5, 64)
    np.testing.assert_allclose(found, ours.encode(texts[:5]), rtol=1e-5, atol=1e-6)
    tokens = model.encode(texts[:2], output_value="token_embeddings")
    last = torch.stack([row[-1] for row in tokens])
    last = torch.nn.functional.normalize(last) if pooling else last
    np.testing.assert_allclose(found[:2], last, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("labels", [1, 3])
def test_rerankers_and_classifiers(quantized: Quantized, texts: list[str], labels: int) -> None:
    path = quantized("bert", "w8a8", "sequence-classification", num_labels=labels)
    model, ours = load(path), load_model(path)
    assert isinstance(model, sentence_transformers.CrossEncoder)
    pairs = list(zip(texts[:6], texts[6:12], strict=True))
    np.testing.assert_allclose(model.predict(pairs), ours.predict(pairs), rtol=1e-6)
    assert model.num_labels == labels
    if labels == 1:
        ranked, expected = model.rank(texts[0], texts[1:5], top_k=2), ours.rank(texts[0], texts[1:5], top_k=2)
        assert [row["corpus_id"] for row in ranked] == [row["corpus_id"] for row in expected]
    else:
        np.testing.assert_allclose(model.predict(pairs, apply_softmax=True).sum(1), 1, rtol=1e-5)


def test_other_tasks_are_refused(quantized: Quantized) -> None:
    with pytest.raises(InputError, match="token-classification"):
        load(quantized("bert", "w8a8", "token-classification"))
