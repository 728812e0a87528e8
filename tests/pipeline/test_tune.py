"""The tuner on models: the winner is what it says, budgets hold, and a killed study goes on to the same bytes."""

import json
import math
import signal
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.errors import InputError, NumericsError
from bitwright.pipeline import quantize, trials
from bitwright.pipeline.job import open_job
from bitwright.pipeline.request import Texts
from bitwright.pipeline.trials import trial_of, work_of
from bitwright.pipeline.tune import Tune
from bitwright.recipe import Recipe, make_recipe
from bitwright.record import Tuning
from tests.forks import in_fork

STATIC = make_recipe(
    {"scheme": "w8a8_static", "calibration": {"samples": 16, "max_tokens": 32}, "targets": ["bitwright"]}
)
QUICK: dict[str, Any] = {"samples": 40, "judged": False}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Trials set torch to one thread; here they run in the test's process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Trials run in this process. The names of those that ran."""
    ran: list[str] = []

    @contextmanager
    def kept(start: Callable[[], Any], **how: Any) -> Iterator[Any]:
        do: list[Any] = []

        def results(tasks: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
            for key, payload in reversed(list(tasks)):
                do.append(do[-1] if do else start())
                ran.append(key)
                yield key, do[-1](payload)

        yield results

    monkeypatch.setattr("bitwright.pipeline.tune.kept", kept)
    return ran


def study_of(result: Any) -> Tuning:
    study = result.measured.tuning
    assert isinstance(study, Tuning)
    return study


def test_the_winner_is_what_is_quantized(tiny_model: Callable[..., Path], tmp_path: Path, here: list[str]) -> None:
    out = tmp_path / "out"
    result = quantize(tiny_model("bert"), out=out, recipe=STATIC, tune=Tune(5, max_bytes=1.1, max_work=1.1), **QUICK)
    study = study_of(result)
    assert [trial.source for trial in study.trials[:3]] == ["plain recipe", "manual", "tpe"]
    assert len(here) == len(study.trials) == 5
    best = min((trial for trial in study.trials if trial.feasible), key=lambda trial: trial.objective)
    assert best.chosen
    assert best.objective <= study.trials[0].objective
    assert all(trial.bytes <= study.max_bytes for trial in study.trials if trial.feasible)
    # The result is quantized by the winner's recipe: as a trial it has the winner's distance.
    made = make_recipe({**result.record["recipe"], "rules": [
        rule for rule in result.record["recipe"]["rules"] if rule["scheme"] is None
    ]})  # fmt: skip
    job = open_job(tiny_model("bert"), STATIC, Texts(samples=40))
    assert trial_of(job, Texts(samples=40))(made).objective == best.objective
    assert {file.name for file in (out / "tuning").iterdir()} == {"trials.jsonl", "study.db"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    page = (out / "report.html").read_text()
    assert "How the settings were found" in page
    assert 'id="incumbents"' in page
    with sqlite3.connect(out / "tuning" / "study.db") as database:
        assert database.execute("select count(*) from trials").fetchone() == (5,)


@pytest.mark.full
def test_it_continues_after_every_stop_to_the_same_bytes(
    tiny_model: Callable[..., Path], tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"recipe": STATIC, "tune": Tune(4, "random"), "judged": False, "samples": 40}
    quantize(tiny_model("bert"), out=tmp_path / "whole", **how)
    real, measured = trials.quantize_model, []

    def stopped(*args: Any) -> Any:
        measured.append(1)
        if len(measured) in (2, 5):
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(trials, "quantize_model", stopped)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            quantize(tiny_model("bert"), out=tmp_path / "out", **how)
    quantize(tiny_model("bert"), out=tmp_path / "out", **how)
    for name in ("model.safetensors", "recipe.yaml", "tuning/trials.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.full
def test_a_study_with_another_space_is_refused(
    tiny_model: Callable[..., Path], tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: Any, **how: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("bitwright.pipeline.tune.keep_study", stopped)
    with pytest.raises(KeyboardInterrupt):
        quantize(
            tiny_model("bert"), out=tmp_path / "out", recipe=STATIC, tune=Tune(4, "random"), judged=False, samples=40
        )
    for changed in (
        {"recipe": make_recipe({"scheme": "w8a8", "targets": ["bitwright"]})}, {"tune": Tune(4, "tpe")},
        {"tune": Tune(4, "random", max_work=2.0)}, {"samples": 280},
    ):  # fmt: skip
        how: dict[str, Any] = {"recipe": STATIC, "tune": Tune(4, "random"), "judged": False, "samples": 40} | changed
        with pytest.raises(InputError, match="holds an interrupted run that differs from this one in its"):
            quantize(tiny_model("bert"), out=tmp_path / "out", **how)


@pytest.mark.full
def test_a_recipe_that_is_good_enough_is_not_tuned(
    tiny_model: Callable[..., Path], tmp_path: Path, here: list[str]
) -> None:
    result = quantize(tiny_model("bert"), out=tmp_path / "out", max_loss=0.5, tune=9, judged=False, samples=40)
    assert here == ["trial 1"]
    assert "inside the budget" in study_of(result).ended
    assert result.record["recipe"]["method"] == "rtn"


@pytest.mark.full
def test_more_room_lets_layers_stay_in_16_bit_and_no_more_than_that(
    tiny_model: Callable[..., Path], tmp_path: Path, here: list[str]
) -> None:
    tune = Tune(10, "random", max_bytes=1.12, max_work=1.3)
    recipe = make_recipe({"scheme": "w4a16_channel", "targets": ["bitwright"], "calibration": {"samples": 16}})
    study = study_of(
        quantize(tiny_model("bert"), out=tmp_path / "out", recipe=recipe, tune=tune, judged=False, samples=40)
    )
    assert any(trial.config[name] for trial in study.trials for name in ("keep_0", "keep_1"))
    assert all(trial.bytes <= study.max_bytes for trial in study.trials if trial.feasible)


@pytest.mark.full
def test_outputs_that_are_not_finite_never_win(
    tiny_model: Callable[..., Path], tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trials.quantize_model

    def broken(job: Any, *args: Any) -> Any:
        if job.recipe.method != "rtn":
            raise NumericsError("block 1: NaN")
        return real(job, *args)

    monkeypatch.setattr(trials, "quantize_model", broken)
    tune = Tune(6, "random", max_bytes=1.2, max_work=1.2)
    study = study_of(
        quantize(tiny_model("bert"), out=tmp_path / "out", recipe=STATIC, tune=tune, judged=False, samples=40)
    )
    lost = [trial for trial in study.trials if trial.why]
    assert lost
    assert {trial.why for trial in lost} == {"block 1: NaN"}
    assert not any(trial.chosen for trial in lost)
    assert (
        json.loads((tmp_path / "out" / "record.json").read_text())["tuning"]["trials"][lost[0].number]["objective"]
        == "inf"
    )


@pytest.mark.full
def test_language_models_are_tuned_by_the_divergence_of_the_next_token(
    trained_decoder: Path, tmp_path: Path, here: list[str]
) -> None:
    recipe = make_recipe(
        {"scheme": "w4a16_channel", "targets": ["bitwright"], "calibration": {"samples": 16, "max_tokens": 32}}
    )
    result = quantize(trained_decoder, out=tmp_path / "out", recipe=recipe, tune=Tune(4), judged=False, samples=12)
    study = study_of(result)
    assert study.objective == "KL divergence"
    assert 0 < min(trial.objective for trial in study.trials) < study.trials[0].objective
    assert all(math.isfinite(trial.loss) and 0 <= trial.rank_flips < 1 for trial in study.trials)


@pytest.mark.parametrize(
    ("recipe", "tune", "message"),
    [
        ({}, Tune(2), "trials = 2: give at least 4"),
        ({}, Tune(9, "annealing"), "sampler 'annealing' is unknown; known: tpe"),
        ({}, Tune(9, max_bytes=0.0), "max_bytes = 0: give a share of the plain recipe's"),
        ({"budget": {"goal": "smallest"}}, Tune(9), "goal: smallest chooses the bits"),
        ({"scheme": "w4a16", "method": "reproduce"}, Tune(9), "nothing is left to tune"),
        ({"scheme": "16bit"}, Tune(9), "quantizes no linear"),
    ],
)
def test_what_cannot_be_tuned_is_refused(
    recipe: dict[str, Any], tune: Tune, message: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        quantize(tiny_model("bert"), out=tmp_path / "out", recipe=make_recipe(recipe), tune=tune)
    assert list(tmp_path.iterdir()) == []


def test_missing_library_names_the_pip_line(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitwright.pipeline.tune.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs sklearn: pip install 'bitwright\[tune\]'"):
        quantize(tiny_model("bert"), out=tmp_path / "out", tune=9)


def test_work_counts_16_bit_inputs_twice(tiny_model: Callable[..., Path]) -> None:
    job = open_job(tiny_model("bert"), Recipe(), Texts(samples=40))
    products = {row.role != "head": row.shape[0] * row.shape[1] for row in job.plan if row.is_linear}
    for slow in (1, 2):
        plan = job.plan if slow == 1 else job.with_recipe(make_recipe({"scheme": "16bit"})).plan
        inside = sum(row.shape[0] * row.shape[1] for row in plan if row.is_linear and row.role != "head")
        assert work_of(plan) == slow * inside + 2 * products[False]


def _tune(model: Path, out: Path, workers: int) -> None:
    calibration = {"samples": 16, "max_tokens": 32}
    recipe = make_recipe({"scheme": "w8a8_static", "calibration": calibration, "targets": ["bitwright"]})
    quantize(model, out=out, recipe=recipe, samples=40, judged=False, tune=Tune(6, "random", workers=workers))


@pytest.mark.full
def test_workers_and_kills_change_no_byte(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker, two, and two killed at several moments give the same journal and the same weights."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model, log = tiny_model("bert"), tmp_path / "log"

    def start(out: str, workers: int) -> BaseProcess:
        return in_fork(log, _tune, model, tmp_path / out, workers)

    def ended(process: BaseProcess) -> int | None:
        process.join()
        return process.exitcode

    assert [ended(start("one", 1)), ended(start("two", 2))] == [0, 0], log.read_text()
    journal = tmp_path / ".killed.tune.bitwright" / "journal.jsonl"
    for lines in (1, 4):
        process = start("killed", 2)
        while process.is_alive() and not (journal.is_file() and journal.read_text().count("\n") >= lines):
            time.sleep(0.02)
        process.kill()
        assert ended(process) == -signal.SIGKILL
    assert ended(start("killed", 2)) == 0, log.read_text()
    for name in ("model.safetensors", "recipe.yaml", "tuning/trials.jsonl"):
        assert len({(tmp_path / out / name).read_bytes() for out in ("one", "two", "killed")}) == 1, name


@pytest.mark.full
def test_trials_are_told_from_one_another(tiny_model: Callable[..., Path]) -> None:
    """Calibration is drawn for each recipe: how many texts, and of which kinds."""
    job = open_job(tiny_model("bert"), STATIC, Texts(samples=40))
    measure = trial_of(job, Texts(samples=40))
    more = STATIC.model_copy(update={"calibration": STATIC.calibration.model_copy(update={"samples": 48})})
    mixed = make_recipe(
        {**STATIC.model_dump(mode="json"), "calibration": {"samples": 16, "max_tokens": 32, "mix": {"code": 3}}}
    )
    found = [measure(recipe) for recipe in (STATIC, STATIC, more, mixed)]
    assert found[0] == found[1]
    assert len({outcome.objective for outcome in found}) == 3
    assert (
        len(
            {
                replace(outcome, objective=0, distance=0, sqnr_db=0, rank_flips=0, loss=0, loss_upper=0)
                for outcome in found
            }
        )
        == 1
    )
