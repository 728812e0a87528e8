"""Measures speed and memory of a quantized checkpoint, its float source and other runtimes on this machine.

Other work, clock changes and caches move absolute times by tens of percent from minute to minute. So the runtimes are
interleaved: one process each, loaded once; shape by shape, and inside a shape round by round, A B C A B C. Only one
process computes at a time. A ratio is taken between blocks of the same round, which met the same conditions, and its
median over the rounds is reported. With a `LoadLimit` only rounds on a quiet machine count (`bench_load` says why).
"""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from bitwright.errors import InputError, TargetError
from bitwright.families.tasks import TaskName
from bitwright.files.directory import ModelDirectory, source_bytes
from bitwright.files.opening import open_path
from bitwright.files.task import find_task
from bitwright.progress import Progress, Quiet
from bitwright.record import Shape, shape_words
from bitwright.runtime.bench_inputs import model_shape
from bitwright.runtime.bench_load import LoadLimit, machine_cpu_s, own_cpu_s, quiet_rounds, short_of, wait_until_quiet
from bitwright.runtime.bench_process import Worker, worker_command, worker_environment
from bitwright.runtime.bench_runtimes import Files, Runtime, runtimes
from bitwright.runtime.bench_summary import Block, summarize
from bitwright.runtime.bench_tokens import longest
from bitwright.runtime.resident import available_bytes

PREPARE_TIMEOUT_S = 3600.0
LOAD_TIMEOUT_S = 900.0
BLOCK_TIMEOUT_S = 900.0

PEAK_RSS_INCLUDES = (
    "the largest resident memory of the runtime's own process over all shapes: interpreter, libraries, model, "
    "activations and mapped file pages. A conversion runs in another process and is not counted"
)
LOAD_INCLUDES = (
    "the time to import the runtime's libraries and open the model, whether its files were in the page cache or "
    "not. A conversion is not counted"
)


@dataclass(frozen=True, slots=True)
class Schedule:
    """What is timed, and how often. shapes: a `Shape` each, or (batch, tokens) of a forward. threads: for each runtime.
    block_s: the length of a block in s. limit: what other programs may do meanwhile; without one every round counts.
    """

    shapes: Sequence[tuple[int, int] | Shape]
    threads: int
    rounds: int = 5
    block_s: float = 0.3
    limit: LoadLimit | None = None


@dataclass(frozen=True, slots=True)
class _Running:
    """A runtime with a loaded model. note: how another runtime's model was converted."""

    name: str
    worker: Worker
    load_s: float
    note: str | None


