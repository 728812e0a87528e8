"""The engine beside OpenVINO INT8 on real texts of mixed lengths, in batches of 32.

    python benchmarks/real_text.py MINILM --texts stsb=FILE.tsv --texts medline=corpus.jsonl [--threads 1 --threads 2]

MINILM is the float model's directory; both runtimes run INT8 made from it. FILE: a text a line (before the first tab),
or .jsonl with "title" and "text". OpenVINO pads a batch to its longest text, as all its users must; the engine packs
texts end to end. Both take batches in two orders: sorted by length, and as the texts come. Tokenizing is not timed.
Both stay loaded in one process and take turns; a ratio is the median over rounds.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tokenizers import Tokenizer

import bitwright
from bitwright.engine.builders import lower_encoder
from bitwright.engine.executor import Executor
from bitwright.engine.weights import open_weights
from bitwright.files.directory import ModelDirectory
from bitwright.kernels.dispatch import native_isa
from bitwright.recipe import make_recipe
from bitwright.runtime.bench import PREPARE_TIMEOUT_S
from bitwright.runtime.bench_process import Worker, worker_command, worker_environment
from bitwright.runtime.bench_runtimes import RUNTIMES, Files

RIVAL, BATCH, MOST_TEXTS, MOST_TOKENS = "openvino int8", 32, 320, 256
PAUSE_S = 0.05  # in which the threads of the one before stop spinning

Ids = list[int]


def read_texts(file: Path) -> list[str]:
    """The texts of a file, at most MOST_TEXTS."""
    lines = file.read_text(encoding="utf-8").splitlines()[:MOST_TEXTS]
    if file.suffix == ".jsonl":
        rows = [json.loads(line) for line in lines]
        return [" ".join(filter(None, (row.get("title"), row.get("text")))) for row in rows]
    return [line.split("\t")[0] for line in lines]


def prepare(source: Path, folder: Path, threads: int) -> tuple[Path, Path]:
    """(our checkpoint, the rival's files)."""
    ours, theirs = folder / "int8", folder / "rival"
    recipe = make_recipe({"scheme": "w8a8", "attention": "int8", "targets": ["bitwright"]})
    bitwright.quantize(source, out=ours, recipe=recipe, samples=64, judged=False)
    theirs.mkdir()
    command = worker_command(RIVAL, source, config_from=source, threads=threads, prepare=theirs)
    with Worker(RIVAL, command, worker_environment(threads), folder / "rival.log") as worker:
        worker.answer(PREPARE_TIMEOUT_S)
    return ours, theirs


def padded(batch: Sequence[Ids]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask, int64 (texts, longest)."""
    ids = np.zeros((len(batch), max(map(len, batch))), np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(batch):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    return ids, mask


def measure(name: str, ids: list[Ids], executor: Executor, rival: Any, threads: int, rounds: int) -> dict[str, Any]:
    """Seconds for all texts of either runtime in either order, and the ratios."""
    orders = {"sorted": sorted(ids, key=len, reverse=True), "arrival": ids}
    runs: dict[str, Callable[[], None]] = {}

    def ours(batches: list[list[Ids]]) -> None:
        for batch in batches:
            executor.run(batch, threads)

    def theirs(batches: list[tuple[np.ndarray, np.ndarray]]) -> None:
        for ids_BT, mask_BT in batches:
            rival(ids_BT, mask_BT)

    for order, sequences in orders.items():
        batches = [sequences[i : i + BATCH] for i in range(0, len(sequences), BATCH)]
        as_rival = [padded(batch) for batch in batches]
        runs[f"bitwright, {order}"] = lambda batches=batches: ours(batches)  # type: ignore[misc]
        runs[f"{RIVAL}, {order}"] = lambda batches=as_rival: theirs(batches)  # type: ignore[misc]
    taken: dict[str, list[float]] = {run: [] for run in runs}
    for round_ in range(rounds + 1):  # the first warms up
        for run, call in runs.items():
            time.sleep(PAUSE_S)
            begun = time.perf_counter()
            call()
            if round_:
                taken[run].append(time.perf_counter() - begun)
    ratios = {
        order: median(b / a for a, b in zip(taken[f"bitwright, {order}"], taken[f"{RIVAL}, {order}"], strict=True))
        for order in orders
    }
    seconds = {run: median(times) for run, times in taken.items()}
    return {"texts": name, "threads": threads, "mean_tokens": float(np.mean([*map(len, ids)])), "ratio": ratios,
            "seconds": seconds}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minilm", type=Path)
    parser.add_argument("--texts", action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--threads", type=int, action="append")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    tokenizer = Tokenizer.from_file(str(options.minilm / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MOST_TOKENS)
    rows = []
    print("| texts | threads | mean tokens | sorted | in arrival order |\n|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = prepare(options.minilm, Path(folder), 2)
        executor = Executor(lower_encoder(open_weights(ModelDirectory(ours)), pooling=None), native_isa())
        for threads in options.threads or (1, 2):
            rival = RUNTIMES[RIVAL].open(Files(theirs), threads)
            for name, file in (text.split("=", 1) for text in options.texts):
                ids = [encoding.ids for encoding in tokenizer.encode_batch(read_texts(Path(file)))]
                row = measure(name, ids, executor, rival, threads, options.rounds)
                rows.append(row)
                ratios = " | ".join(f"{ratio:.2f}×" for ratio in row["ratio"].values())
                print(f"| {name} | {threads} | {row['mean_tokens']:.0f} | {ratios} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return int(any(ratio < 1.0 for row in rows for ratio in row["ratio"].values()))


if __name__ == "__main__":
    sys.exit(main())
