"""Two commits beside each other: is the new one as fast as the old one?

    python benchmarks/ab.py OLD NEW INT8 [--json ab.json] [--rounds 9] [--shape 1x128] [--threads 1] [--startup]

OLD and NEW are worktrees, each with its own `.venv`; INT8 is a quantized encoder that both load. A worker per side
loads it once and times blocks on command: `encode` of random token ids on the engine, and on the generic path, whose
linears are `linear_w8a8`; and loading. With --startup fresh processes are timed too, from import to the first
embedding, and their peak memory is compared. A round is old, new, new, old for each cell; its ratio is old over new
(above 1: new is faster), of the geometric means of the fastest calls. First old stands against old: what differs there
is noise.

A cell below `SUSPECT` is measured again with `AGAIN` rounds. The exit code is 1 if the geometric mean of the cells is
below `LEAST_MEAN`, or a cell that was measured again is below `LEAST`.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import geometric_mean, median
from types import TracebackType
from typing import Any, Self

import numpy as np

SHAPES = ((1, 16), (1, 128), (8, 128), (32, 128))
GENERIC_SHAPES = ((8, 128),)
SUSPECT, LEAST, LEAST_MEAN, AGAIN = 0.95, 0.97, 0.99, 25
BLOCK_SECONDS = 0.1

STARTUP = """
import sys, time
begun = time.perf_counter()
import bitwright
bitwright.load(sys.argv[1]).encode(["a first text"])
took = time.perf_counter() - begun
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(took, int(status["VmHWM"].split()[0]) / 1024)
"""


@dataclass(frozen=True, slots=True)
class Cell:
    """What is compared: `what` is engine, generic, load, startup seconds or startup MiB."""

    what: str
    threads: int
    batch: int = 0
    tokens: int = 0

    def __str__(self) -> str:
        size = f", {self.batch} × {self.tokens}" if self.batch else ""
        return f"{self.what}{size}, {self.threads} thread{'s' if self.threads > 1 else ''}"


@dataclass(frozen=True, slots=True)
class Round:
    """One A B B A of one cell. ratio: old / new. others: cores that other processes kept busy; stolen: by the host."""

    ratio: float
    others: float
    stolen: float


class Side:
    """A worker of one worktree."""

    def __init__(self, tree: Path, model: Path, threads: int) -> None:
        self.python, self.model = tree / ".venv" / "bin" / "python", model
        self.environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [self.python, "-P", __file__, "--worker", str(tree), str(model), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment, text=True,
        )  # fmt: skip

    def ask(self, cell: Cell, block_s: float) -> tuple[float, float]:
        """What the cell takes (seconds, or MiB), and the CPU seconds that measuring it took."""
        if cell.what.startswith("startup"):
            return self._start(cell.what)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(asdict(cell) | {"block_s": block_s}), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"the worker of {self.python} ended with exit code {self._process.wait()}")
        taken, cpu = json.loads(answer)
        return taken, cpu

    def _start(self, what: str) -> tuple[float, float]:
        before = os.times()
        command = [str(self.python), "-P", "-c", STARTUP, str(self.model)]
        run = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True)
        after, (seconds, mib) = os.times(), map(float, run.stdout.split())
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        return (mib if what.endswith("MiB") else seconds), cpu

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()


def work(tree: str, model: str, threads: str) -> int:
    """The worker: a line of JSON in, (seconds, CPU seconds) out, until the input ends. Uses the public API alone."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    import bitwright

    assert Path(bitwright.__file__).is_relative_to(Path(tree).resolve()), f"{bitwright.__file__} is not of {tree}"
    models: dict[str, Any] = {"engine": bitwright.load(model, threads=int(threads))}
    assert models["engine"].backend.startswith("engine"), models["engine"].backend
    vocabulary = json.loads((Path(model) / "config.json").read_text())["vocab_size"]
    for line in sys.stdin:
        cell, cpu = json.loads(line), time.process_time()
        if cell["what"] == "load":
            run: Callable[[], object] = lambda: bitwright.load(model, threads=int(threads))  # noqa: E731
        else:
            if cell["what"] not in models:
                models["generic"] = bitwright.load(model, compute="float32")
            shape, draw = (cell["batch"], cell["tokens"]), np.random.default_rng(0)
            ids, chosen = draw.integers(vocabulary // 10, vocabulary, shape).tolist(), models[cell["what"]]
            run = lambda: chosen.encode(ids, batch_size=len(ids))  # noqa: B023, E731
        seconds = fastest(run, cell["block_s"])
        print(json.dumps([seconds, time.process_time() - cpu]), file=replies, flush=True)
    return 0


def fastest(run: Callable[[], object], block_s: float) -> float:
    """Seconds of the fastest call in a block: what else runs on the machine can only slow a call down."""
    run()
    best, end = math.inf, time.perf_counter() + block_s
    while time.perf_counter() < end or best == math.inf:
        begun = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begun)
    return best


