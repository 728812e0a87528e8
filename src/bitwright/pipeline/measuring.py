"""Measures the loss of a recipe's model for a search, on tuning data or on a small sample."""

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bitwright.errors import EngineError, NotFiniteError, NumericsError
from bitwright.evaluate import Task, agreement_task, loss_interval
from bitwright.evaluate.distance import output_distance
from bitwright.evaluate.kinds import Outputs, windows_in
from bitwright.evaluate.logits import compare_windows
from bitwright.pipeline.job import Job
from bitwright.pipeline.scored import as_texts
from bitwright.pipeline.variants import candidate, quantize_model, stored_plan, write_variant
from bitwright.progress import Progress, tracking
from bitwright.quantizing.layers import Quantized
from bitwright.recipe import Recipe
from bitwright.runtime.load import load
from bitwright.runtime.model import Model
from bitwright.search.journal import Journal
from bitwright.search.measured import Measure, Measured
from bitwright.search.smallest import Probe, Probed

_PLACE = ".candidate"  # in a work directory; hidden: what a killed run leaves goes when the next one begins
_LOSS_TEXTS, _LOSS_WINDOWS, _LOSS_TOKENS = 128, 4, 64  # of the small sample
_PROBE_TEXTS = 64


def run_task(task: Task, model: Model, progress: Progress, what: str) -> Outputs:
    """The outputs of `model` for the texts of `task`."""
    return task.run(partial(model.encode, track=tracking(progress, what)))


def on_tuning_data(job: Job, quantized: Quantized, journal: Journal, folder: Path, progress: Progress) -> Measure:
    """Measures recipes that give more bits to some of the linears of `quantized`; nothing is quantized for it.

    An encoder's candidate is written into `folder` and loaded, so that what is measured is what a result is: the same
    bytes, on the engine where that runs them. One lies there at a time.
    """
    given = None if job.reference is None else job.reference.tuning
    float_outputs: list[Outputs] = [] if given is None else [given]

    @cache
    def measure(recipe: Recipe) -> Measured:
        variant = job.with_recipe(recipe)

        def bounds() -> list[float]:
            if not float_outputs:
                float_outputs.append(run_task(job.scored.tuning, job.model, progress, "tuning texts, float model"))
            what = f"tuning texts, more bits for {_with_more_bits(job, variant)} layer groups"
            try:
                with _runnable(variant, quantized, folder) as model:
                    outputs = run_task(job.scored.tuning, model, progress, what)
            except NotFiniteError:  # as bad as can be
                return [math.inf, math.inf]
            interval = loss_interval(job.scored.tuning, float_outputs[0], outputs, seed=job.recipe.seed)
            return [interval.loss, interval.upper]

        loss, bound = journal.remember(f"loss:{recipe.model_dump_json(exclude={'budget'})}", bounds)
        return Measured(loss, bound, None, _bytes(variant, quantized), job.scored.by_kind)

    return measure


@contextmanager
def _runnable(variant: Job, quantized: Quantized, folder: Path) -> Iterator[Model]:
    """A variant as its result would run. A language model that the engine does not run is never whole in memory, and
    runs from its parts."""
    streams, trusted = variant.opened.streams, variant.opened.loaded.trust_remote_code
    place = folder / _PLACE
    shutil.rmtree(place, ignore_errors=True)
    write_variant(variant, quantized, place)
    try:
        try:
            model: Model = load(place, trust_remote_code=trusted, compute="engine" if streams else "auto")
        except EngineError:
            model = candidate(variant, quantized)
        yield model
    finally:
        shutil.rmtree(place)


def on_a_sample(job: Job, progress: Progress) -> Measure:
    """Measures any recipe by carrying it out, on a few tuning texts. The loss has no bound.

    By the label-free metric; of a language model e^KL − 1, the rise of perplexity on text that the float model would
    write. Where the metric counts answers, less than one of the texts cannot be told from none: it counts as one.
    """

    def measure(recipe: Recipe) -> Measured:
        variant = job.with_recipe(recipe)
        with TemporaryDirectory() as folder:
            quantized = quantize_model(variant, Path(folder), progress)
            try:
                loss = _sample_loss(job, candidate(variant, quantized), progress)
            except NumericsError:
                loss = math.inf
            return Measured(loss, math.inf, None, _bytes(variant, quantized))

    return measure


def _sample_loss(job: Job, model: Model, progress: Progress) -> float:
    if job.opened.streams:
        return math.expm1(_mean_kl(job, model))
    probe = as_texts(job.scored.probe[:_LOSS_TEXTS])
    task = agreement_task(model.task, job.opened.loaded.config, probe)
    outputs = (run_task(task, each, progress, "sample") for each in (job.model, model))
    loss = float(task.loss(*outputs))
    return loss if task.kind.outputs == "embeddings" else max(loss, 1 / len(probe))


def distances(job: Job, quantized: Quantized, journal: Journal, folder: Path, progress: Progress) -> Probe:
    """How far the outputs move on a few tuning texts when a recipe is carried out with the linears of `quantized`: for
    a language model the mean KL divergence of the next token, else `output_distance`. folder: as for `on_tuning_data`.
    """
    texts = as_texts(job.scored.probe[:: max(1, len(job.scored.probe) // _PROBE_TEXTS)])
    float_outputs: list[Outputs] = []

    def distance(variant: Job) -> float:
        if not float_outputs and not job.opened.streams:
            float_outputs.append(job.model.encode(texts))
        try:
            with _runnable(variant, quantized, folder) as model:
                if job.opened.streams:
                    return _mean_kl(job, model)
                what = f"output distance, more bits for {_with_more_bits(job, variant)} layer groups"
                outputs = model.encode(texts, track=tracking(progress, what))
        except NumericsError:
            return math.inf
        return output_distance(float_outputs[0], outputs, embeddings=job.model.task == "embedding")

    def probe(recipe: Recipe) -> Probed:
        variant = job.with_recipe(recipe)
        key = f"distance:{recipe.model_dump_json(exclude={'budget'})}"
        return Probed(float(journal.remember(key, lambda: repr(distance(variant)))), _bytes(variant, quantized))

    return probe


def _bytes(job: Job, quantized: Quantized) -> int:
    return sum(row.bytes_after for row in stored_plan(job, quantized))


def _mean_kl(job: Job, model: Model) -> float:
    """The KL divergence of a language model from the float model, per token of a few tuning windows."""
    windows = [ids[:_LOSS_TOKENS] for ids in windows_in(job.scored.tuning.texts[:_LOSS_WINDOWS])]
    ids = torch.tensor(windows)
    pairs = dict(zip(windows, zip(job.model.logits(ids), model.logits(ids), strict=True), strict=True))
    return compare_windows(windows, lambda window: pairs[window][0], lambda window: pairs[window][1]).mean_kl


def _with_more_bits(job: Job, variant: Job) -> int:
    """The number of units that have more bits in a variant than in the job."""
    before = {row.name: row.scheme for row in job.plan}
    return len({row.unit for row in variant.plan if row.is_linear and row.scheme != before[row.name]})
