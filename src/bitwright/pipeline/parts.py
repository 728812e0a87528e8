"""Measures sensitivity: how far a model's outputs move when one part of it is quantized."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from bitwright.errors import NumericsError
from bitwright.evaluate import Task, agreement_task
from bitwright.evaluate.remembering import remembering
from bitwright.pipeline.gradients import fisher_rows
from bitwright.pipeline.job import Job
from bitwright.pipeline.scored import as_texts
from bitwright.pipeline.swapped import folded, only_quantized, quantized_modules
from bitwright.progress import Progress, tracking
from bitwright.quantizing.layers import Quantized
from bitwright.record import Sensitivity
from bitwright.runtime.generic_model import GenericModel
from bitwright.search.journal import Journal
from bitwright.search.sensitivity import Reading, measure_sensitivity, measure_units, read_outputs

_MAX_TASK_TEXTS = 400  # texts that every variant of the model encodes for its metric loss


def measure_parts(job: Job, quantized: Quantized, journal: Journal, progress: Progress) -> Sensitivity:
    """The Record's `sensitivity`: every linear, unit and group of the model."""
    sites = [site for site in job.opened.sites if site.name in quantized.layers]
    track = tracking(progress, "measuring the sensitivity of every layer")
    read = _reader(job, quantized, folded(job.model, quantized))
    found = measure_sensitivity(sites, read, journal, track=track)
    return replace(found, n_samples=len(job.scored.probe), metric=sensitivity_task(job).kind.metric)


def rank_units(job: Job, quantized: Quantized, journal: Journal, progress: Progress) -> Sensitivity:
    """The Record's `sensitivity` for units only, as the search for a fallback needs it: an estimate for each from
    gradients in one pass, and the measured distance for those that matter.
    """
    sites = [site for site in job.opened.sites if site.name in quantized.layers]
    base = folded(job.model, quantized)
    values = journal.remember("estimates", partial(_estimates, job, quantized, base, progress))
    track = tracking(progress, "measuring the most sensitive layers")
    numbers = {unit: float(value) for unit, value in values.items()}
    found = measure_units(sites, numbers, _reader(job, quantized, base), journal, track=track)
    return replace(found, n_samples=len(job.scored.probe), metric=sensitivity_task(job).kind.metric)


def _estimates(job: Job, quantized: Quantized, base: GenericModel, progress: Progress) -> dict[str, str]:
    """The Fisher score of each unit, as text for a journal; infinity for a unit that breaks the outputs."""
    scores = {row["name"]: float(row["fisher"]) for row in fisher_rows(job, quantized, progress, base)}
    return {unit: repr(math.inf if math.isnan(score) else score) for unit, score in scores.items()}


def sensitivity_task(job: Job) -> Task:
    """The task whose loss stands beside the distance: the tuning task, or a part that is small enough for a hundred
    variants. A task that needs its whole corpus is replaced by agreement with float on the probe texts.
    """
    task = job.scored.tuning
    if len(task.texts) <= _MAX_TASK_TEXTS:
        return task
    units = np.arange(min(task.n_units or 0, _MAX_TASK_TEXTS // 2))
    kind, texts = task.kind.select(units, task.texts)
    if len(texts) <= _MAX_TASK_TEXTS:
        return Task(task.name, texts, kind)
    probe, config = as_texts(job.scored.probe), job.opened.loaded.config
    return agreement_task(job.model.task, config, probe, name="agreement with float on probe texts")


def _reader(job: Job, quantized: Quantized, base: GenericModel) -> Callable[[frozenset[str]], Reading]:
    """A function that measures how far the outputs move when only a given set of linears is quantized.

    base: the float model after folding, whose linears give way for as long as a reading takes.
    The distance is taken over the outputs of the probe texts, the metric loss over `sensitivity_task`.
    """
    modules = quantized_modules(quantized)
    task, texts = sensitivity_task(job), as_texts(job.scored.probe)
    float_encode = remembering(base.encode)  # folding changes no function
    float_probe, float_outputs = float_encode(texts), task.run(float_encode)

    def read(names: frozenset[str]) -> Reading:
        encode = remembering(base.encode)
        with only_quantized(base.hf, modules, names):
            try:
                probe = encode(texts)
                loss = task.loss(float_outputs, task.run(encode))
            except NumericsError:  # the outputs are not finite: as far away as can be
                probe, loss = [np.full_like(row, np.nan) for row in float_probe], np.inf
        return read_outputs(float_probe, probe, float(loss))

    return read
