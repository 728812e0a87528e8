"""A result of `bitwright quantize` as an embedder of LangChain: python examples/with_langchain.py DIR"""

import argparse

from langchain_core.vectorstores import InMemoryVectorStore

from bitwright.integrations.langchain import BitwrightEmbeddings

TEXTS = ["Slicing a list makes a new one.", "The sky is blue today."]


def main() -> None:
    """Search a store of two texts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory")
    store = InMemoryVectorStore.from_texts(TEXTS, BitwrightEmbeddings(parser.parse_args().directory))
    for document, score in store.similarity_search_with_score("how do I copy a list?", k=2):
        print(f"  {score:.3f}  {document.page_content}")


if __name__ == "__main__":
    main()
