"""Write a random Llama of TinyLlama's shape (1.1 B, bfloat16): speed does not depend on what the weights say.

    python benchmarks/llm_random.py OUT --tokenizer SMOLLM2 [--positions 8192]
    python benchmarks/llm_random.py OUT --small

SMOLLM2 is the directory of a model with a byte-level BPE; its vocabulary is cut to the shape's 32 000. --small writes
one for soaks, of 2 million weights and without a tokenizer.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "tie_word_embeddings": False,
}
SMALL = {
    "vocab_size": 1000,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "tie_word_embeddings": True,
}


def cut(tokenizer: dict[str, Any], size: int) -> dict[str, Any]:
    """A byte-level BPE with the ids below `size` alone; the merges that make others go too."""
    model = tokenizer["model"]
    vocabulary = {text: number for text, number in model["vocab"].items() if number < size}
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    merges = [pair for pair in pairs if "".join(pair) in vocabulary]
    return tokenizer | {"model": model | {"vocab": vocabulary, "merges": merges}}


def write_random(out: Path, shape: dict[str, Any], positions: int, tokenizer: Path | None = None) -> None:
    """Write the model; its bytes follow from the versions of torch and transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**shape, max_position_embeddings=positions, dtype="bfloat16")
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(out)
    if tokenizer is None:
        return
    full = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    (out / "tokenizer.json").write_text(json.dumps(cut(full, shape["vocab_size"])), encoding="utf-8")
    (out / "tokenizer_config.json").write_bytes((tokenizer / "tokenizer_config.json").read_bytes())


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the directory that the options name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--tokenizer", type=Path)
    how.add_argument("--small", action="store_true")
    parser.add_argument("--positions", type=int, default=8192)
    options = parser.parse_args(arguments)
    write_random(options.out, SMALL if options.small else SHAPE, options.positions, options.tokenizer)


if __name__ == "__main__":
    main()