def compare(
    old: Path, new: Path, model: Path, cells: Sequence[Cell], *, rounds: int, block_s: float
) -> dict[Cell, list[Round]]:
    """Every round of every cell. Cells of one number of threads share their two workers."""
    found: dict[Cell, list[Round]] = {cell: [] for cell in cells}
    for threads in dict.fromkeys(cell.threads for cell in cells):
        with ExitStack() as stack:
            a, b = (stack.enter_context(Side(tree, model, threads)) for tree in (old, new))
            for number in range(rounds):
                for cell in (cell for cell in cells if cell.threads == threads):
                    found[cell].append(one_round(a, b, cell, block_s))
                if sys.stderr.isatty():
                    print(f"\r{threads} threads: round {number + 1} of {rounds}", end="", file=sys.stderr)
    return found


def one_round(a: Side, b: Side, cell: Cell, block_s: float) -> Round:
    """A B B A: what gets slower or faster evenly meanwhile meets both alike."""
    begun, (busy, stolen) = time.perf_counter(), cpu_seconds()
    answers = [side.ask(cell, block_s) for side in (a, b, b, a)]
    wall, (busy_then, stolen_then) = time.perf_counter() - begun, cpu_seconds()
    old, new = (geometric_mean([answers[i][0], answers[j][0]]) for i, j in ((0, 3), (1, 2)))
    others = (busy_then - busy - sum(cpu for _, cpu in answers)) / wall
    return Round(old / new, max(0.0, others), (stolen_then - stolen) / wall)


def cpu_seconds() -> tuple[float, float]:
    """Since the machine started, all cores together: busy with anything, and stolen by the host."""
    line = Path("/proc/stat").read_text().splitlines()[0]
    user, nice, system, _, _, irq, softirq, steal = (int(ticks) for ticks in line.split()[1:9])
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / tick, steal / tick


def ratio(rounds: Sequence[Round]) -> float:
    """Median over rounds."""
    return median(one.ratio for one in rounds)


def table(measured: dict[Cell, list[Round]], noise: dict[Cell, list[Round]]) -> str:
    """A line per cell: median ratio and its spread, the noise, other load."""
    lines = ["| cell | old / new | from | to | old / old | rounds | other cores | stolen |", "|---|" + "---:|" * 7]
    for cell, rounds in measured.items():
        ratios, still = [one.ratio for one in rounds], f"{ratio(noise[cell]):.3f}" if cell in noise else "–"
        others, stolen = (median(getattr(one, field) for one in rounds) for field in ("others", "stolen"))
        lines.append(
            f"| {cell} | {ratio(rounds):.3f} | {min(ratios):.3f} | {max(ratios):.3f} | {still} | {len(rounds)} "
            f"| {others:.2f} | {stolen:.2f} |"
        )
    mean = geometric_mean(ratio(rounds) for rounds in measured.values())
    return "\n".join([*lines, f"| geometric mean | **{mean:.3f}** | | | | | | |"])


def shape(text: str) -> tuple[int, int]:
    """`8x128`: batch and tokens."""
    batch, tokens = text.split("x")
    return int(batch), int(tokens)


def cells_of(options: argparse.Namespace) -> list[Cell]:
    """What is compared."""
    threads = options.threads or (1, 2)
    found = [Cell("engine", n, *size) for n in threads for size in options.shape or SHAPES]
    found += [Cell("generic", n, *size) for n in threads for size in options.shape or GENERIC_SHAPES]
    found.append(Cell("load", threads[0]))
    return found + [Cell(f"startup {unit}", threads[0]) for unit in ("seconds", "MiB") if options.startup]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 if the new commit is slower."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--json", type=Path, help="write every round there")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shape", type=shape, action="append")
    parser.add_argument("--threads", type=int, action="append")
    parser.add_argument("--startup", action="store_true", help="compare fresh processes too")
    parser.add_argument("--quick", action="store_true", help="without old against old")
    options = parser.parse_args(arguments)
    old, new, model = options.old.resolve(), options.new.resolve(), options.model.resolve()
    cells, how = cells_of(options), {"rounds": options.rounds, "block_s": BLOCK_SECONDS}
    noise = {} if options.quick else compare(old, old, model, cells, **how)
    measured = compare(old, new, model, cells, **how)
    print(table(measured, noise))
    suspects = [cell for cell in cells if ratio(measured[cell]) < SUSPECT]
    again = compare(old, new, model, suspects, **how | {"rounds": AGAIN})
    if suspects:
        print("\nAgain:\n" + table(again, noise))
    if options.json:
        parts = {"noise": noise, "measured": measured, "again": again}
        rows = [
            {"part": part, **asdict(cell), "rounds": [asdict(one) for one in rounds]}
            for part, found in parts.items()
            for cell, rounds in found.items()
        ]
        options.json.write_text(json.dumps(rows, indent=1))
    mean = geometric_mean(ratio(rounds) for rounds in (measured | again).values())
    return int(mean < LEAST_MEAN or any(ratio(rounds) < LEAST for rounds in again.values()))


if __name__ == "__main__":
    sys.exit(work(*sys.argv[2:]) if sys.argv[1:2] == ["--worker"] else main())
