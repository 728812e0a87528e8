"""A fleet in real worker processes: one that is killed, a run that is killed, a disk that is full."""

import importlib.util
import json
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from bitwright.fleet.config import Fleet
from bitwright.fleet.receipts import FOLDER, read_receipt
from bitwright.fleet.run import Where
from bitwright.pipeline import quantize
from bitwright.recipe import make_recipe
from bitwright.workers import processes
from tests.fleet.conftest import DEFAULTS, MakeFleet, go
from tests.fleet.jobs import copying
from tests.forks import FORKING, in_fork

RAY = importlib.util.find_spec("ray") is not None


@pytest.fixture
def result(tiny_model: Callable[..., Path], tmp_path: Path, texts: list[str]) -> Path:
    """A result that workers copy."""
    (tmp_path / "some.txt").write_text("\n".join(texts))
    recipe = make_recipe(DEFAULTS["recipe"])  # type: ignore[arg-type]
    out = tmp_path / "made"
    quantize(
        tiny_model("bert"), out=out, recipe=recipe, judged=False, data=str(tmp_path / "some.txt"), samples=40
    )  # fmt: skip
    return out


@pytest.mark.full
def test_a_worker_that_dies_costs_its_model_alone(
    make_fleet: MakeFleet, result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setattr("bitwright.fleet.run.quantizing", partial(copying, result, marks))
    monkeypatch.setattr(processes, "subprocess", FORKING)
    model = make_fleet(["bert"]).entries[0].model
    names = ["a", "victim", "b", "c"]
    fleet = make_fleet([{"name": name, "model": model} for name in names])
    rows = go(fleet, where=Where(workers=2))
    assert {name: row.state for name, row in rows.items()} == dict.fromkeys("abc", "not judged") | {"victim": "failed"}
    assert len(list(marks.glob("victim-*"))) == 2
    error = rows["victim"].outcome.error if rows["victim"].outcome else ""
    assert "2 workers died of this task" in error
    assert "SIGKILL" in error
    assert list((fleet.out / FOLDER).glob("*.step")) == []


def _run(file: Path, largest_file: int | None) -> None:
    from bitwright.cli import main

    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.argv = ["bitwright", "fleet", "run", str(file), "--workers", "2", "--quiet"]
    main()


def start(fleet: Fleet, *, largest_file: int | None = None) -> BaseProcess:
    """`bitwright fleet run` with two workers, in a process of its own."""
    return in_fork(fleet.file.parent / "log", _run, fleet.file, largest_file)


def ended(process: BaseProcess) -> int | None:
    """Its exit code, when it has ended."""
    process.join(240)
    return process.exitcode


@pytest.mark.full
def test_a_killed_run_goes_on(make_fleet: MakeFleet) -> None:
    model = make_fleet(["bert"]).entries[0].model
    fleet = make_fleet([{"name": name, "model": model} for name in "abcdef"])
    folder = fleet.out / FOLDER

    def done() -> set[str]:
        return {name for name in "abcdef" if (found := read_receipt(folder, name)) and found.state == "done"}

    running = start(fleet)
    until = time.monotonic() + 240
    while len(done()) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    running.kill()
    ended(running)
    first = done()
    assert 2 <= len(first) < 6
    written = {name: (fleet.out / name / "model.safetensors").stat().st_ino for name in first}
    assert (ended(start(fleet)), done()) == (0, set("abcdef"))
    assert written == {name: (fleet.out / name / "model.safetensors").stat().st_ino for name in first}
    report = json.loads((fleet.out / "fleet.json").read_text())
    assert {row["name"] for row in report["models"] if row["state"] == "unchanged"} >= first


@pytest.mark.full
def test_what_does_not_fit_on_the_disk_fails_alone(make_fleet: MakeFleet, tiny_model: Callable[..., Path]) -> None:
    large = tiny_model("bert", hidden_size=512, intermediate_size=2048)
    small = {"name": "small", "model": str(tiny_model("bert"))}
    fleet = make_fleet([{"name": "large", "model": str(large)}, small, small | {"name": "other"}])
    code = ended(start(fleet, largest_file=3_000_000))
    said = (fleet.file.parent / "log").read_text()
    states = {row["name"]: row["state"] for row in json.loads((fleet.out / "fleet.json").read_text())["models"]}
    assert (code, states) == (1, {"large": "failed", "small": "not judged", "other": "not judged"}), said
    assert "size limit is reached" in said
    assert not list(fleet.out.glob(".large*"))


@pytest.mark.full
@pytest.mark.skipif(not RAY, reason="needs Ray")
def test_a_cluster_gives_the_same_bytes(make_fleet: MakeFleet) -> None:
    model = make_fleet(["bert"]).entries[0].model
    rows: list[Any] = [{"name": name, "model": model} for name in "ab"]

    def content(fleet: Fleet, **where: Any) -> dict[str, bytes]:
        found = go(fleet, where=Where(**where))
        assert {row.state for row in found.values()} == {"not judged"}
        return {name: (row.out / "model.safetensors").read_bytes() for name, row in found.items()}

    assert content(make_fleet(rows), workers=2) == content(make_fleet(rows, out="onray"), workers=2, ray="local")
