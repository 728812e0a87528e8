"""Several callers at once: the engine beside OpenVINO INT8, requests per second and how long one takes.

    python benchmarks/callers.py MINILM [--threads 2] [--shape 1x128] [--callers 1 2 4 8] [--rounds 7] [--json FILE]

MINILM is the float model's directory; both runtimes run INT8 made from it. Each caller is a Python thread that sends a
request as soon as its last one is answered. The engine has one pool for all callers. OpenVINO has a request for each
caller, and is compiled twice: for throughput, by its own choice of streams, and with one stream for each thread; the
better one of a round counts. Both stay loaded in one process and take turns; a ratio is the median over rounds.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from real_text import PAUSE_S, prepare

from bitwright.cli.bench import shape
from bitwright.engine.builders import lower_encoder
from bitwright.engine.executor import Executor
from bitwright.engine.weights import open_weights
from bitwright.files.directory import ModelDirectory
from bitwright.kernels.dispatch import native_isa
from bitwright.runtime.bench_inputs import model_shape, random_tokens

ROUND_SECONDS = 1.0

Call = Callable[[], object]


def openvino_callers(model: Path, callers: int, ids_BT: np.ndarray, settings: dict[str, Any]) -> list[Call]:
    """A call for each caller, with a request of its own."""
    import openvino

    compiled = openvino.Core().compile_model(model / "model.xml", "CPU", settings)
    mask_BT = np.ones_like(ids_BT)

    def call_of(request: Any) -> Call:
        return lambda: request.infer([ids_BT, mask_BT], share_inputs=True, share_outputs=True)

    return [call_of(compiled.create_infer_request()) for _ in range(callers)]


def send(calls: Sequence[Call]) -> list[float]:
    """Seconds that each request took, of callers that send for ROUND_SECONDS."""
    taken: list[list[float]] = [[] for _ in calls]
    start = threading.Barrier(len(calls))

    def caller(number: int) -> None:
        start.wait()
        end = time.perf_counter() + ROUND_SECONDS
        while (begun := time.perf_counter()) < end:
            calls[number]()
            taken[number].append(time.perf_counter() - begun)

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [seconds for each in taken for seconds in each]


def measure(runtimes: dict[str, list[Call]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """For each runtime requests per second and the 99th percentile in ms, of every round."""
    found: dict[str, dict[str, list[float]]] = {name: {"per_s": [], "p99_ms": []} for name in runtimes}
    for round_ in range(rounds + 1):  # the first warms up
        for name, calls in runtimes.items():
            time.sleep(PAUSE_S)
            taken = send(calls)
            if round_:
                found[name]["per_s"].append(len(taken) / ROUND_SECONDS)
                found[name]["p99_ms"].append(1e3 * float(np.percentile(taken, 99)))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each number of callers, and write all numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minilm", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", type=shape, default=(1, 128))
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rows = []
    print(
        "| callers | per second, ours | OpenVINO | ratio | p99 ms, ours | OpenVINO |\n|---:|---:|---:|---:|---:|---:|"
    )
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = prepare(options.minilm, Path(folder), options.threads)
        executor = Executor(lower_encoder(open_weights(ModelDirectory(ours)), pooling=None), native_isa())
        batch, tokens = options.shape
        ids_BT, _ = random_tokens(model_shape(ModelDirectory(ours)), batch=batch, tokens=tokens, seed=0)
        flat, lengths = ids_BT.reshape(-1), np.full(batch, tokens)
        for callers in options.callers:
            common = {"INFERENCE_NUM_THREADS": options.threads}
            streams = {
                "throughput": common | {"PERFORMANCE_HINT": "THROUGHPUT", "PERFORMANCE_HINT_NUM_REQUESTS": callers},
                "a stream a thread": common | {"NUM_STREAMS": options.threads},
            }
            runtimes = {name: openvino_callers(theirs, callers, ids_BT, each) for name, each in streams.items()}
            runtimes["ours"] = [lambda: executor.run_packed(flat, lengths, options.threads)] * callers
            found = measure(runtimes, options.rounds)
            rows.append({"callers": callers, "shape": options.shape, "threads": options.threads, **found})
            best = [max(each) for each in zip(*(found[name]["per_s"] for name in streams), strict=True)]
            p99 = min(median(found[name]["p99_ms"]) for name in streams)
            ratio = median(a / b for a, b in zip(found["ours"]["per_s"], best, strict=True))
            print(
                f"| {callers} | {median(found['ours']['per_s']):.0f} | {median(best):.0f} | {ratio:.2f}× "
                f"| {median(found['ours']['p99_ms']):.2f} | {p99:.2f} |",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
