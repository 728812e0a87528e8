"""A result of `bitwright quantize` on Bitwright's own engine: python examples/with_engine.py DIR"""

import argparse
from typing import Any

import bitwright

QUESTION, TEXTS = "how do I copy a list?", ["Slicing a list makes a new one.", "The sky is blue today."]


def main() -> None:
    """Do what the model is for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory")
    model: Any = bitwright.load(parser.parse_args().directory)
    print(f"{model.task} on {model.backend}")
    if model.task == "text-generation":
        (answer,) = model.generate(QUESTION, max_tokens=16)
        print(answer.text)
    elif model.task == "sequence-classification":
        print(model.predict([(QUESTION, text) for text in TEXTS]))
    else:
        scores = model.similarity(model.encode_query(QUESTION), model.encode_document(TEXTS))
        for text, score in zip(TEXTS, scores[0], strict=True):
            print(f"  {score:.3f}  {text}")


if __name__ == "__main__":
    main()
