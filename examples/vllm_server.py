"""Asks a server of vLLM, in the words of OpenAI's interface: python examples/vllm_server.py http://127.0.0.1:8000

needs: pip install bitwright[vllm], and a server in another terminal: vllm serve DIR, or where that ends at once
python -m vllm.entrypoints.openai.api_server --model DIR
"""

import argparse

from openai import OpenAI

TEXTS = ["Slicing a list makes a new one.", "The sky is blue today."]


def main() -> None:
    """Complete a text, or embed two, as the model that is served can."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("--embed", action="store_true", help="the model is an embedder")
    options = parser.parse_args()
    client = OpenAI(base_url=f"{options.address}/v1", api_key="none")
    model = client.models.list().data[0].id
    if options.embed:
        for text, row in zip(TEXTS, client.embeddings.create(model=model, input=TEXTS).data, strict=True):
            print(f"{text}  {len(row.embedding)} numbers")
    else:
        answer = client.completions.create(model=model, prompt=TEXTS[0], max_tokens=16, temperature=0)
        print(TEXTS[0] + answer.choices[0].text)


if __name__ == "__main__":
    main()