def run_bench(
    directory: Path,
    schedule: Schedule,
    *,
    source: ModelDirectory | None,
    others: Mapping[str, Path] | None = None,
    rivals: bool = True,
    slow: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure the checkpoint `directory`; with `source` (the float model) also fp32 and bf16, and with `rivals` other
    runtimes.

    others: more checkpoints of the same model, by the names of their rows. slow: also rivals that take minutes.

    A sample is one forward of `batch` sequences of `tokens` random tokens without padding, up to the first output; of
    language models, what `bench_tokens` says. A block warms up for block_s / 3 and then runs for block_s. Runtimes stay
    loaded side by side: memory must hold them all.

    Returns the `speed` of a Record (`bitwright.record`) with the key `size` added:
        threads, rounds, block_s
        rows [{runtime, batch, tokens, work, median_ms, min_ms, per_second, ratio_to_fp32, ratio_to_bf16, note}]:
            `summarize`, of the rounds that count; a shape with fewer of them than the limit asks for has no rows
        too_busy: whether no shape has rows
        blocks [the fields of `Block`] in the order in which they ran
        other_load_cores, the median over the blocks that count, over all where none does
        peak_rss_mib {runtime: MiB}, peak_rss_includes; load_s {runtime: s}, load_includes
        cosine_to_fp32 {runtime: cosine} of outputs for one input: evidence that the same thing was timed
        skipped [{runtime, reason}], runtime "all" for a shape that the model cannot take
        size {source_bytes (None without a source), checkpoint_bytes}: weight files only

    Raises:
        InputError: an option out of range, or no shape that the model can take.
        ModelError: a directory without a readable config.json, or without weights.
        TargetError: torch or Bitwright cannot load the model, or any runtime fails, dies or hangs while it is measured.
            A rival that cannot be converted or loaded is an entry of `skipped` instead.
    """
    _check(schedule)
    progress = progress or Quiet()
    size = {
        "source_bytes": None if source is None else source_bytes(source.path),
        "checkpoint_bytes": source_bytes(directory),
    }
    opened = source or open_path(directory)
    shapes, skipped = _fitting(schedule.shapes, model_shape(opened).max_tokens)
    schedule, task = replace(schedule, shapes=shapes), opened.task or find_task(opened)
    running: list[_Running] = []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bitwright-bench-")))
        for name, runtime in runtimes(task).items():
            if (runtime.prepare is not None and not rivals) or (runtime.slow and not slow):
                continue
            reason, place = _why_not(runtime, source, task), None if source is None else source.path
            checkpoints = {name: directory, **(others or {})} if runtime.reads_checkpoint else {name: place}
            for label, path in checkpoints.items() if reason is None else ():
                assert path is not None  # or there were a reason
                files = Files(path, task)
                try:
                    running.append(_start(label, name, files, scratch, schedule.threads, stack, progress))
                except TargetError as error:
                    if runtime.prepare is None and not runtime.optional:
                        raise
                    reason = str(error).splitlines()[0]
            if reason is not None:
                progress.say(f"skipping {name}: {reason}")
                skipped.append({"runtime": name, "reason": reason})
        cosines = _compare_outputs(running, shapes[0], scratch)
        measured = list(_measure(running, schedule, progress))
        memory = {each.name: each.worker.ask({"do": "memory"}, BLOCK_TIMEOUT_S) for each in running}
    blocks = [block for block, _ in measured]
    counted, busy = _counted(measured, schedule)
    return {
        "threads": schedule.threads,
        "rounds": schedule.rounds,
        "block_s": schedule.block_s,
        "rows": summarize(counted, {each.name: each.note for each in running}),
        "too_busy": len(busy) == len(schedule.shapes),
        "blocks": [asdict(block) for block in blocks],
        "other_load_cores": median(block.other_load_cores for block, _ in counted or measured),
        "peak_rss_mib": {name: reply["peak_rss_mib"] for name, reply in memory.items()},
        "peak_rss_includes": PEAK_RSS_INCLUDES,
        "load_s": {each.name: each.load_s for each in running},
        "load_includes": LOAD_INCLUDES,
        "cosine_to_fp32": cosines,
        "skipped": [*skipped, *busy],
        "size": size,
    }


def _counted(
    measured: Sequence[tuple[Block, list[float]]], schedule: Schedule
) -> tuple[list[tuple[Block, list[float]]], list[dict[str, str]]]:
    """(the blocks that count with their samples, the entries of `skipped` for shapes with too few quiet rounds)."""
    limit, blocks = schedule.limit, [block for block, _ in measured]
    rounds = quiet_rounds(blocks, limit)
    busy = [] if limit is None else short_of(blocks, [Shape(*shape) for shape in schedule.shapes], limit)
    entries = []
    for shape in busy:
        load = median(block.other_load_cores for block in blocks if block.shape == shape)
        tried = len({block.round for block in blocks if block.shape == shape})
        entries.append(
            {
                "runtime": "all",
                "reason": f"{shape_words(shape)}: the machine was busy. Other programs kept {load:.2f} cores "
                f"busy, and {len(rounds[shape])} of {tried} rounds were quiet",
            }
        )
    kept = [
        (block, samples)
        for block, samples in measured
        if block.shape not in busy and block.round in rounds[block.shape]
    ]
    return kept, entries


def _check(schedule: Schedule) -> None:
    shapes, threads, rounds, block_s = schedule.shapes, schedule.threads, schedule.rounds, schedule.block_s
    if threads < 1 or rounds < 1 or not block_s > 0:
        raise InputError(f"threads = {threads}, rounds = {rounds}, block_s = {block_s}: all must be positive")
    if not shapes or any(min(shape[:2]) < 1 for shape in shapes):
        raise InputError(f"shapes = {list(shapes)}: give at least one pair of batch and tokens, each at least 1")


def _fitting(
    shapes: Sequence[tuple[int, int] | Shape], max_tokens: int | None
) -> tuple[list[Shape], list[dict[str, str]]]:
    """The shapes that the model can take, once each, and the entries of `skipped` for the others."""
    distinct = list(dict.fromkeys(Shape(*shape) for shape in shapes))
    too_long = [shape for shape in distinct if max_tokens is not None and longest(shape) > max_tokens]
    fitting = [shape for shape in distinct if shape not in too_long]
    if not fitting:
        raise InputError(
            f"shapes = {[shape[:2] for shape in distinct]} are too long: the model takes at most {max_tokens} tokens; "
            "ask for shorter texts"
        )
    return fitting, [
        {"runtime": "all", "reason": f"{shape_words(shape)}: more tokens than the model's {max_tokens}"}
        for shape in too_long
    ]


def _why_not(runtime: Runtime, source: ModelDirectory | None, task: TaskName | None) -> str | None:
    """Why a runtime cannot be measured here, or None."""
    if source is None and not runtime.reads_checkpoint:
        return "it runs the float model, but no source directory was given"
    if source is not None and not runtime.reads_checkpoint and task == "text-generation":
        needed, free = source_bytes(source.path), available_bytes()
        if needed > free:
            return f"the float model has {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free"
    missing = [package for package in runtime.needs if find_spec(package) is None]
    return f"{', '.join(missing)} not installed; run: pip install 'bitwright[rivals]'" if missing else None


def _start(
    label: str, name: str, source: Files, scratch: Path, threads: int, stack: ExitStack, progress: Progress
) -> _Running:
    """Convert the model in its own process if the runtime needs that. Load it in another process, which `stack` ends.

    label: of the row; name: of the runtime."""
    (directory, task), file_name = source, label.replace(" ", "-")
    runtime, files = runtimes(task)[name], directory
    log, environment, note = scratch / f"{file_name}.log", worker_environment(threads), None
    if runtime.prepare is not None:
        progress.say(f"{label}: converting the model")
        files = scratch / file_name
        files.mkdir()
        command = worker_command(name, directory, config_from=directory, threads=threads, task=task, prepare=files)
        with Worker(label, command, environment, log) as worker:
            note = worker.answer(PREPARE_TIMEOUT_S)["note"]
    progress.say(f"{label}: loading")
    command = worker_command(name, files, config_from=directory, threads=threads, task=task)
    with ExitStack() as loading:
        worker = loading.enter_context(Worker(label, command, environment, log))
        load_s = worker.answer(LOAD_TIMEOUT_S)["load_s"]
        stack.push(loading.pop_all())
    return _Running(label, worker, load_s, note)


def _compare_outputs(running: Sequence[_Running], shape: Shape, scratch: Path) -> dict[str, float]:
    """Cosine between each runtime's output and fp32's, for the same input; empty without fp32."""
    outputs = {}
    for each in running:
        path = scratch / f"{each.name.replace(' ', '-')}.npy"
        request = {"do": "output", "shape": shape, "seed": 0, "path": str(path)}
        each.worker.ask(request, BLOCK_TIMEOUT_S)
        outputs[each.name] = np.load(path).astype(np.float64).ravel()
    reference = outputs.get("torch fp32")
    if reference is None:
        return {}
    return {
        name: float(output @ reference / (np.linalg.norm(output) * np.linalg.norm(reference)))
        for name, output in outputs.items()
    }


def _measure(
    running: Sequence[_Running], schedule: Schedule, progress: Progress
) -> Iterator[tuple[Block, list[float]]]:
    """Yield the blocks with their samples in ms, as they are measured: by shape, then round, then runtime. Shapes that
    other programs disturbed get more rounds while the limit leaves time for them.
    """
    processes = [psutil.Process(), *(each.worker.process for each in running)]
    origin_s, blocks, limit = time.monotonic(), list[Block](), schedule.limit

    def timed(shape: Shape, round_: int, each: _Running) -> tuple[Block, list[float]]:
        block, samples = _block(each, shape, round_, schedule.block_s, processes, origin_s)
        blocks.append(block)
        return block, samples

    shapes = [Shape(*shape) for shape in schedule.shapes]
    turns = [(shape, r, each) for shape in shapes for r in range(schedule.rounds) for each in running]
    for shape, round_, each in progress.track(turns, "timing"):
        yield timed(shape, round_, each)
    if limit is None:
        return
    deadline, round_ = time.monotonic() + limit.retry_s, schedule.rounds
    while (short := short_of(blocks, shapes, limit)) and time.monotonic() < deadline:
        progress.say("timing: other programs disturb it; waiting for a quiet moment")
        wait_until_quiet(limit, deadline, busy_s=lambda: machine_cpu_s() - own_cpu_s(processes))
        for shape in short:
            for each in running:
                yield timed(shape, round_, each)
        round_ += 1


def _block(
    each: _Running, shape: Shape, round_: int, block_s: float, processes: Sequence[psutil.Process], origin_s: float
) -> tuple[Block, list[float]]:
    """One block of one runtime, with its samples in ms. processes: those whose work is the benchmark's own."""
    request = {"do": "block", "shape": shape, "seed": round_, "block_s": block_s}
    others_s, wall_s = machine_cpu_s() - own_cpu_s(processes), time.monotonic()
    reply = each.worker.ask(request, BLOCK_TIMEOUT_S)
    others_s, wall_s = machine_cpu_s() - own_cpu_s(processes) - others_s, time.monotonic() - wall_s
    block = Block(
        runtime=each.name,
        batch=shape.batch,
        tokens=shape.tokens,
        work=shape.work,
        round=round_,
        start_s=reply["start_s"] - origin_s,
        end_s=reply["end_s"] - origin_s,
        median_ms=median(reply["samples_ms"]),
        other_load_cores=max(0.0, others_s / wall_s),
        idle_cores=reply["idle_cores"],
    )
    return block, reply["samples_ms"]
