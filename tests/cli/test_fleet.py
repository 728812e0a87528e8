"""bitwright fleet and bitwright drift, as a person types them."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from bitwright.cli import fleet_table
from bitwright.fleet.receipts import Outcome
from bitwright.fleet.rows import Row
from tests.fleet.conftest import DEFAULTS
from tests.fleet.conftest import here as in_process  # noqa: F401

Run = Callable[..., Any]


@pytest.fixture
def file(tmp_path: Path, tiny_model: Callable[..., Path], texts: list[str]) -> Path:
    (tmp_path / "mine.txt").write_text("\n".join(texts))
    models = [{"name": "a", "model": str(tiny_model("bert"))}, {"name": "b", "model": "nowhere/at/all"}]
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump({"defaults": DEFAULTS, "models": models}))
    return tmp_path / "fleet.yaml"


@pytest.mark.usefixtures("in_process")
def test_run_and_status(file: Path, run: Run) -> None:
    before = run("fleet", "status", file)
    assert (before.code, before.out.splitlines()[-1]) == (0, "No run is at work.")
    assert before.out.count("waiting") == 2
    shown = run("fleet", "run", file)
    assert shown.code == 1
    lines = shown.out.splitlines()
    assert max(map(len, lines[:-1])) <= 80
    assert lines[-1] == f"{file.parent}/fleet/fleet.html"
    assert lines[-2] == "0 of 2 models are inside the budget; 1 not evaluated, 1 no result."
    assert "a: Not evaluated" in shown.err
    assert [line.partition("nowhere")[0] for line in shown.remarks] == ["bitwright: b: "]
    again = run("fleet", "run", file, "--json", "--only", "a", "--quiet")
    assert (again.code, again.err) == (0, "")
    assert {row["name"]: row["state"] for row in json.loads(again.out)["models"]} == {"a": "unchanged", "b": "failed"}
    status = json.loads(run("fleet", "status", file, "--json").out)
    assert {row["name"]: row["state"] for row in status["models"]} == {"a": "not judged", "b": "failed"}
    assert status["at_work"] is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "none.yaml"), "none.yaml: cannot be read"),
        (("rnu", "none.yaml"), "'rnu' is unknown (did you mean 'run'?)"),
        (("run", "fleet.yaml", "--memory", "much"), "--memory: 'much' is no size"),
        (("run", "fleet.yaml", "--queue", "nowhere"), "nowhere: there is no such folder of requests"),
        (("run", "fleet.yaml", "--only", "c"), "there is no model 'c'"),
    ],
)
def test_wrong_input(words: Sequence[str], message: str, file: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    outcome = run("fleet", *words)
    assert outcome.code == 2
    assert message in outcome.err


def test_the_live_table(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(record=True, force_terminal=True, width=80, height=20)
    monkeypatch.setattr(fleet_table, "err", screen)
    rows = [
        Row("a", "met", Path("a"), outcome=Outcome("met", 0, loss=0.001, loss_upper=0.002)),
        Row("b", "running", Path("b"), "rounding weights: 3 of 6"),
    ]
    with fleet_table.live_table(lambda: rows):
        pass
    text = screen.export_text()
    assert "rounding weights: 3 of 6" in text
    assert "1 of 2 done" in text


def test_drift(
    tiny_model: Callable[..., Path], texts: list[str], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitwright.drift.reference._LEAST_TEXTS", 200)
    model = tmp_path / "model"
    shutil.copytree(tiny_model("bert"), model)
    (tmp_path / "mine.txt").write_text("\n".join(texts))
    (tmp_path / "other.txt").write_text("\n".join(f"{i} + {i * i} = ( {i}, x-1 ) . , x" for i in range(300)))
    absent = run("drift", model, "--data", tmp_path / "mine.txt")
    assert (absent.code, "there is no reference here" in absent.err) == (1, True)
    made = run("drift", model, "--data", tmp_path / "mine.txt", "--make", "--window", "100")
    assert (made.code, made.out) == (0, f"{model}/drift.json: a reference of 240 texts\n")
    same = run("drift", model, "--data", tmp_path / "mine.txt")
    assert (same.code, same.out.splitlines()[-1]) == (0, "The texts are like those of the reference.")
    other = run(
        "drift", model, "--data", tmp_path / "other.txt", "--queue", tmp_path / "queue", "--name", "m", "--json"
    )
    assert other.code == 3
    found = json.loads(other.out)
    assert (found["drifted"], len(found["windows"])) == (True, 3)
    assert [file.name for file in (tmp_path / "queue").iterdir()] == ["m.json"]
    few = tmp_path / "few.txt"
    few.write_text("\n".join(texts[:50]))
    assert "there are 50 texts, but this reference compares 100 at a time" in run("drift", model, "--data", few).err
