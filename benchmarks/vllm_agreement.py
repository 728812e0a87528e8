"""vLLM on a CPU: how often do Bitwright's kernels and vLLM's own choose the same next token?

    python benchmarks/vllm_agreement.py TEXT --float DIR --int8 DIR --int4 DIR --python VENV/bin/python
        --json found.json [--windows 40] [--tokens 512]

The text, say wikitext's test split, is cut into windows, each read from its beginning: every side sees the same tokens
before each position (teacher forcing), and says which comes next. Each side of `PAIRS` is compared with vLLM's own
kernels on the same checkpoint, and all with the float model. The file --json gets, for each pair, the positions, the
share of them with the same most likely token, and the perplexities of both. One side is loaded at a time.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import mean
from typing import Any

from llm_speed import TIMEOUT_S, say
from vllm_speed import PRELOADS, SIDES, folder_of, start

from bitwright.runtime.environment import cpu_name

# A side -> vLLM's own on the same checkpoint, and the least share that is wanted (docs/measurements.md).
PAIRS = {
    "int8 bitwright": ("int8 vllm", 0.99),
    "int4 bitwright": ("int4 vllm", 0.99),
    "int4 bitwright int8": ("int4 vllm", 0.97),
}


def windows_of(text: Path, tokenizer: Path, count: int, length: int) -> list[list[int]]:
    """The first tokens of a text, in windows."""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(tokenizer)).encode(text.read_text(encoding="utf-8")).ids
    if len(ids) < count * length:
        raise SystemExit(f"{text}: {len(ids)} tokens, and {count} windows of {length} are asked for")
    return [list(ids[at * length : (at + 1) * length]) for at in range(count)]


def said_by(name: str, windows: Sequence[Sequence[int]], options: argparse.Namespace) -> dict[str, Any]:
    """What a side chooses at each position, with the kernels it ran on."""
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        worker = start(name, options, stack, logs)
        kernels = worker.answer(TIMEOUT_S)["kernels"]
        answer = worker.ask({"windows": windows}, TIMEOUT_S)
    loss = -mean(value for row in answer["logprobs"] for value in row)
    say(f"{name}: {kernels}, perplexity {math.exp(loss):.3f}")
    likeliest = [token for row in answer["likeliest"] for token in row]
    return {"likeliest": likeliest, "perplexity": math.exp(loss), "kernels": kernels}


def agreement(one: Sequence[int], other: Sequence[int]) -> float:
    """Share of positions with the same choice."""
    return mean(a == b for a, b in zip(one, other, strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, and write the file. The exit code is 1 where a share is less than wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--float", type=Path, required=True)
    parser.add_argument("--int8", type=Path)
    parser.add_argument("--int4", type=Path)
    parser.add_argument("--python", default=sys.executable, help="of an environment with vLLM and Bitwright")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--preload", choices=PRELOADS, default=PRELOADS[0])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of all but linears")
    parser.add_argument("--eager", action="store_true")
    options = parser.parse_args(arguments)
    options.zentorch = None
    windows = windows_of(options.text, options.float / "tokenizer.json", options.windows, options.tokens)
    pairs = {name: pair for name, pair in PAIRS.items() if folder_of(SIDES[name], options) is not None}
    names = dict.fromkeys(["bf16", *(side for name, (own, _) in pairs.items() for side in (own, name))])
    said = {name: said_by(name, windows, options) for name in names}
    found: list[dict[str, Any]] = []
    for name, (own, wanted) in pairs.items():
        share = agreement(said[name]["likeliest"], said[own]["likeliest"])
        row = {"side": name, "beside": own, "positions": len(said[name]["likeliest"]), "same": share, "wanted": wanted}
        for key, side in (("side", name), ("beside", own), ("float", "bf16")):
            row[f"perplexity_{key}"] = said[side]["perplexity"]
        for key, side in (("side", name), ("beside", own)):
            row[f"same_as_float_{key}"] = agreement(said[side]["likeliest"], said["bf16"]["likeliest"])
            row[f"kernels_{key}"] = said[side]["kernels"]
        found.append(row)
        print(f"{name} and {own}: {share:.2%} of {row['positions']} positions, wanted {wanted:.0%}")
    options.json.write_text(json.dumps({"cpu": cpu_name(), "text": options.text.name, "pairs": found}, indent=1) + "\n")
    return int(any(row["same"] < row["wanted"] for row in found))


if __name__ == "__main__":
    sys.exit(main())
