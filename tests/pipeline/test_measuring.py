"""`measure`: one answer to what a recipe loses and weighs, whoever asks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitwright.errors import NotFiniteError
from bitwright.evaluate import Task
from bitwright.pipeline import measuring
from bitwright.pipeline.job import Job, open_job
from bitwright.pipeline.measuring import on_a_sample, on_tuning_data, run_task
from bitwright.pipeline.reference import Reference
from bitwright.pipeline.request import Texts
from bitwright.pipeline.variants import quantize_model, write_variant
from bitwright.progress import Quiet
from bitwright.recipe import make_recipe
from bitwright.runtime.load import load
from bitwright.runtime.model import Model
from bitwright.search.journal import Journal

UNITS = ("encoder.layer.0.qkv", "encoder.layer.1.output.dense")


@pytest.fixture
def job(tiny_model: Callable[..., Path]) -> Job:
    recipe = make_recipe({"scheme": "w4a16_g32", "targets": ["bitwright"]})
    return open_job(tiny_model("bert"), recipe, Texts(("builtin#documentation",), samples=40))


def test_units_in_16_bit_lose_less_and_weigh_what_the_plan_says(job: Job, tmp_path: Path) -> None:
    measure = on_tuning_data(job, quantize_model(job, None, Quiet()), Journal(None, ""), tmp_path, Quiet())
    recipes = [job.recipe, *(job.recipe.with_fallback(UNITS[:n], "") for n in (1, 2))]
    in_blocks = {row.unit for row in job.plan if row.is_linear and row.block is not None}
    recipes.append(job.recipe.with_fallback(tuple(in_blocks), ""))
    found = [measure(recipe) for recipe in recipes]
    assert abs(found[-1].loss) < 1e-3 < found[0].loss  # nothing is quantized in the last
    for recipe, measured in zip(recipes, found, strict=True):
        assert measured.bound >= measured.loss
        assert measured.bytes_ == sum(row.bytes_after for row in job.with_recipe(recipe).plan)
        assert measured.seconds is None
    assert [measured.bytes_ for measured in found] == sorted(measured.bytes_ for measured in found)


def test_what_was_measured_is_not_measured_again(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in this process, nor in the next one, whatever its budget."""
    quantized = quantize_model(job, None, Quiet())
    first = on_tuning_data(job, quantized, Journal(tmp_path / "j", ""), tmp_path, Quiet())
    tried = job.recipe.with_fallback(UNITS[:1], "")
    found = first(tried)
    monkeypatch.setattr(measuring, "write_variant", lambda *args: pytest.fail("measured again"))
    assert first(tried) is found
    budget = job.recipe.budget.model_copy(update={"max_loss": 0.5})
    more = job.with_recipe(job.recipe.model_copy(update={"budget": budget}))
    again = on_tuning_data(more, quantized, Journal(tmp_path / "j", ""), tmp_path, Quiet())
    assert again(more.recipe.with_fallback(UNITS[:1], "")) == found


def test_a_candidate_gives_what_its_result_gives(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, on the engine; and nothing of it stays."""
    quantized, outputs = quantize_model(job, None, Quiet()), []

    def noted(task: Task, model: Model, *args: Any) -> Any:
        outputs.append((model.backend, run_task(task, model, *args)))
        return outputs[-1][1]

    monkeypatch.setattr(measuring, "run_task", noted)
    on_tuning_data(job, quantized, Journal(None, ""), tmp_path, Quiet())(job.recipe)
    assert not list(tmp_path.iterdir())
    write_variant(job, quantized, tmp_path / "result")
    backend, found = outputs[-1]
    assert backend.startswith("engine:")
    assert np.array_equal(found, run_task(job.scored.tuning, load(tmp_path / "result"), Quiet(), ""))


def test_outputs_that_are_not_finite_lose_everything(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = job.scored.tuning.run(job.model.encode)
    job = replace(job, reference=Reference(None, tuning=reference))

    def broken(*args: Any) -> Any:
        raise NotFiniteError("NaN")

    monkeypatch.setattr(measuring, "run_task", broken)
    measured = on_tuning_data(job, quantize_model(job, None, Quiet()), Journal(None, ""), tmp_path, Quiet())(job.recipe)
    assert measured.loss == measured.bound == float("inf")
    assert not list(tmp_path.iterdir())


def test_a_sample_measures_any_recipe_and_leaves_the_job_alone(job: Job) -> None:
    measure = on_a_sample(job, Quiet())
    coarse, fine = measure(job.recipe), measure(make_recipe({"scheme": "w8a16", "targets": ["bitwright"]}))
    assert 0 <= fine.loss < coarse.loss < coarse.bound == float("inf")
    assert fine.bytes_ > coarse.bytes_
    assert {row.scheme for row in job.plan if row.is_linear and row.role != "head"} == {"w4a16_g32"}
