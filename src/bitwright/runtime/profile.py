"""Measures how much time each operator of the engine takes, on one core."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.engine.builders import lower_encoder
from bitwright.engine.executor import Executor
from bitwright.engine.ops import Multiply, Op
from bitwright.engine.weights import open_weights
from bitwright.files.directory import ModelDirectory
from bitwright.kernels import native
from bitwright.kernels.dispatch import native_isa
from bitwright.runtime.bench_inputs import model_shape, random_tokens

_RUNS = 15
_PEAK_REPEATS = 100_000  # a few milliseconds


def profile(directory: Path, shapes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Rows {batch, tokens, operator, number, ms, gops, share, of_peak}, the slowest operators of a shape first.

    Operators of one kind and width are taken together. ms: of all of them, on one thread, in the fastest of several
    runs; share: of the sum. gops: multiplications and additions per nanosecond, None where none are counted;
    of_peak: that as a part of what int8 products alone reach on this core, measured between the runs, or None.

    Raises:
        EngineError: the engine does not run this model. InputError: it does not take so many tokens.
    """
    opened = ModelDirectory(directory)
    executor = Executor(lower_encoder(open_weights(opened), pooling=None), native_isa())
    ops, model = executor.program.ops, model_shape(opened)
    rows: list[dict[str, Any]] = []
    for batch, tokens in shapes:
        ids_BT, _ = random_tokens(model, batch=batch, tokens=tokens, seed=0)
        lengths = np.full(batch, tokens)
        runs, peak = [], 0.0
        for _ in range(_RUNS):
            peak = max(peak, native.load().peak_int8_gops(native_isa(), _PEAK_REPEATS))
            seconds = np.zeros(len(ops))
            executor.run_packed(ids_BT.reshape(-1), lengths, 1, seconds)
            runs.append(seconds)
        best = min(runs, key=lambda seconds: float(seconds.sum()))
        rows += _rows(ops, best, batch, tokens, peak)
    return rows


def _rows(ops: Sequence[Op], seconds: np.ndarray, batch: int, tokens: int, peak: float) -> list[dict[str, Any]]:
    found: dict[str, list[int]] = {}
    for number, op in enumerate(ops):
        found.setdefault(_label(op), []).append(number)
    rows = []
    for label, numbers in found.items():
        spent, operations = float(seconds[numbers].sum()), batch * sum(ops[i].operations(tokens) for i in numbers)
        gops = operations / spent / 1e9 if operations else None
        rows.append(
            {
                "batch": batch, "tokens": tokens, "operator": label, "number": len(numbers), "ms": spent * 1e3,
                "gops": gops, "share": spent / float(seconds.sum()), "of_peak": gops / peak if gops and peak else None,
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: -row["ms"])


def _label(op: Op) -> str:
    if not isinstance(op, Multiply):
        return op.kind
    activation = "" if op.activation == "none" else f", {op.activation}"
    return f"linear {op.source.width} → {op.n}, {op.dtype}{activation}"
