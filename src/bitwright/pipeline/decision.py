"""`method: auto`: what a small sample of text shows of a model decides the methods."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import NumericsError
from bitwright.evaluate.logits import compare_windows
from bitwright.models.sites import LinearSite
from bitwright.numerics.spec import SCHEMES
from bitwright.pipeline.features import measure_features
from bitwright.pipeline.job import AnyModel, Job, agreement_task, open_job
from bitwright.pipeline.request import Texts
from bitwright.pipeline.resources import job_cost, resources
from bitwright.pipeline.variants import calibration_batches, candidate, quantize_model, run_task
from bitwright.plan import plan_rows
from bitwright.progress import Progress, Quiet
from bitwright.recipe import AUTO, Recipe, recipe_yaml, scheme_of
from bitwright.runtime.streamed import StreamedModel
from bitwright.search.cost import Resources
from bitwright.search.decide import Decision, decide, too_expensive
from bitwright.search.features import Features
from bitwright.search.rules import with_method

_SAMPLE_TEXTS = 64
_SAMPLE_TOKENS = 2048  # of windows of running text
_LOSS_TEXTS, _LOSS_WINDOWS, _LOSS_TOKENS = 128, 4, 64  # on which the loss of rounding to nearest is measured


def is_open(recipe: Recipe) -> bool:
    """Whether a recipe leaves any method to the engine."""
    return AUTO in (recipe.method, *(rule.method for rule in recipe.rules))


def resolve_auto(job: Job, progress: Progress | None = None, available: Resources | None = None) -> Job:
    """The job with every `method: auto` of its recipe decided; the same job if there is none.

    Raises:
        NumericsError: NaN or infinity in a weight or among the inputs; the message names the linear.
    """
    if not is_open(job.recipe):
        return job
    progress, available = progress or Quiet(), available or resources()
    cost = job_cost(job, available)
    features: list[Features] = []
    rtn_loss = None
    if not too_expensive(cost, available):
        sites = [site for site in job.sites if scheme_of(job.recipe, site)[1] == AUTO and _is_quantized(job, site)]
        features = measure_features(
            job.loaded, sites, job.recipe, _sample(job), progress, trust_remote_code=job.trust_remote_code
        )
        rtn_loss = _rtn_loss(job, progress)
    decision = decide(features, job.recipe, job.sites, rtn_loss=rtn_loss, cost=cost, resources=available)
    progress.say(f"decided: {decision.reason}")
    return replace(job, recipe=decision.recipe, plan=job.plan_for(decision.recipe), decision=decision)


def plan(
    model: str | Path, *, recipe: Recipe, texts: Texts | None = None, available: Resources | None = None,
    trust_remote_code: bool = False, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What `quantize` would do with a model, and why. Writes nothing.

    Returns:
        {"model", "decision": `decision_facts` or None, "plan": rows as in the Record, "recipe": YAML}
    """
    job = open_job(model, recipe, texts or Texts(), trust_remote_code=trust_remote_code)
    job = resolve_auto(job, progress, available)
    return {
        "model": job.loaded.name,
        "decision": None if job.decision is None else decision_facts(job.decision),
        "plan": plan_rows(job.plan),
        "recipe": recipe_yaml(job.recipe),
    }


def decision_facts(decision: Decision) -> dict[str, Any]:
    """The Record's `decision`: features of every unit with the method that it got, and what was rejected."""
    units = []
    for features, choice in zip(decision.features, decision.choices, strict=True):
        facts = {key: value for key, value in asdict(features).items() if key != "sites"}
        linears = [site.name for site in features.sites]
        units.append({**facts, "linears": linears, "method": choice.method, "reason": choice.reason})
    return {
        "reason": decision.reason,
        "rtn_loss": decision.rtn_loss,
        "tolerable_error": decision.tolerable if math.isfinite(decision.tolerable) else None,
        "overruled": decision.overruled,
        "units": units,
        "rejected": [asdict(row) for row in decision.rejected],
        "cost": asdict(decision.cost),
        "resources": asdict(decision.resources),
    }


def _rtn_loss(job: Job, progress: Progress) -> float:
    """What the model loses on a few tuning texts if all that is open is rounded to nearest; infinite if its outputs are
    no numbers any more.
    """
    recipe = with_method(job.recipe, "rtn")
    rounded = replace(job, recipe=recipe, plan=job.plan_for(recipe))
    with TemporaryDirectory() as folder:
        model = candidate(rounded, rounded.plan, quantize_model(rounded, Path(folder), progress), {})
        try:
            return _loss(job, model, progress)
        except NumericsError:
            return math.inf


def _loss(job: Job, model: AnyModel, progress: Progress) -> float:
    """By the label-free metric; of a language model e^KL − 1, the rise of perplexity on text that the float model would
    write. Where the metric counts answers, less than one of the texts cannot be told from none: it counts as one.
    """
    if isinstance(job.model, StreamedModel) and isinstance(model, StreamedModel):
        windows = [tuple(ids[:_LOSS_TOKENS]) for ids in job.tuning.texts[:_LOSS_WINDOWS] if not isinstance(ids, str)]
        ids = torch.tensor(windows)
        pairs = dict(zip(windows, zip(job.model.logits(ids), model.logits(ids), strict=True), strict=True))
        compared = compare_windows(windows, lambda window: pairs[window][0], lambda window: pairs[window][1])
        return math.expm1(compared.mean_kl)
    texts = [text for text in job.probe[:_LOSS_TEXTS] if isinstance(text, str)]
    task = agreement_task(job.loaded, texts)
    outputs = (run_task(task, each, progress, "sample") for each in (job.model, model))
    loss = float(task.loss(*outputs))
    return loss if task.kind.outputs == "embeddings" else max(loss, 1 / len(texts))


def _sample(job: Job) -> list[dict[str, Tensor]]:
    """Some of the calibration texts or windows, as token batches."""
    n = _SAMPLE_TEXTS
    if job.streams:
        n = max(4, _SAMPLE_TOKENS // len(job.calibration[0]))
    return calibration_batches(replace(job, calibration=job.calibration[:n]))


def _is_quantized(job: Job, site: LinearSite) -> bool:
    return SCHEMES[scheme_of(job.recipe, site)[0]].weight is not None
