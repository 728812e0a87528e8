"""One trial of a tuner: carries a recipe out on a model and measures what became of its outputs, on tuning texts."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from bitwright.errors import NumericsError
from bitwright.evaluate import loss_interval
from bitwright.evaluate.distance import output_distance
from bitwright.evaluate.kinds import Items, windows_in
from bitwright.evaluate.logits import compare_windows
from bitwright.evaluate.remembering import remembering
from bitwright.families.tasks import TaskName
from bitwright.files.directory import ModelDirectory
from bitwright.numerics.schemes import SCHEMES
from bitwright.pipeline.job import Job, open_job
from bitwright.pipeline.measuring import run_task
from bitwright.pipeline.parts import sensitivity_task
from bitwright.pipeline.request import Texts
from bitwright.pipeline.scored import as_texts, draw
from bitwright.pipeline.variants import candidate, quantize_model, stored_plan
from bitwright.plan import Plan
from bitwright.progress import Quiet
from bitwright.quantizing.layers import Quantized, needs_inputs
from bitwright.recipe import Recipe
from bitwright.runtime.model import Model
from bitwright.search.sensitivity import read_outputs
from bitwright.search.tuning.trials import Outcome

_WINDOWS, _TOKENS = 8, 64  # of a language model's tuning windows, and of each
_SLOW = 2  # products with 16-bit inputs take as long as so many with 8-bit ones


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker opens, once. recipe: the plain one."""

    model: str | Path | ModelDirectory
    recipe: Recipe
    texts: Texts
    task: TaskName | None
    trust_remote_code: bool


def open_trials(setup: Setup) -> Callable[[Recipe], Outcome]:
    """What measures recipes in a worker. It uses one thread, so that no sum depends on how many workers there are."""
    torch.set_num_threads(1)
    job = open_job(
        setup.model, setup.recipe, setup.texts, task=setup.task, trust_remote_code=setup.trust_remote_code
    )  # fmt: skip
    return trial_of(job, setup.texts)


def trial_of(job: Job, texts: Texts) -> Callable[[Recipe], Outcome]:
    """A function that measures a recipe: the distance of the outputs, what the metric loses, bytes and work.

    job: of the plain recipe; its tuning texts are those of every trial.
    """
    read = _windows_reader(job) if job.opened.streams else _texts_reader(job)

    @cache
    def calibration(settings: str) -> Items:
        recipe = job.recipe.model_copy(
            update={"calibration": type(job.recipe.calibration).model_validate_json(settings)}
        )
        return draw(job.opened, job.model, recipe, texts, calibrates=True).calibration

    def measure(recipe: Recipe) -> Outcome:
        variant = job.with_recipe(recipe)
        if any(needs_inputs(row, recipe) for row in variant.plan):
            drawn = calibration(recipe.calibration.model_dump_json())
            variant = replace(variant, scored=replace(variant.scored, calibration=drawn))
        with TemporaryDirectory() as folder:
            quantized, failed = None, ""
            try:
                quantized = quantize_model(variant, Path(folder), Quiet())
                outcome = read(candidate(variant, quantized))
            except NumericsError as error:
                outcome, failed = Outcome(math.inf, 0, 0.0), str(error)
            plan = variant.plan if quantized is None else stored_plan(variant, quantized)
            size = sum(row.bytes_after for row in plan)
            return replace(outcome, bytes_=size, work=work_of(plan, quantized), why=failed)

    return measure


def work_of(plan: Plan, quantized: Quantized | None = None) -> float:
    """The products that a token takes in the linears of a plan, those with 16-bit inputs counted twice, and one for
    each feature of a transformed input. It is counted, because the times of variants of one model differ by less than
    what other programs on a machine change.
    """
    total = 0.0
    for row in plan:
        if row.is_linear:
            n, k = row.shape
            total += n * k * (1 if SCHEMES[row.scheme].input is not None else _SLOW)
            form = None if quantized is None or row.name not in quantized.layers else quantized.layers[row.name].form
            total += 0 if form is None else k * (form.scales_input + form.shifts_input)
    return total


def _texts_reader(job: Job) -> Callable[[Model], Outcome]:
    """For a model that encodes texts: the Earth Mover's Distance of its outputs."""
    task, probe = sensitivity_task(job), as_texts(job.scored.probe)
    float_encode = remembering(job.model.encode)
    float_probe, float_outputs = float_encode(probe), task.run(float_encode)
    embeddings = job.model.task == "embedding"

    def read(model: Model) -> Outcome:
        encode = remembering(model.encode)
        rows, outputs = encode(probe), task.run(encode)
        interval = loss_interval(task, float_outputs, outputs, seed=job.recipe.seed)
        reading = read_outputs(float_probe, rows, interval.loss)
        return Outcome(
            reading.emd, 0, 0.0, output_distance(float_probe, rows, embeddings=embeddings), reading.sqnr_db,
            reading.rank_flips, interval.loss, interval.upper,
        )  # fmt: skip

    return read


def _windows_reader(job: Job) -> Callable[[Model], Outcome]:
    """For a language model: the Kullback-Leibler divergence of its next token, on some of the tuning windows. Rank
    flips are tokens whose likeliest successor is another one.
    """
    task = job.scored.tuning
    windows = [ids[:_TOKENS] for ids in windows_in(task.texts[:_WINDOWS])]
    ids = torch.tensor(windows)
    float_logits = job.model.logits(ids)
    float_outputs = run_task(task, job.model, Quiet(), "")

    def read(model: Model) -> Outcome:
        pairs = dict(zip(windows, zip(float_logits, model.logits(ids), strict=True), strict=True))
        compared = compare_windows(windows, lambda window: pairs[window][0], lambda window: pairs[window][1])
        signal = sum(_power(left) for left, _ in pairs.values())
        noise = sum(_power(right - left) for left, right in pairs.values())
        sides = (
            np.concatenate([rows[1] for rows in side]) for side in (compared.float_outputs, compared.quant_outputs)
        )
        flips = float(np.not_equal(*sides).mean())
        interval = loss_interval(task, float_outputs, run_task(task, model, Quiet(), ""), seed=job.recipe.seed)
        return Outcome(
            compared.mean_kl, 0, 0.0, noise / signal, _decibels(signal, noise), flips, interval.loss,
            interval.upper,
        )  # fmt: skip

    return read


def _power(values: torch.Tensor) -> float:
    return float(values.float().square().sum(dtype=torch.float64))


def _decibels(signal: float, noise: float) -> float:
    return math.inf if noise == 0 else 10 * math.log10(signal / noise)
