"""Measures how much time each operator of the engine takes, on one core."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitwright.engine.builders import lower_encoder
from bitwright.engine.executor import Executor
from bitwright.engine.ops import AttendPast, Multiply, Op
from bitwright.engine.weights import open_weights
from bitwright.files.directory import ModelDirectory
from bitwright.files.opening import open_path
from bitwright.files.task import find_task
from bitwright.kernels import native
from bitwright.kernels.dispatch import native_isa
from bitwright.record import Shape
from bitwright.runtime.bench_inputs import model_shape, random_tokens
from bitwright.runtime.bench_tokens import REPORTED, OnEngine, shapes_for

_RUNS = 15
_PEAK_REPEATS = 100_000  # a few milliseconds


def profile(directory: Path, shapes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Rows {batch, tokens, work, operator, number, ms, gops, gb_s, share, of_peak}, the slowest operators of a shape
    first.

    Operators of one kind and width are taken together. ms: of all of them, on one thread, in the fastest of several
    runs; share: of the sum. gops: multiplications and additions per nanosecond, None where none are counted;
    of_peak: that as a part of what int8 products alone reach on this core, measured between the runs, or None. gb_s:
    bytes of weights per nanosecond, None for what has none.

    Args:
        shapes: (batch, tokens), as `bench_tokens.shapes_for` takes them.

    Raises:
        EngineError: the engine does not run this model. InputError: it does not take so many tokens.
    """
    opened = open_path(directory)
    task = find_task(opened)
    timed = _decoder(opened) if task == "text-generation" else _encoder(opened)
    rows: list[dict[str, Any]] = []
    for shape in shapes_for(task, shapes, REPORTED):
        run, runs, peak = timed.run(shape), [], 0.0
        for _ in range(_RUNS):
            peak = max(peak, native.load().peak_int8_gops(native_isa(), _PEAK_REPEATS))
            seconds = np.zeros(len(timed.ops))
            run(seconds)
            runs.append(seconds)
        best = min(runs, key=lambda seconds: float(seconds.sum()))
        rows += _rows(timed.ops, best, shape, peak)
    return rows


class _Timed(NamedTuple):
    """run: makes, for a shape, what adds each operator's seconds, on one thread."""

    ops: Sequence[Op]
    run: Callable[[Shape], Callable[[np.ndarray], Any]]


def _encoder(opened: ModelDirectory) -> _Timed:
    executor = Executor(lower_encoder(open_weights(opened), pooling=None), native_isa())
    model = model_shape(opened)

    def run(shape: Shape) -> Callable[[np.ndarray], Any]:
        ids_BT, _ = random_tokens(model, batch=shape.batch, tokens=shape.tokens, seed=0)
        lengths = np.full(shape.batch, shape.tokens)
        return lambda seconds: executor.run_packed(ids_BT.reshape(-1), lengths, 1, seconds)

    return _Timed(executor.program.ops, run)


def _decoder(opened: ModelDirectory) -> _Timed:
    loaded, model = OnEngine.open(opened, 1), model_shape(opened)
    executor = loaded.model.executor

    def run(shape: Shape) -> Callable[[np.ndarray], Any]:
        ids_BT, _ = random_tokens(model, batch=shape.batch, tokens=shape.tokens, seed=0)
        added = np.zeros(len(executor.program.ops))
        step = loaded.step(ids_BT, shape, lambda batch: executor.step(batch, 1, added))

        def timed(seconds: np.ndarray) -> None:
            added[:] = 0.0
            step()
            seconds += added

        return timed

    return _Timed(executor.program.ops, run)


def _rows(ops: Sequence[Op], seconds: np.ndarray, shape: Shape, peak: float) -> list[dict[str, Any]]:
    tokens = 1 if shape.work == "decode" else shape.tokens  # of a text, that are computed
    found: dict[str, list[int]] = {}
    for number, op in enumerate(ops):
        found.setdefault(_label(op), []).append(number)
    rows = []
    for label, numbers in found.items():
        spent, read = float(seconds[numbers].sum()), sum(_weight_bytes(ops[i]) for i in numbers)
        operations = shape.batch * sum(_operations(ops[i], tokens, shape) for i in numbers)
        gops = operations / spent / 1e9 if operations else None
        rows.append(
            {
                "batch": shape.batch, "tokens": shape.tokens, "work": shape.work, "operator": label,
                "number": len(numbers), "ms": spent * 1e3, "gops": gops, "gb_s": read / spent / 1e9 if read else None,
                "share": spent / float(seconds.sum()), "of_peak": gops / peak if gops and peak else None,
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: -row["ms"])


def _operations(op: Op, tokens: int, shape: Shape) -> int:
    """Of one text. A new token of a long one meets all tokens before it."""
    if shape.work == "decode" and isinstance(op, AttendPast):
        return op.operations(shape.tokens + 1) - op.operations(shape.tokens)
    return op.operations(tokens)


def _weight_bytes(op: Op) -> int:
    return sum(part.nbytes for part in op.weight if isinstance(part, np.ndarray)) if isinstance(op, Multiply) else 0


def _label(op: Op) -> str:
    if not isinstance(op, Multiply):
        return op.kind
    activation = "" if op.activation == "none" else f", {op.activation}"
    return f"linear {op.source.width} → {op.n}, {op.dtype}{activation}"
