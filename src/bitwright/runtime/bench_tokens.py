"""How many tokens per second a language model takes in and writes on the engine.

    prefill          a prompt of 512 tokens, up to the logits after it
    decode, batch B  steps of B answers under way, one token of each, without choosing it
    decode, deep     the same of one answer, whose text has 4096 tokens

Cells take turns, round after round; only rounds in which other programs left the machine alone count.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from bitwright.errors import InputError
from bitwright.generate.cache import Held
from bitwright.runtime.bench_load import LoadLimit, machine_cpu_s, own_cpu_s
from bitwright.runtime.decoder_model import DecoderModel

PREFILL, SHORT, DEEP = 512, 32, 4096  # tokens
BATCHES = (1, 4, 8, 32)
_WARM_STEPS, _LEAST_STEPS = 2, 4


@dataclass(frozen=True, slots=True)
class Cell:
    """kind: "prefill" or "decode". batch: answers under way. depth: tokens of a text before what is timed."""

    kind: str
    batch: int
    depth: int


def cells(model: DecoderModel) -> list[Cell]:
    """Those for which context and cache have room."""
    found = [Cell("prefill", 1, 0), *(Cell("decode", batch, SHORT) for batch in BATCHES), Cell("decode", 1, DEEP)]
    room = model.cache.size * model.cache.layout.tokens

    def fits(cell: Cell) -> bool:
        longest = PREFILL if cell.kind == "prefill" else cell.depth + 2 * model.cache.layout.tokens
        return longest <= model.max_tokens and longest * cell.batch <= room

    return [cell for cell in found if fits(cell)]


def measure_tokens(model: DecoderModel, *, rounds: int, block_s: float, limit: LoadLimit) -> dict[str, Any]:
    """Time every cell in turn, for block_s seconds each.

    Returns:
        {"rows": [{"kind", "batch", "depth", "tokens_per_s", "lower_quartile", "rounds"}], "threads",
        "other_load_cores": the median over all blocks, "too_busy": whether a cell had fewer quiet rounds than the limit
        asks for; such cells have no row}

    Raises:
        InputError: a context that is too short for any cell.
    """
    timed = cells(model)
    if not timed:
        raise InputError(f"{model.path}: its context of {model.max_tokens} tokens is too short to time anything")
    found: dict[Cell, list[tuple[float, float]]] = {cell: [] for cell in timed}
    deadline = time.monotonic() + limit.retry_s + rounds * len(timed) * 2 * block_s
    done = 0
    while done < rounds or (_short(found, limit) and time.monotonic() < deadline):
        for cell in timed:
            if done < rounds or len(_quiet(found[cell], limit)) < limit.rounds:
                found[cell].append(_block(model, cell, block_s))
        done += 1
    rows = []
    for cell, blocks in found.items():
        rates = _quiet(blocks, limit)
        if len(rates) < limit.rounds:
            continue
        rows.append(
            {
                "kind": cell.kind, "batch": cell.batch, "depth": cell.depth, "rounds": len(rates),
                "tokens_per_s": float(np.median(rates)), "lower_quartile": float(np.quantile(rates, 0.25)),
            }
        )  # fmt: skip
    loads = [load for blocks in found.values() for _, load in blocks]
    return {
        "rows": rows, "threads": model.threads, "backend": model.backend, "too_busy": len(rows) < len(timed),
        "other_load_cores": float(np.median(loads)),
    }  # fmt: skip


def _short(found: dict[Cell, list[tuple[float, float]]], limit: LoadLimit) -> bool:
    return any(len(_quiet(blocks, limit)) < limit.rounds for blocks in found.values())


def _quiet(blocks: list[tuple[float, float]], limit: LoadLimit) -> list[float]:
    return [rate for rate, load in blocks if load <= limit.cores]


def _block(model: DecoderModel, cell: Cell, block_s: float) -> tuple[float, float]:
    """Tokens per second, and the cores that other programs kept busy meanwhile."""
    random = np.random.default_rng(0)
    held = [model.cache.begin([]) for _ in range(cell.batch)]
    try:
        for one in held:
            for begin in range(0, cell.depth, PREFILL):
                _compute(model, [one], random, min(PREFILL, cell.depth - begin))
        tokens = PREFILL if cell.kind == "prefill" else 1

        def step() -> None:
            if model.cache.layout.tokens * len(held[0].blocks) >= cell.depth + PREFILL or tokens > 1:
                for one in held:  # as deep as at first
                    model.cache.roll_back(one, cell.depth)
                    if one.length < cell.depth:
                        _compute(model, [one], random, cell.depth - one.length)
            _compute(model, held, random, tokens)

        for _ in range(_WARM_STEPS):
            step()
        return _timed(step, tokens * cell.batch, block_s)
    finally:
        for one in held:
            model.cache.end(one)


def _compute(model: DecoderModel, held: list[Held], random: np.random.Generator, tokens: int) -> None:
    """One step of as many tokens for each of these texts."""
    work = [(one, random.integers(0, model.vocabulary, tokens).tolist(), 1) for one in held]
    for one in held:
        model.cache.grow(one, tokens)
    model.step(model.cache.step(work))
    for one in held:
        one.length += tokens


def _timed(step: Callable[[], None], tokens: int, block_s: float) -> tuple[float, float]:
    process = [psutil.Process(os.getpid())]
    before, count, begun = machine_cpu_s() - own_cpu_s(process), 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < block_s or count < _LEAST_STEPS:
        step()
        count += 1
    return count * tokens / spent, max(machine_cpu_s() - own_cpu_s(process) - before, 0.0) / spent
