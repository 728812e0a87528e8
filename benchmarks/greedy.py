"""Greedy answers of the engine beside a reference of the same arithmetic, and beside the file in float.

    python benchmarks/greedy.py MODEL --text TEXT [--prompts 200] [--tokens 64] [--json greedy.json]

MODEL is a quantized language model, TEXT is running text, from which prompts of 8 to 64 tokens are cut. The engine
answers all of them at once. Then the reference reads prompt and answer: the transformers module with the file's codes,
whose 4-bit linears round their inputs as the engine does, with everything else, head and cache among it, in float32. A
token of the engine should be the reference's likeliest, but where two are so near that head, cache and bf16 between the
linears decide: the share of those, and how near the worst was, in standard deviations of the logits, are told. The same
is told of the file in float arithmetic.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bitwright
from bitwright.runtime.decoder_model import DecoderModel
from bitwright.runtime.swap import round_groups

NEAR = 0.25  # standard deviations of the logits: a difference beyond that is no rounding
_AT_ONCE = 8  # texts in a forward of the reference


def prompts_of(model: DecoderModel, text: str, count: int) -> list[list[int]]:
    """Token ids of passages at random places."""
    (ids,) = model.tokenize([text])
    generator = np.random.default_rng(0)
    lengths = generator.integers(8, 65, count)
    begins = generator.integers(0, len(ids) - 64, count)
    return [list(ids[begin : begin + length]) for begin, length in zip(begins, lengths, strict=True)]


def gaps(generic: Any, prompts: Sequence[list[int]], answers: Sequence[Sequence[int]]) -> np.ndarray:
    """Of each token of the answers, how far it is below the reference's likeliest, in standard deviations."""
    found = []
    texts = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    for begin in range(0, len(texts), _AT_ONCE):
        some = texts[begin : begin + _AT_ONCE]
        longest = max(map(len, some))
        logits_BTV = generic.logits(torch.tensor([[*text, *[0] * (longest - len(text))] for text in some])).float()
        for row, text, prompt in zip(logits_BTV, some, prompts[begin:], strict=False):
            of_answer_TV = row[len(prompt) - 1 : len(text) - 1]
            chosen_T = of_answer_TV[torch.arange(len(of_answer_TV)), text[len(prompt) :]]
            found.append((of_answer_TV.max(dim=1).values - chosen_T) / of_answer_TV.std(dim=1))
    return torch.cat(found).numpy()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 if a token differs by more than rounding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write what was found there")
    options = parser.parse_args(arguments)
    model = bitwright.load(options.model)
    if not isinstance(model, DecoderModel):
        sys.exit(f"{options.model}: the engine does not run it: {model.backend}")
    prompts = prompts_of(model, options.text.read_text(encoding="utf-8")[:400_000], options.prompts)
    made = model.generate(prompts, max_tokens=options.tokens, temperature=0.0, ignore_eos=True)
    answers, generic = [one.ids for one in made], bitwright.load(options.model, compute="float32").generic
    report: dict[str, Any] = {"prompts": len(prompts), "tokens": sum(map(len, answers)), "backend": model.backend}
    for name, rounds in (("same arithmetic", True), ("float", False)):
        round_groups(generic.hf, on=rounds)
        apart = gaps(generic, prompts, answers)
        report[name] = {"same": float((apart == 0).mean()), "worst": float(apart.max())}
        print(f"{name}: {report[name]['same']:.2%} the same token; the worst is {report[name]['worst']:.3f} std below")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    return int(report["same arithmetic"]["worst"] > NEAR)


if __name__ == "__main__":
    sys.exit(main())
