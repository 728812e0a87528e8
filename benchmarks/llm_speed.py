"""Language models: tokens per second of the engine and of other CPU engines, each with its own conversion of one model.

    python benchmarks/llm_speed.py FILES --json rounds.jsonl --python llama.cpp=VENV/bin/python --python openvino=…
                                   [--model smollm2] [--engine "llama.cpp Q4_0"] [--cell "decode 8"] [--rounds 7]

FILES holds a folder for each model, and in it what `RUNS` names:

    FILES/smollm2/w4a16/                bitwright quantize … (its default group)     FILES/llama-1.1b/… likewise
    FILES/smollm2/w8a8/
    FILES/smollm2/model.Q4_0.gguf       python benchmarks/llm_gguf.py SMOLLM2 FILES/smollm2/model.gguf
    FILES/smollm2/model.Q8_0.gguf
    FILES/smollm2/openvino-int4/        optimum-cli export openvino --task text-generation-with-past
    FILES/smollm2/openvino-int8/            --weight-format int4 --sym --group-size 64 (128 where K allows) | int8

The float models are SmolLM2-135M as a directory, and what `benchmarks/llm_random.py` makes. The script says what it
leaves out: a file that is not there, an engine without `--python` (ours runs in the python of this script). Each run
has a process of its own (`llm_engines.py`), which stays loaded; in a round each cell goes through all runs in turn. A
cell is a prompt and steps after it. The steps are timed; where there are none, the prompt is, up to the logits of its
last token. An engine that has a choice of settings gets the fastest one for that cell. Each measurement is a line in
the file `--json`, and a further call adds rounds to it.

A round of a cell in which other programs kept more than `QUIET_CORES` busy does not count; the exit code is 1 where a
cell has fewer than `--rounds` that count. The table has medians, and our tokens per second over theirs at like bits in
the same round: the median and the lower quartile.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import psutil
from llm_engines import OURS

from bitwright.errors import BitwrightError
from bitwright.runtime.bench_load import LoadLimit, machine_cpu_s, own_cpu_s, wait_until_quiet
from bitwright.runtime.bench_process import Worker, worker_environment
from bitwright.runtime.environment import cpu_name

QUIET_CORES = 0.15
WAIT_S = 10.0  # at most, for the machine to become quiet before a measurement
PAUSE_S = 0.3  # in which the threads of the one before stop spinning
TIMEOUT_S = 900.0
PERPLEXITY_TOKENS = 1500
WEIGHTS = ("*.safetensors", "openvino_model.bin")


class Cell(NamedTuple):
    """What is timed: the steps of so many sequences after a prompt, or the prompt itself where there are no steps."""

    sequences: int
    prompt: int
    steps: int


class Run(NamedTuple):
    """An engine with one precision. bits: ours with as many is what it is compared with. file: in a model's folder."""

    engine: str
    precision: str
    bits: int
    file: str

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}"


# 2 models × 7 runs × 6 cells = 84.
MODELS = ("smollm2", "llama-1.1b")
CELLS = {
    "prefill 512": Cell(1, 512, 0),
    "decode 1": Cell(1, 32, 63),
    "decode 4": Cell(4, 32, 63),
    "decode 8": Cell(8, 32, 63),
    "decode 32": Cell(32, 32, 63),
    "decode 1 at 4096": Cell(1, 4096, 126),
}
RUNS = (
    Run(OURS, "W4", 4, "w4a16"),
    Run(OURS, "W8A8", 8, "w8a8"),
    Run("llama.cpp", "Q4_0", 4, "model.Q4_0.gguf"),
    Run("llama.cpp", "Q8_0", 8, "model.Q8_0.gguf"),
    Run("openvino", "INT4", 4, "openvino-int4"),
    Run("openvino", "INT8", 8, "openvino-int8"),
    Run("vllm", "W8A8", 8, "w8a8"),
)

Row = dict[str, Any]


def megabytes(path: Path) -> float:
    """Of the weights."""
    files = [path] if path.is_file() else [file for pattern in WEIGHTS for file in path.glob(pattern)]
    return sum(file.stat().st_size for file in files) / 1e6


def perplexity_ids(folder: Path) -> list[int]:
    """The first tokens of Python's help pages, by the model's tokenizer."""
    from tokenizers import Tokenizer

    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    text = "\n".join(topics[name] for name in sorted(topics))
    ids: list[int] = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text[: 10 * PERPLEXITY_TOKENS]).ids
    return ids[:PERPLEXITY_TOKENS]


