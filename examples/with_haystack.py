"""A result of `bitwright quantize` as an embedder of Haystack: python examples/with_haystack.py DIR

needs: pip install haystack-ai
"""

import argparse
from dataclasses import replace
from typing import Any

from haystack import Document, Pipeline, component
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

import bitwright

TEXTS = ["Slicing a list makes a new one.", "The sky is blue today."]


@component
class TextEmbedder:
    """Embeds a question."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @component.output_types(embedding=list[float])  # type: ignore[untyped-decorator]
    def run(self, text: str) -> dict[str, list[float]]:
        """As Haystack's SentenceTransformersTextEmbedder."""
        return {"embedding": self.model.encode_query(text).tolist()}


@component
class DocumentEmbedder:
    """Embeds documents."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @component.output_types(documents=list[Document])  # type: ignore[untyped-decorator]
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """As Haystack's SentenceTransformersDocumentEmbedder."""
        vectors = self.model.encode_document([document.content for document in documents]).tolist()
        pairs = zip(documents, vectors, strict=True)
        return {"documents": [replace(document, embedding=vector) for document, vector in pairs]}


def main() -> None:
    """Search a store of two texts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory")
    model = bitwright.load(parser.parse_args().directory)
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    documents = [Document(content=text) for text in TEXTS]
    store.write_documents(DocumentEmbedder(model).run(documents)["documents"])
    pipeline = Pipeline()
    pipeline.add_component("embedder", TextEmbedder(model))
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    found = pipeline.run({"embedder": {"text": "how do I copy a list?"}})
    for document in found["retriever"]["documents"]:
        print(f"  {document.score:.3f}  {document.content}")


if __name__ == "__main__":
    main()
