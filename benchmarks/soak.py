"""A soak of the engine: many varied calls, no wrong result, no leak.

    python benchmarks/soak.py INT8 [--calls 200000] [--minutes 60] [--threads 4] [--seed 0] [--json soak.json]

INT8 is a quantized encoder. What one thread makes of each of some random sequences alone is kept; then batches of them,
mostly few and short ones, now and then many and long ones, are run on random numbers of threads, from one Python thread
and from several at once. Every result must equal in bytes what was kept. Memory is what Linux counts as resident; after
warm-up, a tenth of the soak, it may grow by `ROOM_MIB` at most. It ends after so many calls or minutes, whichever comes
first; the exit code is 1 after a wrong result, or when memory grew by more.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.engine.executor import Executor
from bitwright.files.directory import ModelDirectory
from bitwright.runtime.engine_model import EngineModel
from bitwright.runtime.resident import rss_mib

ROOM_MIB = 16.0
CALLERS = (1, 1, 1, 2, 3)  # Python threads at once, of a round
ROUND = 50  # calls
_SEQUENCES = 300


@dataclass(frozen=True, slots=True)
class Pool:
    """Sequences of token ids with their token types, and what one thread makes of each alone."""

    ids: list[list[int]]
    types: list[list[int]]
    alone: list[np.ndarray]


def random_lengths(generator: np.random.Generator, most: int, count: int) -> np.ndarray:
    """Mostly short: seven in ten up to 32 tokens, one in twenty as long as the model takes."""
    bounds = generator.choice([32, 128, most], count, p=[0.7, 0.25, 0.05])
    lengths: np.ndarray = generator.integers(1, np.minimum(bounds, most) + 1)
    return lengths


def make_pool(executor: Executor, most: int, generator: np.random.Generator, count: int = _SEQUENCES) -> Pool:
    """`count` sequences of up to `most` tokens."""
    program, lengths = executor.program, random_lengths(generator, most, count)
    ids = [generator.integers(0, program.vocabulary, length).tolist() for length in lengths]
    types = [generator.integers(0, program.types, length).tolist() for length in lengths]
    alone = [executor.run([one], 1, types=[kinds]) for one, kinds in zip(ids, types, strict=True)]
    return Pool(ids, types, alone)


def wrong_calls(executor: Executor, pool: Pool, *, calls: int, threads: int, seed: int) -> int:
    """Of `calls` random batches on 1 to `threads` threads, how many differ from what came alone."""
    generator, wrong = np.random.default_rng(seed), 0
    for _ in range(calls):
        most = generator.choice([4, 16, 64], p=[0.7, 0.25, 0.05])
        chosen = generator.integers(0, len(pool.ids), generator.integers(1, most + 1))
        got = executor.run(
            [pool.ids[i] for i in chosen],
            int(generator.integers(1, threads + 1)),
            types=[pool.types[i] for i in chosen],
        )
        wrong += got.tobytes() != b"".join(pool.alone[i].tobytes() for i in chosen)
    return wrong


def soak(model: EngineModel, *, calls: int, minutes: float, threads: int, seed: int) -> dict[str, Any]:
    """{calls, seconds, wrong, rss_mib: [after warm-up, at the end], rounds: RSS at up to 100 points between}."""
    executor, generator = model.executor, np.random.default_rng(seed)
    pool = make_pool(executor, model.max_tokens, generator)
    begun, end = time.monotonic(), time.monotonic() + 60 * minutes
    done = wrong = 0
    resident = [(0.0, rss_mib())]
    with ThreadPoolExecutor(max(CALLERS)) as workers:
        while done < calls and time.monotonic() < end:
            left = min(ROUND, calls - done)
            callers = min(int(generator.choice(CALLERS)), left)
            each = left // callers
            seeds = generator.integers(0, 1 << 62, callers).tolist()
            running = [
                workers.submit(wrong_calls, executor, pool, calls=each, threads=threads, seed=one) for one in seeds
            ]
            wrong += sum(future.result() for future in running)
            done += each * callers
            progress = max(done / calls, (time.monotonic() - begun) / (60 * minutes))
            resident.append((progress, rss_mib()))
            if sys.stderr.isatty():
                print(f"\r{done} calls, {wrong} wrong, {resident[-1][1]:.1f} MiB", end="", file=sys.stderr)
    warm = [mib for progress, mib in resident if progress >= 0.1]
    return {
        "calls": done, "seconds": time.monotonic() - begun, "wrong": wrong, "rss_mib": [warm[0], warm[-1]],
        "rounds": warm[:: max(1, len(warm) // 100)],
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 if a result was wrong, or memory grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=4, help="of a call, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write what was found there")
    options = parser.parse_args(arguments)
    model = EngineModel(ModelDirectory(options.model))
    found = soak(model, calls=options.calls, minutes=options.minutes, threads=options.threads, seed=options.seed)
    first, last = found["rss_mib"]
    rate = found["calls"] / found["seconds"]
    print(f"{found['calls']} calls in {found['seconds']:.0f} s ({rate:.0f} a second): {found['wrong']} wrong")
    print(
        f"resident: {first:.1f} MiB after warm-up, {last:.1f} MiB at the end; up to {ROOM_MIB:.0f} MiB more are allowed"
    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return int(found["wrong"] > 0 or last - first > ROOM_MIB)


if __name__ == "__main__":
    sys.exit(main())
