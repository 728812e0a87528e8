"""What a run takes, told before it begins: what it grows with, and that it is near what runs were measured to take."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from bitwright.models.rescale import SharedInput
from bitwright.pipeline import resources
from bitwright.pipeline.job import Job, open_job
from bitwright.pipeline.request import Texts, TrainingAsked
from bitwright.pipeline.resources import run_cost
from bitwright.pipeline.stages import stages_of
from bitwright.pipeline.variants import quantize_model
from bitwright.progress import Quiet
from bitwright.quantizing.rounding import round_linears
from bitwright.quantizing.work import Work
from bitwright.recipe import make_recipe
from bitwright.record import Shape
from bitwright.search.cost import Resources
from bitwright.search.journal import Journal

TinyModel = Callable[..., Path]
SHAPES = (Shape(1, 16), Shape(8, 128))


@pytest.fixture(scope="module")
def source(tiny_model: TinyModel) -> Path:
    return tiny_model("bert")


def job_of(source: Path, scheme: str = "w8a8", method: str = "rtn", samples: int = 60) -> Job:
    calibration = {"samples": 16, "max_tokens": 48, "batch_size": 8}
    recipe = make_recipe({"scheme": scheme, "method": method, "targets": ["bitwright"], "calibration": calibration})
    return open_job(source, recipe, Texts(samples=samples))


def test_time_and_memory_follow_the_work(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_seconds_per_token", lambda job: 1e-3)
    job = job_of(source)
    plain = run_cost(job, sensitivity=False, shapes=SHAPES)
    tokens = sum(map(len, job.model.tokenize([*job.scored.tuning.texts, *job.scored.held_out.texts])))
    assert plain.seconds > 1.25 * tokens * 1e-3
    assert run_cost(job, sensitivity=True, shapes=SHAPES).seconds > 1.5 * plain.seconds
    slower = run_cost(job, sensitivity=False, shapes=(*SHAPES, Shape(8, 1024)))
    assert slower.seconds - plain.seconds == pytest.approx(3 * (2 * 2 * 8 * 1024 * 1e-3 + 0.4))
    more = run_cost(job_of(source, samples=600), sensitivity=False, shapes=SHAPES)
    assert more.seconds > plain.seconds
    calibrated = run_cost(job_of(source, "w4a16_g32", "gptq"), sensitivity=False, shapes=SHAPES)
    assert calibrated.seconds > plain.seconds
    here = psutil.Process().memory_info().rss  # beside it two processes with torch at least, that are timed
    assert plain.memory_bytes > here + 2 * resources._PROCESS_BYTES


GPTQ: dict[str, Any] = {
    "scheme": "w4a16_g32", "method": "gptq", "targets": ["bitwright"],
    "calibration": {"samples": 10, "max_tokens": 24, "batch_size": 8},
}  # fmt: skip
SPEED = Resources(memory_bytes=1 << 40, seconds=1e9, flops_per_second=1e9)


@pytest.mark.parametrize("options", [{"mismatch": 0.5}, {"loss_groups": 3}, {"mismatch": 1.0, "loss_groups": 2}])
def test_options_of_gptq_are_counted_as_they_are_held(
    trained_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """In bytes, to the last one: what the largest stage holds once all its inputs were observed."""
    most: list[int] = []

    def noting(work: Work, shared: SharedInput) -> None:
        round_linears(work, shared)
        stats = work.stats.distinct(site.name for site in work.sites)
        held = [x.mismatch_KK for x in stats] + [x.even_KK for x in stats]
        held += [group.gram_KK for groups in work.weighted.values() for group in groups]
        held += [weight for weight, _ in work.originals.values()]
        held += [*work.stage.originals, *work.stage._ahead.values()]
        most.append(sum(tensor.nbytes for tensor in held if tensor is not None))

    monkeypatch.setattr("bitwright.quantizing.stages.round_linears", noting)
    jobs = [
        open_job(trained_decoder, make_recipe(GPTQ | {"options": given}), Texts(samples=4)) for given in ({}, options)
    ]
    quantize_model(jobs[1], tmp_path, Quiet())
    plain, more = (resources.job_cost(job, SPEED) for job in jobs)
    assert more.memory_bytes - plain.memory_bytes == max(most)
    assert more.seconds > 1.2 * plain.seconds
    assert (resources._weighting_bytes(jobs[1]) > 0) == ("loss_groups" in options)


def test_polishing_takes_as_many_passes_as_it_has_epochs(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_seconds_per_token", lambda job: 1e-3)

    def job(**polish: int) -> Job:
        recipe = make_recipe({"targets": ["bitwright"], "polish": polish} if polish else {"targets": ["bitwright"]})
        return open_job(source, recipe, Texts(samples=60))

    once, twice = job(tokens=4096, epochs=1), job(tokens=4096, epochs=2)
    assert resources.polish_minutes(once) == pytest.approx(4096 * 1e-3 * 5.25 / 60)
    assert resources.polish_minutes(twice) == pytest.approx(4096 * 1e-3 * 9.25 / 60)
    assert resources.polish_minutes(job()) == 0
    monkeypatch.setattr(resources, "_seconds_per_token", lambda job: 1.0)
    plain, polished = (run_cost(each, sensitivity=False, shapes=()).seconds for each in (job(), once))
    assert polished - plain == pytest.approx(4096 * 5.25, rel=0.2)  # fewer texts are left to judge on


def test_stages_run_the_quickest_first(source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = make_recipe({"targets": ["bitwright"], "polish": {"tokens": 4096}})
    job, journal = open_job(source, recipe, Texts(samples=60)), Journal(tmp_path / "journal.jsonl", "")
    lesson = SimpleNamespace(asked=TrainingAsked(minutes=2.0))
    for minutes, names in ((1.0, ["polish", "train"]), (3.0, ["train", "polish"])):
        monkeypatch.setattr("bitwright.pipeline.stages.polish_minutes", lambda job, minutes=minutes: minutes)
        assert [stage.name for stage in stages_of(job, cast(Any, lesson), journal, tmp_path, Quiet())] == names


def test_the_float_model_is_timed_on_short_and_long_texts_without_padding(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, asked = job_of(source, samples=600), []
    encode = type(job.model.generic).encode

    def noted(model: object, texts: list[str], **options: object) -> object:
        asked.append((texts, options))
        return encode(model, texts, **options)

    monkeypatch.setattr(type(job.model.generic), "encode", noted)
    assert resources._seconds_per_token(job) > 0
    texts, options = asked[-1]
    lengths = [len(ids) for ids in job.model.tokenize(texts)]
    assert lengths == sorted(lengths)  # batches of like length, which is how a run takes them
    assert options["batch_size"] <= len(texts) / 2
    assert lengths[-1] > 1.2 * lengths[0]
    assert sum(lengths) <= 2 * resources._TIMED_TOKENS
