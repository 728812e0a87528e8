"""Our embedder in LangChain, and LangChain's own with our linears in it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitwright.kernels import dispatch
from bitwright.kernels.linear import QuantLinear
from bitwright.runtime.load import load

pytest.importorskip("langchain_core")
pytestmark = pytest.mark.skipif(not dispatch.available(), reason="the native kernels are not built")
Quantized = Callable[..., Path]
SETTINGS = {"prompts": {"query": "the ", "passage": "a "}}


def test_a_vector_store_finds_a_text(quantized: Quantized, texts: list[str]) -> None:
    from langchain_core.vectorstores import InMemoryVectorStore

    from bitwright.integrations.langchain import BitwrightEmbeddings

    path = quantized("bert", "w8a8", pooling="mean_tokens", settings=dict(SETTINGS))
    embedder, model = BitwrightEmbeddings(path), load(path)
    assert np.array_equal(np.float32(embedder.embed_documents(texts[:3])), model.encode_document(texts[:3]))
    assert np.array_equal(np.float32(embedder.embed_query(texts[0])), model.encode_query(texts[0]))
    store = InMemoryVectorStore.from_texts(texts[:8], embedder)
    assert len(store.similarity_search(texts[2], k=3)) == 3


def test_langchains_own_embedder(quantized: Quantized, texts: list[str]) -> None:
    huggingface = pytest.importorskip("langchain_huggingface")
    pytest.importorskip("sentence_transformers")
    from bitwright.integrations.transformers import disable, enable

    path = quantized("bert", "w8a8", transformed=True, pooling="mean_tokens")
    enable()
    try:
        embedder = huggingface.HuggingFaceEmbeddings(model_name=str(path), model_kwargs={"device": "cpu"})
    finally:
        disable()
    assert any(isinstance(module, QuantLinear) for module in embedder._client.modules())
    wanted = load(path, compute="float32").encode(texts[:3])
    np.testing.assert_allclose(embedder.embed_documents(texts[:3]), wanted, rtol=1e-3, atol=1e-5)
