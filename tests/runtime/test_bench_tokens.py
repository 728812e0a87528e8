"""Tokens per second of a language model: which cells there are, and which rounds count."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bitwright.errors import InputError
from bitwright.files.directory import ModelDirectory
from bitwright.runtime import bench_tokens
from bitwright.runtime.bench_load import LoadLimit
from bitwright.runtime.decoder_model import DecoderModel

ANY = LoadLimit(cores=64.0, rounds=1, retry_s=0.0)


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> DecoderModel:
    directory = tiny_model("llama", head_dim=16, max_position_embeddings=1024)
    return DecoderModel(ModelDirectory(directory), threads=1, cache_tokens=6400)


def test_every_cell_that_fits_is_timed_and_leaves_nothing_behind(model: DecoderModel) -> None:
    found = bench_tokens.measure_tokens(model, rounds=2, block_s=0.01, limit=ANY)
    assert [(row["kind"], row["batch"], row["depth"]) for row in found["rows"]] == [
        ("prefill", 1, 0), ("decode", 1, 32), ("decode", 4, 32), ("decode", 8, 32), ("decode", 32, 32)
    ]  # fmt: skip
    assert all(row["tokens_per_s"] >= row["lower_quartile"] > 0 and row["rounds"] == 2 for row in found["rows"])
    assert not found["too_busy"]
    assert model.cache.free == model.cache.size


def test_cells_are_those_that_context_and_cache_hold(tiny_model: Callable[..., Path]) -> None:
    directory = ModelDirectory(tiny_model("llama", head_dim=16, max_position_embeddings=1024))
    small = DecoderModel(directory, cache_tokens=512)
    assert [(cell.kind, cell.batch) for cell in bench_tokens.cells(small)] == [("prefill", 1), ("decode", 1)]
    short = DecoderModel(directory, context=100)
    with pytest.raises(InputError, match="context of 100 tokens is too short"):
        bench_tokens.measure_tokens(short, rounds=1, block_s=0.01, limit=ANY)


def test_rounds_on_a_busy_machine_do_not_count(model: DecoderModel, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = iter([9.0] * 5 + [0.0] * 1000)
    monkeypatch.setattr(bench_tokens, "_block", lambda *of: (100.0, next(loads)))
    found = bench_tokens.measure_tokens(model, rounds=1, block_s=0.01, limit=LoadLimit(0.15, 1, 5.0))
    assert [row["rounds"] for row in found["rows"]] == [1] * 5
    monkeypatch.setattr(bench_tokens, "_block", lambda *of: (100.0, 9.0))
    busy = bench_tokens.measure_tokens(model, rounds=1, block_s=0.0, limit=LoadLimit(0.15, 1, 0.01))
    assert busy["rows"] == []
    assert busy["too_busy"]
    assert busy["other_load_cores"] == 9.0
