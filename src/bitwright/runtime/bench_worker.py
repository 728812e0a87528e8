"""Runs one runtime in its own process, driven by JSON lines (`python -m bitwright.runtime.bench_worker --help`).

    first line out                                          {"load_s"} once the model is ready
    {"do": "block", "shape", "seed", "block_s"}             {"samples_ms", "start_s", "end_s", "idle_cores"}
    {"do": "output", "shape", "seed", "path"}               {} once the first output is in that .npy file, as fp32
    {"do": "memory"}                                        {"peak_rss_mib"}
    end of input                                            the process ends

A shape is [batch, tokens, work]: `bench_summary.Shape`.

With `--prepare OUT` it converts DIRECTORY for the runtime into OUT, answers {"note"} and ends. Whatever goes wrong is
answered as {"error": one line}, with the traceback on stderr, and ends the process. Clocks are `time.monotonic`.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from bitwright.families.tasks import TASKS
from bitwright.files.opening import open_path
from bitwright.record import Shape
from bitwright.runtime.bench_inputs import model_shape
from bitwright.runtime.bench_runtimes import Files, Step, runtimes
from bitwright.runtime.resident import peak_rss_mib

Request = dict[str, Any]
Reply = dict[str, Any]

# The threads of OpenMP, ONNX Runtime and others spin for a while when a run ends. None of their settings is changed,
# since that spinning is part of how fast they are; a reply waits until it is over, and the next runtime is undisturbed.
_PARKED_CORES = 0.1
_PARKING_LIMIT_S = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until the input ends; the exit code is 1 after an error."""
    parser = argparse.ArgumentParser(prog="bitwright.runtime.bench_worker")
    parser.add_argument("runtime")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--config-from", type=Path, required=True, help="directory of the config.json")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--task", choices=TASKS, help="the model's task, if its files do not say it")
    parser.add_argument("--prepare", type=Path, metavar="OUT")
    options = parser.parse_args(arguments)
    table = runtimes(options.task)
    if options.runtime not in table:
        parser.error(f"there is no runtime {options.runtime!r}; there are {', '.join(table)}")
    requests, replies = _claim_standard_streams()

    def reply(message: Reply) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    runtime, files = table[options.runtime], Files(options.directory, options.task)
    try:
        if options.prepare is not None:
            if runtime.prepare is None:
                raise ValueError(f"the runtime {options.runtime} needs no preparation")
            reply({"note": runtime.prepare(files, options.prepare)})
            return 0
        shape = model_shape(open_path(options.config_from))
        started = time.monotonic()
        opened = runtime.open(files, options.threads)
        reply({"load_s": time.monotonic() - started})

        def make(request: Request) -> Step:
            return runtime.make(opened, shape, Shape(*request["shape"]), request["seed"])

        for line in requests:
            request = json.loads(line)
            reply(_ANSWERS[request["do"]](make, request))
    except Exception as error:  # the boundary of the process: the driver decides what a failure means
        traceback.print_exc()
        reply({"error": " ".join(f"{type(error).__name__}: {error}".split())})
        return 1
    return 0


def _claim_standard_streams() -> tuple[TextIO, TextIO]:
    """Keep stdin and stdout for the protocol: libraries print to stderr and read an empty input."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


def _measure_block(make: Callable[[Request], Step], request: Request) -> Reply:
    """Run for `block_s` / 3 to warm up, then for `block_s`, at least once each; a sample is one step in ms."""
    block_s, step = request["block_s"], make(request)

    def run_for(seconds: float) -> list[float]:
        samples_ms: list[float] = []
        end = time.perf_counter() + seconds
        while not samples_ms or time.perf_counter() < end:
            started = time.perf_counter()
            step()
            samples_ms.append(1e3 * (time.perf_counter() - started))
        return samples_ms

    start_s = time.monotonic()
    run_for(block_s / 3)
    samples_ms = run_for(block_s)
    end_s = time.monotonic()
    return {"samples_ms": samples_ms, "start_s": start_s, "end_s": end_s, "idle_cores": _wait_until_parked()}


def _wait_until_parked() -> float:
    """Sleep until this process's threads have stopped spinning; returns the cores that they still burn (about 0)."""
    deadline = time.monotonic() + _PARKING_LIMIT_S
    while True:
        cpu, wall = time.process_time(), time.monotonic()
        time.sleep(0.01)
        cores = (time.process_time() - cpu) / (time.monotonic() - wall)
        if cores < _PARKED_CORES or time.monotonic() > deadline:
            return cores


def _save_output(make: Callable[[Request], Step], request: Request) -> Reply:
    output = make(request)()
    np.save(request["path"], output.float().numpy() if hasattr(output, "float") else np.asarray(output, np.float32))
    return {}


def _report_memory(make: Callable[[Request], Step], request: Request) -> Reply:
    return {"peak_rss_mib": peak_rss_mib()}


_ANSWERS: dict[str, Callable[[Callable[[Request], Step], Request], Reply]] = {
    "block": _measure_block,
    "output": _save_output,
    "memory": _report_memory,
}


if __name__ == "__main__":
    sys.exit(main())