def runs_of(options: argparse.Namespace, folder: Path) -> Iterator[Run]:
    """Those asked for whose files and environments are there; a line for each that is left out."""
    for run in RUNS:
        if options.engine and str(run) not in options.engine:
            continue
        if run.engine not in options.python:
            say(f"{run} is left out: no --python {run.engine}=…")
        elif not (folder / run.file).exists():
            say(f"{run} is left out: there is no {folder / run.file}")
        else:
            yield run


class Bench:
    """The workers of one model, each with its model loaded."""

    def __init__(
        self, folder: Path, runs: Iterable[Run], chosen: Iterable[Row], options: argparse.Namespace, stack: ExitStack
    ) -> None:
        """chosen: measurements whose settings were chosen while nothing else ran, and stay."""
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.folder, self.workers = folder, dict[Run, Worker]()
        self._settings = {(row["run"], row["cell"]): row["setting"] for row in chosen}
        self.config = json.loads((folder / "w8a8" / "config.json").read_text(encoding="utf-8"))
        self.facts = {"model": folder.name, "threads": options.threads, "cpu": cpu_name()}
        for run in runs:
            command = [options.python[run.engine], "-P", str(Path(__file__).with_name("llm_engines.py")), run.engine]
            command += [str(folder / run.file), "--threads", str(options.threads)]
            log = logs / f"{run}.log"
            worker = stack.enter_context(Worker(str(run), command, worker_environment(options.threads), log))
            try:
                loaded = worker.answer(TIMEOUT_S)
            except BitwrightError as error:
                say(f"{run} is left out: {error}")
                continue
            self.workers[run] = worker
            say(f"{folder.name}: {run} loaded in {loaded['load_s']:.1f} s: {loaded['about']}")
        self._processes = [psutil.Process()]
        for worker in self.workers.values():
            self._processes += [worker.process, *worker.process.children(recursive=True)]

    def measure(self, request: Mapping[str, Any], cell: str = "") -> Iterator[tuple[Run, Row]]:
        """The answer of each run, with the cores that were busy with other things. One that fails is left out then."""
        for run, worker in list(self.workers.items()):
            time.sleep(PAUSE_S)
            wait_until_quiet(LoadLimit(QUIET_CORES), time.monotonic() + WAIT_S, busy_s=self._others_s)
            others_s, wall_s = self._others_s(), time.monotonic()
            try:
                answer = worker.ask({**request, "setting": self._settings.get((str(run), cell))}, TIMEOUT_S)
            except BitwrightError as error:
                say(f"{run} is left out from here: {error}")
                del self.workers[run]
                continue
            wall_s = time.monotonic() - wall_s
            others = max(0.0, (self._others_s() - others_s) / wall_s)
            if others <= QUIET_CORES:
                self._settings[str(run), cell] = answer["setting"]
            size = megabytes(self.folder / run.file)
            yield run, {**self.facts, "run": str(run), "bits": run.bits, "mb": size, "others": others, **answer}

    def _others_s(self) -> float:
        return machine_cpu_s() - own_cpu_s(self._processes)

    def perplexities(self) -> Iterator[Row]:
        """Of each run whose engine shows its logits, of the file that its speed is of."""
        for run, row in self.measure({"ids": perplexity_ids(self.folder / "w8a8")}):
            say(f"{self.folder.name}: {run}: perplexity {row['perplexity']}")
            yield row

    def round(self, number: int, cells: Sequence[str], seconds: float) -> Iterator[Row]:
        """Every cell of every run, in turn."""
        for name in cells:
            cell = CELLS[name]
            if cell.prompt + cell.steps > self.config["max_position_embeddings"]:
                say(f"{self.folder.name}, {name} is left out: the model has too few positions")
                continue
            request = {**cell._asdict(), "vocabulary": self.config["vocab_size"], "seconds": seconds}
            for run, row in self.measure(request, name):
                say(f"{self.folder.name}, round {number}, {name}, {run}: {row['per_s']:.1f} tokens/s "
                    f"({row['setting']}), {row['others']:.2f} cores of other load")  # fmt: skip
                yield {"cell": name, "round": number, **row}


