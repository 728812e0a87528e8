"""`measure`: one answer to what a recipe loses and weighs, whoever asks."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bitwright.pipeline import measuring
from bitwright.pipeline.job import Job, open_job
from bitwright.pipeline.measuring import on_a_sample, on_tuning_data
from bitwright.pipeline.request import Texts
from bitwright.pipeline.variants import quantize_model
from bitwright.progress import Quiet
from bitwright.recipe import make_recipe
from bitwright.search.journal import Journal

UNITS = ("encoder.layer.0.qkv", "encoder.layer.1.output.dense")


@pytest.fixture
def job(tiny_model: Callable[..., Path]) -> Job:
    recipe = make_recipe({"scheme": "w4a16_g32", "targets": ["bitwright"]})
    return open_job(tiny_model("bert"), recipe, Texts(("builtin#documentation",), samples=40))


def test_units_in_16_bit_lose_less_and_weigh_what_the_plan_says(job: Job) -> None:
    measure = on_tuning_data(job, quantize_model(job, None, Quiet()), Journal(None, ""), Quiet())
    recipes = [job.recipe, *(job.recipe.with_fallback(UNITS[:n], "") for n in (1, 2))]
    recipes.append(job.recipe.with_fallback(tuple({row.unit for row in job.plan if row.block is not None}), ""))
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
    first = on_tuning_data(job, quantized, Journal(tmp_path / "j", ""), Quiet())
    tried = job.recipe.with_fallback(UNITS[:1], "")
    found = first(tried)
    monkeypatch.setattr(measuring, "candidate", lambda *args: pytest.fail("measured again"))
    assert first(tried) is found
    budget = job.recipe.budget.model_copy(update={"max_loss": 0.5})
    more = job.with_recipe(job.recipe.model_copy(update={"budget": budget}))
    again = on_tuning_data(more, quantized, Journal(tmp_path / "j", ""), Quiet())
    assert again(more.recipe.with_fallback(UNITS[:1], "")) == found


def test_a_sample_measures_any_recipe_and_leaves_the_job_alone(job: Job) -> None:
    measure = on_a_sample(job, Quiet())
    coarse, fine = measure(job.recipe), measure(make_recipe({"scheme": "w8a16", "targets": ["bitwright"]}))
    assert 0 <= fine.loss < coarse.loss < coarse.bound == float("inf")
    assert fine.bytes_ > coarse.bytes_
    assert {row.scheme for row in job.plan if row.block is not None} == {"w4a16_g32"}
