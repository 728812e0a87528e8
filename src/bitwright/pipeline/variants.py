"""Variants of a model: its linears quantized, any subset of them swapped in, and what the outputs then are."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitwright.calibration.data import token_batches
from bitwright.calibration.observers import LayerStats, observe
from bitwright.calibration.stream import stream_blocks
from bitwright.checkpoints.stored import StoredLinear
from bitwright.errors import NumericsError, RecipeError
from bitwright.evaluate import Task
from bitwright.evaluate.distributions import linear_distributions
from bitwright.evaluate.kinds import Outputs
from bitwright.kernels import cpu
from bitwright.methods import ROUNDINGS
from bitwright.numerics import RANGES
from bitwright.numerics.grids import fake_quantize
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import SCHEMES, QuantSpec
from bitwright.pipeline.job import Job, agreement_task
from bitwright.pipeline.request import Progress
from bitwright.plan import Plan, half_names, quantized_names
from bitwright.runtime.model import Model
from bitwright.runtime.swap import quant_linear, set_compute, swap_linears, swap_one
from bitwright.search.journal import Journal
from bitwright.search.sensitivity import Reading, measure_sensitivity, read_outputs

_MAX_TASK_TEXTS = 400  # texts that every variant of the model encodes for its metric loss
_SAMPLE_ROWS = 512  # tokens per linear whose values the report's histograms show


def quantize_linears(job: Job, plan: Plan, progress: Progress) -> dict[str, StoredLinear]:
    """Round the weights of every linear that `plan` quantizes, and choose its input range where that is static.

    Raises:
        NumericsError: NaN or infinity in a weight or in what enters a linear; the message names the linear.
    """
    names = quantized_names(plan)
    schemes = {row.name: SCHEMES[row.scheme] for row in plan if row.name in names}
    methods = {row.name: ROUNDINGS[row.method] for row in plan if row.name in names}
    static = [name for name, scheme in schemes.items() if scheme.input is not None and not scheme.input.dynamic]
    stats = _observe(job, set(static), progress) if static else {}
    layers = {}
    for name, scheme in progress.track(list(schemes.items()), "rounding weights"):
        assert scheme.weight is not None
        assert scheme.input is not None
        weight = _weight(job.loaded.model, name)
        with _named(name):
            rounded = methods[name](weight, stats.get(name), scheme.weight, RANGES["absmax"]).qtensor
            scale, zero = _input_grid(stats[name], scheme.input, job.recipe.range) if name in stats else (None, None)
        layers[name] = StoredLinear(rounded, scheme.input, scale, zero)
    return layers


def quantize_tables(job: Job) -> dict[str, QTensor]:
    """The embedding tables as int8, one scale per row, if the recipe asks for it."""
    if job.recipe.embeddings != "int8":
        return {}
    tables = {}
    for name in job.embeddings:
        with _named(name):
            weight = _weight(job.loaded.model, name)
            tables[name] = ROUNDINGS["rtn"](weight, None, QuantSpec(), RANGES["absmax"]).qtensor
    return tables


def candidate(job: Job, plan: Plan, layers: dict[str, StoredLinear], tables: dict[str, QTensor]) -> Model:
    """A copy of the model with everything that `plan` says done to it: what the checkpoint will hold, in memory."""
    hf = copy.deepcopy(job.loaded.model)
    half = half_names(plan)
    with torch.no_grad():
        for name in set(job.embeddings) - tables.keys():
            weight = _weight(hf, name)
            weight.copy_(weight.to(_half_dtype(job)))
    chosen = {name: layers[name] for name in quantized_names(plan)}
    swap_linears(hf, chosen, half, job.loaded.architecture, tables=tables)
    set_compute(hf, "auto")  # as `load` does
    return replace(job.model, hf=hf, backend=f"kernels:{cpu.active_isa()}")


def dequantized(job: Job, plan: Plan, layers: dict[str, StoredLinear], tables: dict[str, QTensor]) -> Model:
    """A float copy of the model whose weights are the numbers that the checkpoint's codes stand for."""
    hf = copy.deepcopy(job.loaded.model)
    weights = {name: layers[name].qtensor.dequantize() for name in quantized_names(plan)}
    weights |= {name: table.dequantize() for name, table in tables.items()}
    kept = half_names(plan) | (set(job.embeddings) - tables.keys())
    weights |= {name: _weight(hf, name).to(_half_dtype(job)) for name in kept}
    with torch.no_grad():
        for name, weight in weights.items():
            _weight(hf, name).copy_(weight)
    return replace(job.model, hf=hf)


@contextmanager
def only_quantized(job: Job, modules: dict[str, nn.Module], names: frozenset[str]) -> Iterator[None]:
    """The float model with just these linears replaced by their quantized modules, until the end of the block."""
    before = {name: swap_one(job.loaded.model, name, modules[name]) for name in names}
    try:
        yield
    finally:
        for name, module in before.items():
            swap_one(job.loaded.model, name, module)