def say(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


def read_rows(path: Path) -> list[Row]:
    """All lines of a file of rounds, none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def quiet(rows: Iterable[Row]) -> list[Row]:
    """The rows of rounds in which no measurement of their cell met other load."""
    kept = [row for row in rows if "cell" in row]
    loud = {_round(row) for row in kept if row["others"] > QUIET_CORES}
    return [row for row in kept if _round(row) not in loud]


def _round(row: Row) -> tuple[Any, ...]:
    return row["model"], row["threads"], row["cell"], row["round"]


def table(rows: Sequence[Row]) -> str:
    """A line for each model, number of threads, cell and run, of the rounds that count."""
    counted, ours = quiet(rows), f"{OURS} "
    groups: dict[tuple[Any, ...], dict[int, Row]] = {}
    for row in rows:
        if "cell" in row:
            groups.setdefault((row["model"], row["threads"], row["cell"], row["run"]), {})
    for row in counted:
        groups[row["model"], row["threads"], row["cell"], row["run"]][row["round"]] = row
    judged = {(row["model"], row["run"]): row["perplexity"] for row in rows if "perplexity" in row}
    lines = ["| model | threads | cell | run | MB | perplexity | setting | tokens/s | ours / it | quartile | rounds |",
             "|---|---:|---|---|---:|---:|---|---:|---:|---:|---:|"]  # fmt: skip
    for (model, threads, cell, run), by_round in groups.items():
        if not by_round:
            lines.append(f"| {model} | {threads} | {cell} | {run} | | | | no quiet round | | | 0 |")
            continue
        last = by_round[max(by_round)]
        mine = next((group for key, group in groups.items() if key[:3] == (model, threads, cell) and group
                     and key[3].startswith(ours) and group[max(group)]["bits"] == last["bits"]), {})  # fmt: skip
        ratios = [mine[number]["per_s"] / row["per_s"] for number, row in by_round.items() if number in mine]
        compared = [f"{median(ratios):.2f}", f"{np.quantile(ratios, 0.25):.2f}"] if ratios else ["–", "–"]
        loss = judged.get((model, run))
        fields = [
            model, threads, cell, run, f"{last['mb']:.0f}", "–" if loss is None else f"{loss:.3f}", last["setting"],
            f"{median(row['per_s'] for row in by_round.values()):.1f}", *compared, len(by_round),
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, fields)) + " |")
    return "\n".join(lines)


def short_of(rows: Sequence[Row], rounds: int) -> list[str]:
    """The cells that have had fewer quiet rounds than asked."""
    counted = {_round(row) for row in quiet(rows)}
    cells = {_round(row)[:3]: sum(one[:3] == _round(row)[:3] for one in counted) for row in rows if "cell" in row}
    return [f"{model}, {threads} threads, {cell}: {number} quiet rounds of {rounds}"
            for (model, threads, cell), number in cells.items() if number < rounds]  # fmt: skip


def python_of(text: str) -> tuple[str, str]:
    """`ENGINE=PATH`."""
    engine, sign, path = text.partition("=")
    if not sign or engine not in {run.engine for run in RUNS}:
        raise argparse.ArgumentTypeError(f"{text!r} is not ENGINE=PATH with one of the engines")
    return engine, path


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, add to the file, print the table of all that it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path)
    parser.add_argument("--json", type=Path, required=True, help="a line for each measurement is added there")
    parser.add_argument("--python", type=python_of, action="append", default=[], help="ENGINE=its environment's python")
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--engine", action="append", choices=[str(run) for run in RUNS])
    parser.add_argument("--cell", action="append", choices=list(CELLS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of work in a measurement, at least")
    parser.add_argument("--perplexity", action="store_true", help=f"of {PERPLEXITY_TOKENS} tokens, beside the speed")
    options = parser.parse_args(arguments)
    options.python = {OURS: sys.executable, **dict(options.python)}
    earlier = read_rows(options.json)
    first = 1 + max((row["round"] for row in earlier if "cell" in row), default=0)
    for model in options.model or MODELS:
        with ExitStack() as stack, options.json.open("a") as file:
            folder = options.files / model
            chosen = [row for row in earlier if "cell" in row and row["others"] <= QUIET_CORES
                      and (row["model"], row["threads"]) == (model, options.threads)]  # fmt: skip
            bench = Bench(folder, runs_of(options, folder), chosen, options, stack)
            found: list[Iterator[Row]] = [bench.perplexities()] if options.perplexity else []
            for number in range(first, first + options.rounds):
                found.append(bench.round(number, options.cell or list(CELLS), options.seconds))
            for measured in found:
                for row in measured:
                    print(json.dumps(row), file=file, flush=True)
    rows = read_rows(options.json)
    print(f"{cpu_name()}\n\n{table(rows)}")
    lacking = short_of(rows, options.rounds)
    print("\n".join(["", "Not a quiet run:", *lacking] if lacking else ["", "A quiet run."]))
    return int(bool(lacking))


if __name__ == "__main__":
    sys.exit(main())
