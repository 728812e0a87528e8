"""`predict`, `rank` and the arguments of `encode`: the same meaning as in sentence-transformers, or a TypeError."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder

import bitwright
from bitwright.errors import InputError
from bitwright.runtime.generic_model import GenericModel
from bitwright.runtime.model import Model

QUERY, DOCUMENTS = "which list", ["a list of words", "the class", "of it", "a longer text about a list that is not"]
PAIRS = [(QUERY, document) for document in DOCUMENTS]


@pytest.fixture
def reranker(tiny_model: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model("bert", "sequence-classification", num_labels=1), tmp_path / "one"))


@pytest.fixture
def embedder(tiny_model: Callable[..., Path]) -> Model:
    return bitwright.load(tiny_model("bert"))


@pytest.mark.parametrize("activation", [None, "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Tanh"])
@pytest.mark.parametrize("key", ["sentence_transformers", "sbert_ce_default_activation_function"])
def test_scores_are_those_of_a_cross_encoder(reranker: Path, activation: str | None, key: str) -> None:
    config = json.loads((reranker / "config.json").read_text())
    if activation is not None:
        config[key] = {"activation_fn": activation, "version": "5"} if key == "sentence_transformers" else activation
    (reranker / "config.json").write_text(json.dumps(config))
    theirs, ours = CrossEncoder(str(reranker), device="cpu"), bitwright.load(reranker)
    np.testing.assert_allclose(ours.predict(PAIRS), theirs.predict(PAIRS), atol=1e-5)
    np.testing.assert_allclose(ours.predict(PAIRS[0]), theirs.predict(PAIRS[0]), atol=1e-5)
    raw = torch.nn.Identity()
    np.testing.assert_allclose(
        ours.predict(PAIRS, activation_fn=raw), theirs.predict(PAIRS, activation_fn=raw), atol=1e-5
    )
    assert torch.is_tensor(ours.predict(PAIRS, convert_to_tensor=True))
    found, expected = (one.rank(QUERY, DOCUMENTS, top_k=3, return_documents=True) for one in (ours, theirs))
    assert [(row["corpus_id"], row["text"]) for row in found] == [(row["corpus_id"], row["text"]) for row in expected]
    np.testing.assert_allclose([row["score"] for row in found], [row["score"] for row in expected], atol=1e-5)
    assert ours.predict([]).shape == (0,)


def test_several_labels(tiny_model: Callable[..., Path]) -> None:
    path = tiny_model("bert", "sequence-classification")
    theirs, ours = CrossEncoder(str(path), device="cpu"), bitwright.load(path)
    for how in ({}, {"apply_softmax": True}):
        np.testing.assert_allclose(ours.predict(PAIRS, **how), theirs.predict(PAIRS, **how), atol=1e-5)
    with pytest.raises(InputError, match="rank is only for rerankers"):
        ours.rank(QUERY, DOCUMENTS)


def test_pairs_and_texts_are_put_into_a_chat_template(reranker: Path) -> None:
    before = bitwright.load(reranker).predict(PAIRS)
    template = "{% for message in messages %}<{{ message.role }}> {{ message.content }} {% endfor %}"
    (reranker / "chat_template.jinja").write_text(template)
    model, library = bitwright.load(reranker), CrossEncoder(str(reranker), device="cpu")
    assert abs(library.predict(PAIRS) - before).max() > 0.001
    for how in ({}, {"prompt": "find it"}):
        np.testing.assert_allclose(model.predict(PAIRS, **how), library.predict(PAIRS, **how), atol=1e-5)
    theirs = library.preprocess([{"role": "user", "content": QUERY}])["input_ids"][0].tolist()
    assert model.tokenize([QUERY]) == [theirs]
    parts = "{% for m in messages %}{{ m.role }} {{ m.content[0].text }}. {% endfor %}"
    (reranker / "chat_template.jinja").write_text(parts)
    model, library = bitwright.load(reranker), CrossEncoder(str(reranker), device="cpu")
    np.testing.assert_allclose(model.predict(PAIRS), library.predict(PAIRS), atol=1e-5)


def test_an_embedder_has_no_scores(embedder: Model) -> None:
    for call in (lambda: embedder.predict(PAIRS), lambda: embedder.rank(QUERY, DOCUMENTS)):
        with pytest.raises(InputError, match="is only for"):
            call()


def test_forms_of_the_result(embedder: Model) -> None:
    plain = embedder.encode(DOCUMENTS)
    tensor = embedder.encode(DOCUMENTS, convert_to_tensor=True, device="cpu", output_value="sentence_embedding")
    assert torch.is_tensor(tensor)
    np.testing.assert_array_equal(tensor.numpy(), plain)
    rows = embedder.encode(DOCUMENTS, convert_to_numpy=False, precision="float32")
    assert isinstance(rows, list)
    assert all(torch.is_tensor(row) for row in rows)
    np.testing.assert_array_equal(embedder.encode(DOCUMENTS[0]), embedder.encode(DOCUMENTS[:1])[0])
    assert embedder.encode(DOCUMENTS[0], convert_to_tensor=True).shape == (32,)


def test_a_bar_is_drawn_on_stderr(embedder: Model, capsys: pytest.CaptureFixture[str]) -> None:
    embedder.encode(DOCUMENTS, show_progress_bar=True)
    shown = capsys.readouterr()
    assert (shown.out, "Batches" in shown.err) == ("", True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output_value": "token_embeddings"}, "token vectors come from `model.hf"),
        ({"precision": "int8"}, "quantize_embeddings"),
        ({"device": "cuda"}, "device='cuda': this model runs on the CPU"),
        ({"pool": 1}, "uses all processors in one process"),
        ({"chunk_size": 8}, "set batch_size="),
        ({"batchsize": 8}, "did you mean 'batch_size'"),
        ({"nothing_like_it": 8}, r"unexpected keyword argument 'nothing_like_it'$"),
    ],
)
def test_what_has_no_meaning_here_names_its_replacement(embedder: Model, given: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        embedder.encode(DOCUMENTS, **given)


def test_vectors_are_for_embeddings(reranker: Path) -> None:
    model = bitwright.load(reranker)
    assert isinstance(model, GenericModel)
    with pytest.raises(InputError, match="are only for embeddings, and this model's task is sequence-classification"):
        model.encode(PAIRS, normalize_embeddings=True)


def test_vectors_of_different_lengths_are_not_compared(embedder: Model) -> None:
    with pytest.raises(InputError, match="vectors with 3 and 4 values"):
        embedder.similarity(np.ones((2, 3)), np.ones((2, 4)))
