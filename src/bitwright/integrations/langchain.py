"""`BitwrightEmbeddings`: a result of Bitwright as an embedder of LangChain.

    from bitwright.integrations.langchain import BitwrightEmbeddings

    store = InMemoryVectorStore.from_texts(texts, BitwrightEmbeddings("DIR"))

LangChain's own HuggingFaceEmbeddings loads a directory by itself; after `integrations.transformers.enable()` it gets
Bitwright's linears, but not its engine.
"""

from pathlib import Path
from typing import Any

from langchain_core.embeddings import Embeddings

from bitwright.runtime.load import load


class BitwrightEmbeddings(Embeddings):  # type: ignore[misc]
    """Embeds documents and queries, each with the prompt that the model's files have for them.

    model: what `bitwright.load` gave.
    """

    def __init__(self, directory: str | Path, **options: Any) -> None:
        """options: as `bitwright.load` takes them, which this raises as."""
        self.model = load(directory, **options)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """An embedding for each text."""
        found: list[list[float]] = self.model.encode_document(texts).tolist()
        return found

    def embed_query(self, text: str) -> list[float]:
        """The embedding of a question."""
        found: list[float] = self.model.encode_query(text).tolist()
        return found
