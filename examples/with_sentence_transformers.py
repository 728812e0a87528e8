"""A result of `bitwright quantize` as a SentenceTransformer: python examples/with_sentence_transformers.py DIR

A reranker becomes a CrossEncoder. The engine computes; sentence-transformers does everything around it.
"""

import argparse

from sentence_transformers import CrossEncoder

from bitwright.integrations.sentence_transformers import load

QUESTION, TEXTS = "how do I copy a list?", ["Slicing a list makes a new one.", "The sky is blue today."]


def main() -> None:
    """Search, or rank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory")
    model = load(parser.parse_args().directory)
    print(model)
    if isinstance(model, CrossEncoder):
        print(model.predict([(QUESTION, text) for text in TEXTS]))
    else:
        scores = model.similarity(model.encode_query(QUESTION), model.encode_document(TEXTS))
        for text, score in zip(TEXTS, scores[0], strict=True):
            print(f"  {score:.3f}  {text}")


if __name__ == "__main__":
    main()
