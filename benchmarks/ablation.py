"""What each fusion of the engine brings: the same program with one of them taken back, timed in turn.

    python benchmarks/ablation.py INT8 [--threads 1 --threads 2] [--rounds 15]

INT8 is an encoder of which every linear is int8 with dynamic activations (scheme w8a8, nothing kept in 16 bit). A ratio
is the time without / the time with, the median over rounds; every variant's output is compared with the whole program's
first.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from bitwright.engine.builders import lower_encoder
from bitwright.engine.executor import Executor
from bitwright.engine.program import Op, Program
from bitwright.engine.weights import Weights
from bitwright.kernels.dispatch import native_isa

SHAPES = ((1, 16), (1, 128), (8, 128), (32, 128), (8, 512))
BLOCK_S = 0.06
CLOSE = 0.995  # cosine: a GELU by tanh, and one more rounding to bf16

Pieces = Callable[[Op], Iterator[Op]]


def norm_and_quantize(op: Op) -> Iterator[Op]:
    """Rows are written by the norm, and read again to be quantized."""
    if op.kind != "norm" or op.settings["grid"] is None:
        yield op
        return
    y, codes, kept = op.writes
    yield replace(op, writes=(y, None, kept), settings=op.settings | {"grid": None})
    yield Op("quantize", op.name, (y,), (codes,), {"grid": op.settings["grid"]})


def query_key_value(op: Op) -> Iterator[Op]:
    """A linear each, instead of one for the three."""
    count = op.settings.get("linears", 1)
    if op.kind != "linear" or count < 2:
        yield op
        return
    n = op.settings["n"] // count
    for i in range(count):
        parts = {
            role: None if values is None else values[i * len(values) // count : (i + 1) * len(values) // count]
            for role, values in op.weights.items()
        }
        settings = op.settings | {"n": n, "column": op.settings["column"] + i * n, "linears": 1}
        yield Op(op.kind, op.name, op.reads, op.writes, settings, parts)


def linear_and_gelu(op: Op) -> Iterator[Op]:
    """bf16 rows are written, read, and written again by an operator of their own (of GELU by tanh)."""
    if op.kind != "linear" or not op.settings["gelu"]:
        yield op
        return
    yield replace(op, settings=op.settings | {"gelu": False})
    yield Op("activate", op.name, op.writes, op.writes, {"function": "gelu_tanh"})


APART: dict[str, Pieces] = {
    "norm, quantize": norm_and_quantize, "q, k, v": query_key_value, "linear, GELU": linear_and_gelu,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Variant:
    """A program, and how batches are given to it."""

    name: str
    executor: Executor
    padded: bool = False

    def run(self, ids: np.ndarray, lengths: np.ndarray, threads: int) -> np.ndarray:
        """The output for sequences of these lengths, taken from the beginning of `ids`."""
        if self.padded:
            lengths = np.full_like(lengths, lengths.max())
        return self.executor.run_packed(ids[: lengths.sum()], lengths, threads)


def variants(program: Program) -> list[Variant]:
    """The program, and those with a fusion taken back; the first is the whole one."""
    isa = native_isa()
    found = [Variant("all", Executor(program, isa))]
    for name, pieces in APART.items():
        ops = tuple(part for op in program.ops for part in pieces(op))
        found.append(Variant(f"{name} apart", Executor(replace(program, ops=ops), isa)))
    found.append(Variant("one group, not L2-sized", Executor(program, isa, group_tokens=1 << 20)))
    return [*found, Variant("padded to the longest", found[0].executor, padded=True)]


def check(each: Sequence[Variant], ids: np.ndarray) -> None:
    """Raises: RuntimeError: a variant computes something else."""
    lengths = np.array([16, 7])
    whole = each[0].run(ids, lengths, 1)
    for variant in each[1:-1]:
        found = variant.run(ids, lengths, 1)
        cosine = float((whole * found).sum() / np.linalg.norm(whole) / np.linalg.norm(found))
        if not cosine > CLOSE:
            raise RuntimeError(f"{variant.name}: cosine {cosine:.5f} to the whole program's output")


def measure(
    each: Sequence[Variant], ids: np.ndarray, lengths: np.ndarray, threads: int, rounds: int
) -> dict[str, float]:
    """{variant: time / time of the first}."""
    times: list[list[float]] = [[] for _ in each]
    for _ in range(rounds):
        for variant, taken in zip(each, times, strict=True):
            samples: list[float] = []
            end = time.perf_counter() + BLOCK_S
            while not samples or time.perf_counter() < end:
                begun = time.perf_counter()
                variant.run(ids, lengths, threads)
                samples.append(time.perf_counter() - begun)
            taken.append(median(samples))
    return {
        variant.name: median(b / a for a, b in zip(times[0], taken, strict=True))
        for variant, taken in zip(each, times, strict=True)
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--threads", type=int, action="append")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    program = lower_encoder(Weights(options.directory), pooling=None)
    if any(op.kind == "linear" and ("colsum" not in op.weights or op.settings["grid"]) for op in program.ops):
        parser.error(f"{options.directory}: every linear must be int8 with dynamic activations (scheme w8a8)")
    each = variants(program)
    rng = np.random.default_rng(0)
    ids = rng.integers(min(1000, program.vocabulary // 2), program.vocabulary, 1 << 15)
    check(each, ids)
    print("| threads | batch × tokens | " + " | ".join(v.name for v in each[1:]) + " |")
    print("|---|---|" + "---:|" * (len(each) - 1))
    mixed = ("32 × 4 to 120", rng.integers(4, 121, 32))
    for threads in options.threads or (1, 2):
        for size, lengths in [*((f"{b} × {t}", np.full(b, t)) for b, t in SHAPES), mixed]:
            found = measure(each, ids, lengths, threads, options.rounds)
            cells = " | ".join(f"{ratio:.2f}" for ratio in list(found.values())[1:])
            print(f"| {threads} | {size} | {cells} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
