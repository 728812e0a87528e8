"""Chooses the methods for `method: auto` from what a small sample of text shows about the model."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from bitwright.families.tasks import TaskName
from bitwright.models.sites import LinearSite
from bitwright.numerics.schemes import SCHEMES
from bitwright.pipeline.job import Job, open_job
from bitwright.pipeline.measuring import on_a_sample
from bitwright.pipeline.request import Texts
from bitwright.pipeline.resources import job_cost, resources
from bitwright.pipeline.unit_features import measure_features
from bitwright.pipeline.variants import calibration_batches
from bitwright.progress import Progress, Quiet
from bitwright.recipe import AUTO, Recipe, recipe_yaml, scheme_of
from bitwright.record import Evidence, RejectedMethod, UnitEvidence
from bitwright.search.cost import Resources
from bitwright.search.decide import Decision, decide, too_expensive
from bitwright.search.features import Features
from bitwright.search.rules import with_method

_SAMPLE_TEXTS = 64
_SAMPLE_TOKENS = 2048  # of windows of running text


def is_open(recipe: Recipe) -> bool:
    """Whether a recipe leaves the choice of any method to Bitwright."""
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
        sites = [
            site for site in job.opened.sites if scheme_of(job.recipe, site)[1] == AUTO and _is_quantized(job, site)
        ]
        features = measure_features(job.opened.loaded, sites, job.recipe, _sample(job), progress)
        rtn_loss = on_a_sample(job, progress)(with_method(job.recipe, "rtn")).loss
    decision = decide(features, job.recipe, job.opened.sites, rtn_loss=rtn_loss, cost=cost, resources=available)
    progress.say(f"decided: {decision.reason}")
    return replace(job.with_recipe(decision.recipe), decision=decision)


def plan(
    model: str | Path, *, recipe: Recipe, texts: Texts | None = None, available: Resources | None = None,
    trust_remote_code: bool = False, task: TaskName | None = None, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Tell what `quantize` would do with a model, and why. Writes nothing.

    Returns:
        {"model", "decision" and "plan": as in the Record, "recipe": YAML, "warnings": texts}
    """
    job = open_job(model, recipe, texts or Texts(), trust_remote_code=trust_remote_code, task=task)
    job = resolve_auto(job, progress, available)
    return {
        "model": job.opened.loaded.name,
        "decision": None if job.decision is None else decision_facts(job.decision),
        "plan": job.plan,
        "recipe": recipe_yaml(job.recipe),
        "warnings": (*job.warnings, *job.dropped),
    }


def decision_facts(decision: Decision) -> Evidence:
    """The Record's `decision`: the features and the method of every unit (linears that share an input), and what was
    rejected.
    """
    units = []
    for features, choice in zip(decision.features, decision.choices, strict=True):
        facts = {key: value for key, value in asdict(features).items() if key != "sites"}
        linears = tuple(site.name for site in features.sites)
        units.append(UnitEvidence(**facts, linears=linears, method=choice.method, reason=choice.reason))
    return Evidence(
        reason=decision.reason,
        rtn_loss=decision.rtn_loss,
        tolerable_error=decision.tolerable if math.isfinite(decision.tolerable) else None,
        overruled=decision.overruled,
        units=tuple(units),
        rejected=tuple(RejectedMethod(row.method, row.why) for row in decision.rejected),
        cost=asdict(decision.cost),
        resources=asdict(decision.resources),
    )


def _sample(job: Job) -> list[dict[str, Tensor]]:
    """Some of the calibration texts or windows, as token batches."""
    n = max(4, _SAMPLE_TOKENS // len(job.scored.calibration[0])) if job.opened.streams else _SAMPLE_TEXTS
    return calibration_batches(job, at_most=n)


def _is_quantized(job: Job, site: LinearSite) -> bool:
    return SCHEMES[scheme_of(job.recipe, site)[0]].weight is not None
