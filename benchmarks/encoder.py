"""The engine beside its rivals on encoders: all-MiniLM-L6-v2 (real weights) and the shape of BERT-base (random ones).

    python benchmarks/encoder.py MINILM --json encoder.json [--threads 1 --threads 2] [--shape 1x128] [--rounds 5]

MINILM is the float model's directory. Both models are quantized to W8A8, dynamic; OpenVINO's and ONNX Runtime's INT8
are made from the same float models (`bitwright.runtime.bench_runtimes` says how). Every runtime has a process of its
own, stays loaded, and is timed in turn, round after round; a ratio is the median over rounds of the ratio of a round's
medians. Inputs are random tokens without padding; the output is the last hidden states.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import bitwright
from bitwright.cli.bench import shape
from bitwright.files.directory import ModelDirectory
from bitwright.recipe import make_recipe
from bitwright.runtime.bench import Schedule, run_bench

SHAPES = ((1, 16), (1, 128), (8, 128), (32, 128), (1, 512), (8, 512))
OURS = "bitwright"

T = TypeVar("T")


class Lines:
    """Progress as lines on stderr that begin alike."""

    def __init__(self, begin: str) -> None:
        self.begin = begin

    def track(self, items: Sequence[T], what: str) -> Iterator[T]:
        """Yield the items, with a line for each."""
        for number, item in enumerate(items, 1):
            self.say(f"{what} {number} of {len(items)}")
            yield item

    def say(self, text: str) -> None:
        """A line."""
        print(f"{self.begin}: {text}", file=sys.stderr, flush=True)


def write_bert_base(folder: Path, tokenizer_from: Path) -> Path:
    """A random BERT-base with the tokenizer of MiniLM, whose vocabulary is BERT's."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(), add_pooling_layer=False)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        (folder / name).write_bytes((tokenizer_from / name).read_bytes())
    return folder


def measure(
    name: str, source: Path, scratch: Path, threads: int, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """A row per shape: {model, threads, batch, tokens, ms: {runtime: median}, ratio: {runtime: theirs / ours}}."""
    quantized = scratch / f"{name}-int8"
    if not quantized.is_dir():
        recipe = make_recipe({"scheme": "w8a8", "attention": "int8", "targets": ["bitwright"]})
        bitwright.quantize(source, out=quantized, recipe=recipe, samples=64, judged=False)
    found = run_bench(
        quantized, Schedule(options.shape or SHAPES, threads, options.rounds), source=ModelDirectory(source),
        slow=not options.quick, progress=Lines(f"{name}, {threads} threads"),
    )  # fmt: skip
    for size in dict.fromkeys((row["batch"], row["tokens"]) for row in found["rows"]):
        here = [block for block in found["blocks"] if (block["batch"], block["tokens"]) == size]
        rounds: dict[int, dict[str, float]] = {}
        for block in here:
            rounds.setdefault(block["round"], {})[block["runtime"]] = block["median_ms"]
        runtimes = [name for name in rounds[min(rounds)] if name != OURS]
        yield {
            "model": name, "threads": threads, "batch": size[0], "tokens": size[1],
            "ms": {r: median(times[r] for times in rounds.values()) for r in (OURS, *runtimes)},
            "ratio": {r: median(times[r] / times[OURS] for times in rounds.values()) for r in runtimes},
            "other_load_cores": median(block["other_load_cores"] for block in here),
        }  # fmt: skip


def startup(quantized: Path) -> dict[str, Any]:
    """Seconds of import, load and the first embedding in a fresh process, median of five, and its peak RSS in MiB."""
    code = (
        "import time; begun = time.perf_counter()\n"
        "import bitwright\n"
        f"bitwright.load({str(quantized)!r}).encode(['a first text'])\n"
        "took = time.perf_counter() - begun\n"
        "from bitwright.runtime.resident import peak_rss_mib\n"
        "print(took, peak_rss_mib())\n"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(5)]
    seconds, mib = zip(*(map(float, run.stdout.split()) for run in runs), strict=True)
    return {"seconds": median(seconds), "peak_rss_mib": max(mib)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line per cell, and the geometric means."""
    runtimes = list(rows[0]["ratio"])
    heading = " | ".join(("model", "threads", "batch × tokens", f"{OURS}, ms", *runtimes))
    lines = [f"| {heading} |", "|---|---|---|---:|" + "---:|" * len(runtimes)]
    for row in rows:
        ratios = " | ".join(f"{row['ratio'][name]:.2f}×" for name in runtimes)
        size = f"{row['batch']} × {row['tokens']}"
        lines.append(f"| {row['model']} | {row['threads']} | {size} | {row['ms'][OURS]:.2f} | {ratios} |")
    means = (math.exp(sum(math.log(row["ratio"][name]) for row in rows) / len(rows)) for name in runtimes)
    return "\n".join([*lines, "| geometric mean | | | | " + " | ".join(f"**{mean:.2f}×**" for mean in means) + " |"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 if a rival is faster anywhere."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minilm", type=Path)
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--threads", type=int, action="append")
    parser.add_argument("--shape", type=shape, action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="without CTranslate2 and compiled torch")
    parser.add_argument("--startup", type=Path, metavar="INT8", help="only time a fresh process that loads this result")
    parser.add_argument("--model", choices=("MiniLM", "BERT-base"), action="append")
    options = parser.parse_args(arguments)
    if options.startup:
        print(json.dumps(startup(options.startup)))
        return 0
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for name in options.model or ("MiniLM", "BERT-base"):
            source = options.minilm if name == "MiniLM" else write_bert_base(scratch / "bert-base", options.minilm)
            for threads in options.threads or (1, 2):
                rows += measure(name, source, scratch, threads, options)
                if options.json:
                    options.json.write_text(json.dumps(rows, indent=1))
    print(table(rows))
    return int(any(ratio < 1.0 for row in rows for ratio in row["ratio"].values()))


if __name__ == "__main__":
    sys.exit(main())
