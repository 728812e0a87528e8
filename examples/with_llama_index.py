"""A result of `bitwright quantize` as an embedder of LlamaIndex: python examples/with_llama_index.py DIR

needs: pip install llama-index-core
"""

import argparse
from typing import Any

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from pydantic import PrivateAttr

import bitwright

TEXTS = ["Slicing a list makes a new one.", "The sky is blue today."]


class BitwrightEmbedding(BaseEmbedding):  # type: ignore[misc]
    """Embeds texts and questions with `bitwright.load(directory)`."""

    _model: Any = PrivateAttr()

    def __init__(self, directory: str, **options: Any) -> None:
        super().__init__(model_name=directory, **options)
        self._model = bitwright.load(directory)

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        found: list[list[float]] = self._model.encode_document(texts).tolist()
        return found

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        found: list[float] = self._model.encode_query(query).tolist()
        return found

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


def main() -> None:
    """Search an index of two texts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory")
    embedder = BitwrightEmbedding(parser.parse_args().directory)
    index = VectorStoreIndex.from_documents([Document(text=text) for text in TEXTS], embed_model=embedder)
    for hit in index.as_retriever(similarity_top_k=2).retrieve("how do I copy a list?"):
        print(f"  {hit.score:.3f}  {hit.get_content()}")


if __name__ == "__main__":
    main()
