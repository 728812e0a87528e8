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
from bitwright.engine.ops import Activate, Multiply, MultiplyW8A8, NormRows, Op, Quantize
from bitwright.engine.ops.multiply import PackedW8A8
from bitwright.engine.program import Program
from bitwright.engine.weights import open_weights
from bitwright.files.directory import ModelDirectory
from bitwright.kernels.dispatch import native_isa

SHAPES = ((1, 16), (1, 128), (8, 128), (32, 128), (8, 512))
BLOCK_S = 0.06
CLOSE = 0.995  # cosine: a GELU by tanh, and one more rounding to bf16

Pieces = Callable[[Op], Iterator[Op]]


def norm_and_quantize(op: Op) -> Iterator[Op]:
    """Rows are written by the norm, and read again to be quantized."""
    if not isinstance(op, NormRows) or op.codes is None or op.grid is None:
        yield op
        return
    yield replace(op, codes=None, grid=None, transform=None)
    yield Quantize(op.name, op.y, op.codes, op.grid, op.transform)


def query_key_value(op: Op) -> Iterator[Op]:
    """A linear each, instead of one for the three."""
    if not isinstance(op, MultiplyW8A8) or op.linears < 2:
        yield op
        return
    n = op.n // op.linears
    for i in range(op.linears):
        begin, end = ([k * len(values) // op.linears for values in op.weight] for k in (i, i + 1))
        part = PackedW8A8(*(values[a:b] for values, a, b in zip(op.weight, begin, end, strict=True)))
        yield replace(op, column=op.column + i * n, n=n, weight=part, linears=1)


def linear_and_gelu(op: Op) -> Iterator[Op]:
    """bf16 rows are written, read, and written again by an operator of their own (of GELU by tanh)."""
    if not isinstance(op, Multiply) or op.activation == "none":
        yield op
        return
    yield replace(op, activation="none")
    yield Activate(op.name, op.out, "gelu_tanh")


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
        found.append(Variant(f"{name} apart", Executor(program._replace(ops=ops), isa)))
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
    program = lower_encoder(open_weights(ModelDirectory(options.directory)), pooling=None)
    linears = [op for op in program.ops if isinstance(op, Multiply)]
    if not all(isinstance(op, MultiplyW8A8) and op.grid is None for op in linears):
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
