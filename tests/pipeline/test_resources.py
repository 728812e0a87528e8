"""What a run takes, told before it begins: what it grows with, and that it is near what runs were measured to take."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from bitwright.pipeline import resources
from bitwright.pipeline.job import Job, open_job
from bitwright.pipeline.request import Texts
from bitwright.pipeline.resources import run_cost
from bitwright.recipe import make_recipe
from bitwright.record import Shape

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