def sensitivity_task(job: Job) -> Task:
    """The task whose loss stands beside the distance: the tuning task, or so much of it that a hundred variants of the
    model can be measured. One that needs its whole corpus gives way to agreement with float on the probe texts.
    """
    task = job.tuning
    if len(task.texts) <= _MAX_TASK_TEXTS:
        return task
    units = np.arange(min(task.n_units or 0, _MAX_TASK_TEXTS // 2))
    kind, texts = task.kind.select(units, task.texts)
    if len(texts) <= _MAX_TASK_TEXTS:
        return Task(task.name, texts, kind)
    return agreement_task(job.loaded, job.probe, name="agreement with float on probe texts")


def sensitivity_measure(job: Job, layers: dict[str, StoredLinear]) -> Callable[[frozenset[str]], Reading]:
    """A function from a set of linears to how the outputs move when just these are quantized.

    The distance is taken over the outputs of the probe texts, the metric loss over `sensitivity_task`.
    """
    modules: dict[str, nn.Module] = {
        name: quant_linear(layer, _bias(job.loaded.model, name), name=name) for name, layer in layers.items()
    }
    task = sensitivity_task(job)
    float_encode = _remembering(job.model)
    float_probe, float_outputs = float_encode(list(job.probe)), task.run(float_encode)

    def measure(names: frozenset[str]) -> Reading:
        encode = _remembering(job.model)
        with only_quantized(job, modules, names):
            try:
                probe = encode(list(job.probe))
                loss = task.loss(float_outputs, task.run(encode))
            except NumericsError:  # the outputs are not finite: as far away as can be
                probe, loss = [np.full_like(row, np.nan) for row in float_probe], np.inf
        return read_outputs(float_probe, probe, float(loss))

    return measure


def measure_parts(job: Job, layers: dict[str, StoredLinear], journal: Journal, progress: Progress) -> dict[str, Any]:
    """The Record's `sensitivity`: every linear, unit and group of the model."""
    sites = [site for site in job.sites if site.name in layers]
    found = measure_sensitivity(
        sites,
        sensitivity_measure(job, layers),
        journal,
        track=lambda parts: progress.track(list(parts), "sensitivity of every layer"),
    )
    return found | {"n_samples": len(job.probe), "metric": sensitivity_task(job).kind.metric}


def describe_distributions(job: Job, layers: dict[str, StoredLinear]) -> list[dict[str, Any]]:
    """The Record's histograms: weights and inputs of every quantized linear, before and after."""
    batches = token_batches(job.model.tokenizer, job.probe[:32], max_tokens=job.model.max_tokens, batch_size=8)
    sites = [site for site in job.sites if site.name in layers]
    samples: dict[str, Tensor] = {}

    def keep(seen: Tensor | None, x_MK: Tensor) -> Tensor:
        return x_MK[:_SAMPLE_ROWS] if seen is None else torch.cat((seen, x_MK))[:_SAMPLE_ROWS]

    for _, found in stream_blocks(job.loaded.model, job.loaded.architecture, sites, batches, keep):
        samples |= found
    rows = []
    for site in sites:
        layer, x = layers[site.name], samples.get(site.name)
        weight = _weight(job.loaded.model, site.name)
        inputs = None if x is None else (x, _rounded_inputs(x, layer))
        rows.append(linear_distributions(site.name, site.role, (weight, layer.qtensor.dequantize()), inputs))
    return rows


def run_task(task: Task, model: Model, progress: Progress, what: str) -> Outputs:
    """The outputs of `model` for the texts of `task`."""
    return task.run(lambda texts: model.encode(texts, track=lambda steps: progress.track(list(steps), what)))


def _half_dtype(job: Job) -> torch.dtype:
    """What "16 bit" is for this model."""
    return torch.float16 if job.source_dtype == torch.float16 else torch.bfloat16


def _weight(model: nn.Module, name: str) -> Tensor:
    """The weight of a linear or a table, detached; shares its memory."""
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _bias(model: nn.Module, name: str) -> Tensor | None:
    bias = model.get_submodule(name).bias
    assert bias is None or isinstance(bias, Tensor)
    return bias


def _remembering(model: Model) -> Callable[[list[str]], Outputs]:
    """`encode` that does not run a text twice."""
    known: dict[str, np.ndarray] = {}

    def encode(texts: list[str]) -> Outputs:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known.update(zip(new, model.encode(new), strict=True))
        rows = [known[text] for text in texts]
        return np.stack(rows) if model.task in ("embedding", "sequence-classification") else rows

    return encode


def _observe(job: Job, names: set[str], progress: Progress) -> dict[str, LayerStats]:
    """Statistics of what enters these linears, over the calibration texts, one block at a time."""
    if not job.calibration:
        raise RecipeError("a static scheme needs calibration texts, and there are none; give some with --data")
    settings = job.recipe.calibration
    limit = min(settings.max_tokens, job.model.max_tokens)
    batches = token_batches(
        job.model.tokenizer, job.calibration, max_tokens=limit, batch_size=settings.batch_size, seed=job.recipe.seed
    )
    sites = [site for site in job.sites if site.name in names]
    stats: dict[str, LayerStats] = {}
    progress.say(f"observing {len(sites)} linears on {len(job.calibration)} texts, block by block")
    for _, found in stream_blocks(job.loaded.model, job.loaded.architecture, sites, batches, observe):
        stats |= found
    return stats


def _input_grid(stats: LayerStats, spec: QuantSpec, range_: str) -> tuple[Tensor, Tensor | None]:
    """float32 (1,) scale and int8 (1,) zero point of a static input."""
    scale, zero = RANGES[range_](stats.histogram, spec)
    return scale.float().reshape(1), None if zero is None else zero.reshape(1)


def _rounded_inputs(x_MK: Tensor, layer: StoredLinear) -> Tensor:
    scale = None if layer.input_scale is None else layer.input_scale.reshape(1, 1)
    zero = None if layer.input_zero_point is None else layer.input_zero_point.reshape(1, 1)
    if scale is None:
        scale, zero = RANGES["min_max"](x_MK, layer.input_spec)
    return fake_quantize(x_MK, scale, zero, layer.input_spec)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Put the linear's name in front of what goes wrong with it."""
    try:
        yield
    except NumericsError as error:
        raise NumericsError(f"{name}: {error}") from None
