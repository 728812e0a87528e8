"""A result of `bitwright quantize` in transformers, with Bitwright's linears: python examples/with_transformers.py DIR

Without `enable()`, transformers unpacks the weights while it loads, and cannot load `quant_method: bitwright`.
"""

import argparse
from typing import Any

import torch
import transformers

from bitwright.integrations.transformers import enable


def main() -> None:
    """Load the model, and run it once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory")
    directory = parser.parse_args().directory
    enable()
    config = transformers.AutoConfig.from_pretrained(directory)
    model: Any = getattr(transformers, config.architectures[0]).from_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer("how do I copy a list?", return_tensors="pt")
    kinds = {type(module).__name__ for module in model.modules()}
    print(f"{type(model).__name__} with {', '.join(sorted(kind for kind in kinds if 'Linear' in kind))}")
    if model.can_generate():
        ids = inputs["input_ids"]
        found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
        print(tokenizer.decode(found[0]))
    else:
        with torch.inference_mode():
            print(*(f"{name} {tuple(value.shape)}" for name, value in model(**inputs).items()), sep="\n")


if __name__ == "__main__":
    main()
