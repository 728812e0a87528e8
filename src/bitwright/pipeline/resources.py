"""The machine's resources for calibration, and an estimate of what calibrating a model would take."""

import time

import psutil
import torch

from bitwright.calibration.precision import fast_matmul
from bitwright.models.rescale import find_inputs
from bitwright.numerics.schemes import SCHEMES
from bitwright.pipeline.job import Job
from bitwright.recipe import scheme_of
from bitwright.search.cost import Cost, Resources, Tensor, calibration_cost

_PROBE = (512, 2048, 2048)  # M, N, K of the product that is timed
_PATIENCE_S = 6 * 3600.0
_FLOAT32 = 4  # bytes


def resources(*, memory_bytes: int | None = None, seconds: float | None = None) -> Resources:
    """This machine's free memory, its arithmetic per second in calibration (measured, 0.1 s), and the time that the
    user may want to wait; by default 6 h.
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
    return Resources(free, _PATIENCE_S if seconds is None else seconds, 2 * m * n * k / min(took))


def job_cost(job: Job, available: Resources) -> Cost:
    """The cost of calibrating on all calibration texts of the job, each as long as the recipe allows."""
    model, settings = job.opened.loaded.model, job.recipe.calibration
    sites = [site for site in job.opened.sites if SCHEMES[scheme_of(job.recipe, site)[0]].weight is not None]
    shapes = {site.name: model.get_parameter(f"{site.name}.weight").shape for site in sites}
    experts = {site.name for site in sites if site.role == "expert"}
    config = job.opened.loaded.config.get_text_config()
    share = _tokens_per_expert(job, config.num_experts_per_tok) if experts else 1.0
    inputs = find_inputs(model, job.opened.loaded.architecture, sites)
    tensors = [
        Tensor(
            sum(shapes[name][0] for name in shared.sites), shapes[shared.sites[0]][1], shared.block,
            share if experts.intersection(shared.sites) else 1.0,
        )
        for shared in inputs
    ]  # fmt: skip
    tables = [model.get_parameter(f"{name}.weight") for name in job.opened.embeddings]  # in memory beside the blocks
    return calibration_cost(
        tensors,
        n_tokens=min(len(job.scored.calibration), settings.samples) * min(settings.max_tokens, job.model.max_tokens),
        hidden=config.hidden_size,
        resident_bytes=_FLOAT32 * sum(table.numel() for table in tables),
        flops_per_second=available.flops_per_second,
    )


def _tokens_per_expert(job: Job, chosen: int) -> float:
    """The share of all tokens that reaches one expert, if all are chosen equally often."""
    block = max(site.block for site in job.opened.sites if site.role == "expert" and site.block is not None)
    names = {site.name.rpartition(".")[0] for site in job.opened.sites if site.role == "expert" and site.block == block}
    return min(1.0, chosen / len(names))
