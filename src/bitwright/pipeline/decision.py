"""`method: auto`: a small calibration sample goes once through the model, and what is seen decides the methods."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from bitwright.calibration.observers import LayerStats, observe
from bitwright.calibration.stream import fast_matmul, stream_stages
from bitwright.evaluate.logits import compare_windows
from bitwright.models.architectures import LinearSite, find_linears
from bitwright.models.lazy import materialise, open_lazily, release
from bitwright.models.load import LoadedModel
from bitwright.models.rescale import SharedInput, find_inputs
from bitwright.numerics.spec import SCHEMES
from bitwright.pipeline.job import Job, agreement_task, open_job
from bitwright.pipeline.layers import named
from bitwright.pipeline.request import Progress, Quiet, Texts
from bitwright.pipeline.streamed import StreamedModel
from bitwright.pipeline.variants import calibration_batches, candidate, quantize_model, run_task
from bitwright.plan import plan_rows
from bitwright.recipe import AUTO, Recipe, recipe_yaml, scheme_of
from bitwright.search import cost as costs
from bitwright.search.decide import Decision, decide, too_expensive
from bitwright.search.features import Features, Seen, measure
from bitwright.search.rules import with_method

_SAMPLE_TEXTS = 64
_SAMPLE_TOKENS = 2048  # of windows of running text
_LOSS_TEXTS, _LOSS_WINDOWS, _LOSS_TOKENS = 128, 4, 128  # on which the loss of rounding to nearest is measured
_SAMPLE_EXPERTS = 4  # of a block: errors of the others are alike
_PROBE = (512, 2048, 2048)  # M, N, K of the product that is timed
_PATIENCE_S = 6 * 3600.0


def resources(*, memory_bytes: int | None = None, seconds: float | None = None) -> costs.Resources:
    """What this machine has: free memory, arithmetic per second as calibration does it (measured, 0.1 s), and the time
    that a person may want to wait; by default 6 h.
    """
    m, n, k = _PROBE
    a_MK, b_KN = torch.ones(m, k), torch.ones(k, n)
    with fast_matmul():
        took = []
        for _ in range(4):
            begun = time.perf_counter()
            a_MK @ b_KN
            took.append(time.perf_counter() - begun)
    free = psutil.virtual_memory().available if memory_bytes is None else memory_bytes
    return costs.Resources(free, _PATIENCE_S if seconds is None else seconds, 2 * m * n * k / min(took))


def is_open(recipe: Recipe) -> bool:
    """Whether a recipe leaves any method to the engine."""
    return AUTO in (recipe.method, *(rule.method for rule in recipe.rules))


def resolve_auto(job: Job, progress: Progress | None = None, available: costs.Resources | None = None) -> Job:
    """The job with every `method: auto` of its recipe decided; the same job if there is none.

    Raises:
        NumericsError: NaN or infinity in a weight or among the inputs; the message names the linear.
    """
    if not is_open(job.recipe):
        return job
    progress, available = progress or Quiet(), available or resources()
    cost = _cost(job, available)
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
    model: str | Path, *, recipe: Recipe, texts: Texts | None = None, available: costs.Resources | None = None,
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
        "tolerable_error": decision.tolerable,
        "overruled": decision.overruled,
        "units": units,
        "rejected": [asdict(row) for row in decision.rejected],
        "cost": asdict(decision.cost),
        "resources": asdict(decision.resources),
    }


def measure_features(
    loaded: LoadedModel, sites: Sequence[LinearSite], recipe: Recipe, batches: Sequence[Mapping[str, Tensor]],
    progress: Progress, *, trust_remote_code: bool = False,
) -> list[Features]:  # fmt: skip
    """The features of every unit of `sites`, from one pass over the batches in the memory of one block.

    Args:
        loaded: where the model lies; its own modules are neither used nor changed.
        recipe: says which scheme each linear gets, and SmoothQuant's exponent.
    """
    opened = open_lazily(loaded.path, trust_remote_code=trust_remote_code, task=loaded.task)
    model, wanted = opened.model, {site.name for site in sites}
    here = [site for site in find_linears(model, opened.architecture) if site.name in wanted]
    inputs = find_inputs(model, opened.architecture, here)
    alpha = recipe.options.alpha if recipe.options.alpha != "search" else None
    found: list[Features] = []
    stages = stream_stages(
        model, opened.architecture, here, batches, fast=True,
        enter=partial(_each, materialise, opened), leave=partial(_each, release, opened),
    )  # fmt: skip
    for stage in stages:
        progress.say(f"looking at block {stage.index}")
        stats = stage.observe(stage.sites, partial(observe, gram=True))
        for unit in dict.fromkeys(site.unit for site in stage.sites):
            members = [site for site in stage.sites if site.unit == unit]
            seen = _seen(model, [site.name for site in members], inputs, stats)
            n_weights = sum(_weight(model, site.name).numel() for site in members)
            scheme = scheme_of(recipe, members[0])[0]
            with named(unit), fast_matmul():
                found.append(measure(unit, members, scheme, n_weights, seen, alpha=alpha))
        if len(found) == len({site.unit for site in here}):
            break  # what this stage puts out is nobody's input
    return found


def _seen(
    model: nn.Module, names: Sequence[str], inputs: Sequence[SharedInput], stats: Mapping[str, LayerStats]
) -> list[Seen]:
    """The tensors that the linears of a unit read; of experts those of a few that tokens reached, evenly spaced."""
    read = []
    for shared in inputs:
        readers = [name for name in shared.sites if name in names and name in stats]
        for first in {id(stats[name]): name for name in readers}.values():
            alike = [name for name in readers if stats[name] is stats[first]]
            read.append((stats[first], alike, shared.producer is not None))
    step = max(1, len(read) // (2 * _SAMPLE_EXPERTS))  # an expert reads two tensors
    return [
        Seen(seen, [_weight(model, name) for name in readers], foldable) for seen, readers, foldable in read[::step]
    ]


def _each(act: Callable[[LoadedModel, str], None], opened: LoadedModel, paths: Sequence[str]) -> None:
    for path in paths:
        act(opened, path)


def _rtn_loss(job: Job, progress: Progress) -> float:
    """What the model loses on a few tuning texts if all that is open is rounded to nearest: by the label-free metric,
    and of a language model e^KL − 1, the rise of perplexity on text that the float model itself would write.

    Where the metric counts answers, less than one of the texts cannot be told from none: it counts as one.
    """
    recipe = with_method(job.recipe, "rtn")
    rounded = replace(job, recipe=recipe, plan=job.plan_for(recipe))
    with TemporaryDirectory() as folder:
        quantized = quantize_model(rounded, Path(folder), progress)
        model = candidate(rounded, rounded.plan, quantized, {})
        if isinstance(job.model, StreamedModel) and isinstance(model, StreamedModel):
            windows = [
                tuple(ids[:_LOSS_TOKENS]) for ids in job.tuning.texts[:_LOSS_WINDOWS] if not isinstance(ids, str)
            ]
            ids = torch.tensor(windows)
            pairs = dict(zip(windows, zip(job.model.logits(ids), model.logits(ids), strict=True), strict=True))
            compared = compare_windows(windows, lambda window: pairs[window][0], lambda window: pairs[window][1])
            return math.expm1(compared.mean_kl)
        texts = [text for text in job.probe[:_LOSS_TEXTS] if isinstance(text, str)]
        task = agreement_task(job.loaded, texts)
        loss = task.loss(
            run_task(task, job.model, progress, "sample, float"), run_task(task, model, progress, "sample")
        )
        return float(loss) if task.kind.outputs == "embeddings" else max(float(loss), 1 / len(texts))


def _sample(job: Job) -> list[dict[str, Tensor]]:
    """Some of the calibration texts or windows, as token batches."""
    n = _SAMPLE_TEXTS
    if job.streams:
        n = max(4, _SAMPLE_TOKENS // len(job.calibration[0]))
    return calibration_batches(replace(job, calibration=job.calibration[:n]))


def _cost(job: Job, available: costs.Resources) -> costs.Cost:
    """What calibrating as the recipe says would take."""
    model, settings = job.loaded.model, job.recipe.calibration
    names = [site.name for site in job.sites if _is_quantized(job, site)]
    shapes = {name: _weight(model, name).shape for name in names}
    config = job.loaded.config.get_text_config()
    n_experts = max(1, sum(site.role == "expert" and site.block == _last_block(job) for site in job.sites) // 3)
    per_token = getattr(config, "num_experts_per_tok", None) or 1
    experts = {site.name for site in job.sites if site.role == "expert"}
    tensors = []
    for shared in find_inputs(model, job.loaded.architecture, [site for site in job.sites if site.name in shapes]):
        share = min(1.0, per_token / n_experts) if experts.intersection(shared.sites) else 1.0
        n = sum(shapes[name][0] for name in shared.sites)
        tensors.append(costs.Tensor(n, shapes[shared.sites[0]][1], shared.block, share))
    in_blocks = {site.block for site in job.sites} - {None}
    resident = 4 * sum(_weight(model, name).numel() for name in job.embeddings)
    # An encoder is in memory whole beside the blocks that calibration fills.
    resident += 0 if job.streams else 4 * sum(p.numel() for p in model.parameters())
    assert in_blocks
    return costs.calibration_cost(
        tensors,
        n_tokens=min(len(job.calibration), settings.samples) * min(settings.max_tokens, job.model.max_tokens),
        hidden=config.hidden_size,
        resident_bytes=resident,
        flops_per_second=available.flops_per_second,
    )


def _last_block(job: Job) -> int:
    return max(site.block for site in job.sites if site.block is not None)


def _is_quantized(job: Job, site: LinearSite) -> bool:
    return SCHEMES[scheme_of(job.recipe, site)[0]].weight is not None


def _weight(model: nn.Module, name: str) -> Tensor:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight.detach()
