"""Variants of a model: its linears quantized, any subset of them swapped in, and what the outputs then are."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitwright.calibration.data import token_batches
from bitwright.calibration.stream import stream_stages
from bitwright.checkpoints.stored import StoredLinear, ready
from bitwright.checkpoints.write import QuantizedParts, write_checkpoint
from bitwright.errors import NumericsError, RecipeError, named
from bitwright.evaluate import Task
from bitwright.evaluate.distributions import linear_distributions
from bitwright.evaluate.kinds import Encode, Outputs, Window
from bitwright.kernels import dispatch
from bitwright.methods import ROUNDINGS
from bitwright.numerics import RANGES
from bitwright.numerics.grids import fake_quantize
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec
from bitwright.pipeline.job import AnyModel, Job, agreement_task, as_texts
from bitwright.plan import Plan, half_names, quantized_names
from bitwright.progress import Progress
from bitwright.quantizing.layers import Quantized, needs_inputs, quantize_linears
from bitwright.runtime.engine_model import EngineModel
from bitwright.runtime.model import Model
from bitwright.runtime.streamed import Changes, StreamedModel
from bitwright.runtime.swap import quant_linear, set_compute, swap_linears, swap_one
from bitwright.search.journal import Journal
from bitwright.search.sensitivity import Reading, measure_sensitivity, read_outputs

_MAX_TASK_TEXTS = 400  # texts that every variant of the model encodes for its metric loss
_SAMPLE_ROWS = 512  # tokens per linear whose values the report's histograms show


def quantize_model(job: Job, folder: Path | None, progress: Progress) -> Quantized:
    """Quantize every linear of the job's plan. What is done is kept in `folder`, if the model must be run for it.

    Raises:
        NumericsError: NaN or infinity in a weight or in what enters a linear; the message names the linear.
    """
    batches = calibration_batches(job) if any(needs_inputs(row, job.recipe) for row in job.plan) else []
    quantized = quantize_linears(
        job.loaded, job.plan, job.recipe, batches, folder, half_dtype(job), progress,
        trust_remote_code=job.trust_remote_code,
    )  # fmt: skip
    if job.streams:
        return quantized
    layers = {
        name: ready(lazy.load()) for name, lazy in progress.track(list(quantized.layers.items()), "rounding weights")
    }
    changed = {name: partial(_same, load()) for name, load in quantized.changed.items()}
    return replace(quantized, layers=layers, changed=changed)


def calibration_batches(job: Job) -> list[dict[str, Tensor]]:
    """The calibration texts as token batches; windows of a language model are equally long and need no mask."""
    if not job.calibration:
        raise RecipeError("a method that looks at inputs needs calibration texts, and there are none; give --data")
    settings = job.recipe.calibration
    if job.streams:
        ids = torch.tensor(job.calibration)
        return [{"input_ids": part} for part in torch.split(ids, settings.batch_size)]
    limit = min(settings.max_tokens, job.model.max_tokens)
    return token_batches(
        job.model.tokenizer, as_texts(job.calibration), max_tokens=limit, batch_size=settings.batch_size,
        seed=job.recipe.seed,
    )  # fmt: skip


def quantize_tables(job: Job) -> dict[str, QTensor]:
    """The embedding tables as int8, one scale per row, if the recipe asks for it."""
    if job.recipe.embeddings != "int8":
        return {}
    tables = {}
    for name in job.embeddings:
        with named(name):
            weight = _weight(job.loaded.model, name)
            tables[name] = ROUNDINGS["rtn"](weight, None, QuantSpec(), RANGES["absmax"]).qtensor
    return tables


def candidate(job: Job, plan: Plan, quantized: Quantized, tables: dict[str, QTensor]) -> AnyModel:
    """The model with everything that `plan` says done to it: what the checkpoint will hold. A copy in memory, or, of a
    language model, block by block.
    """
    names, half = quantized_names(plan), half_names(plan)
    if isinstance(job.model, StreamedModel):
        layers = {name: quantized.layers[name].load for name in names}
        in_16_bit = tuple(f"{name}.weight" for name in job.embeddings)
        return replace(
            job.model, changes=Changes(layers, half, quantized.changed_for(plan), in_16_bit, half_dtype(job))
        )
    hf = copy.deepcopy(job.loaded.model)
    with torch.no_grad():
        for name, load in quantized.changed_for(plan).items():
            hf.get_parameter(name).copy_(load())
        for name in set(job.embeddings) - tables.keys():
            weight = _weight(hf, name)
            weight.copy_(weight.to(half_dtype(job)))
    chosen = {name: quantized.layers[name].load() for name in names}
    swap_linears(hf, chosen, half, job.loaded.architecture, tables=tables)
    set_compute(hf, "auto")  # as `load` does
    return replace(job.model, hf=hf, backend=f"kernels:{dispatch.active_isa()}")


def write_variant(job: Job, plan: Plan, quantized: Quantized, tables: dict[str, QTensor], directory: Path) -> None:
    """Write the checkpoint of what `plan` says, without a model card."""
    layers = {name: quantized.layers[name] for name in quantized_names(plan)}
    parts = QuantizedParts(layers, half_names(plan), tables, changed=quantized.changed_for(plan))
    write_checkpoint(job.loaded.path, directory, parts, job.names, model_card="")


def dequantized(job: Job, plan: Plan, quantized: Quantized, tables: dict[str, QTensor]) -> AnyModel:
    """A float copy of the model whose weights are the numbers that the checkpoint's codes stand for."""
    if isinstance(job.model, StreamedModel):
        return _dequantized_stream(job, job.model, plan, quantized)
    hf = copy.deepcopy(job.loaded.model)
    weights = {f"{name}.weight": table.dequantize() for name, table in tables.items()}
    kept = half_names(plan) | (set(job.embeddings) - tables.keys())
    with torch.no_grad():
        for name, load in quantized.changed_for(plan).items():
            hf.get_parameter(name).copy_(load())
        weights |= {f"{name}.weight": _weight(hf, name).to(half_dtype(job)) for name in kept}
        for name in quantized_names(plan):
            weights |= _effective(name, quantized.layers[name].load(), _bias(hf, name))
        for name, weight in weights.items():
            hf.get_parameter(name).copy_(weight)
    return replace(job.model, hf=hf)


def _dequantized_stream(job: Job, model: StreamedModel, plan: Plan, quantized: Quantized) -> StreamedModel:
    changed = quantized.changed_for(plan)

    def weight(name: str) -> Tensor:
        return _effective(name, quantized.layers[name].load(), None)[f"{name}.weight"]

    def bias(name: str) -> Tensor:
        layer = quantized.layers[name].load()
        return _effective(name, layer, changed[f"{name}.bias"]())[f"{name}.bias"]

    names = quantized_names(plan)
    shifted = {name for name in names if quantized.layers[name].has_shift_K}
    changed |= {f"{name}.weight": partial(weight, name) for name in names}
    changed |= {f"{name}.bias": partial(bias, name) for name in shifted}
    rounded = tuple(f"{name}.weight" for name in (*job.embeddings, *half_names(plan)))
    return replace(model, changes=Changes(changed=changed, in_16_bit=rounded, dtype=half_dtype(job)))


def _effective(name: str, layer: StoredLinear, bias: Tensor | None) -> dict[str, Tensor]:
    """The float weight, and bias if it is another, of a linear that computes what `layer` does on an input as it is."""
    weight = layer.qtensor.dequantize()
    if layer.input_scale_K is not None:
        weight = weight / layer.input_scale_K
    if layer.input_shift_K is None:
        return {f"{name}.weight": weight}
    assert bias is not None
    return {f"{name}.weight": weight, f"{name}.bias": bias.detach() - weight @ layer.input_shift_K}


def _same(value: Tensor) -> Tensor:
    return value


@contextmanager
def only_quantized(model: nn.Module, modules: dict[str, nn.Module], names: frozenset[str]) -> Iterator[None]:
    """`model` with just these linears replaced by their quantized modules, until the end of the block."""
    before = {name: swap_one(model, name, modules[name]) for name in names}
    try:
        yield
    finally:
        for name, module in before.items():
            swap_one(model, name, module)


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
    return agreement_task(job.loaded, as_texts(job.probe), name="agreement with float on probe texts")


def sensitivity_measure(job: Job, quantized: Quantized) -> Callable[[frozenset[str]], Reading]:
    """A function from a set of linears to how the outputs move when just these are quantized.

    The distance is taken over the outputs of the probe texts, the metric loss over `sensitivity_task`.
    """
    assert isinstance(job.model, Model)
    base = replace(job.model, hf=_folded(job, quantized))
    modules: dict[str, nn.Module] = {}
    for name, lazy in quantized.layers.items():
        bias = quantized.biases[name]() if name in quantized.biases else _bias(base.hf, name)
        modules[name] = quant_linear(lazy.load(), bias, name=name)
    task = sensitivity_task(job)
    float_encode = _remembering(job.model)
    float_probe, float_outputs = float_encode(as_texts(job.probe)), task.run(float_encode)

    def measure(names: frozenset[str]) -> Reading:
        encode = _remembering(base)
        with only_quantized(base.hf, modules, names):
            try:
                probe = encode(as_texts(job.probe))
                loss = task.loss(float_outputs, task.run(encode))
            except NumericsError:  # the outputs are not finite: as far away as can be
                probe, loss = [np.full_like(row, np.nan) for row in float_probe], np.inf
        return read_outputs(float_probe, probe, float(loss))

    return measure


def _folded(job: Job, quantized: Quantized) -> nn.Module:
    """The float model after folding: the same function in other numbers. The model itself if nothing was folded."""
    if not quantized.changed:
        return job.loaded.model
    hf = copy.deepcopy(job.loaded.model)
    with torch.no_grad():
        for name, load in quantized.changed.items():
            hf.get_parameter(name).copy_(load())
    return hf


def measure_parts(job: Job, quantized: Quantized, journal: Journal, progress: Progress) -> dict[str, Any]:
    """The Record's `sensitivity`: every linear, unit and group of the model."""
    sites = [site for site in job.sites if site.name in quantized.layers]
    found = measure_sensitivity(
        sites,
        sensitivity_measure(job, quantized),
        journal,
        track=lambda parts: progress.track(list(parts), "sensitivity of every layer"),
    )
    return found | {"n_samples": len(job.probe), "metric": sensitivity_task(job).kind.metric}


def describe_distributions(job: Job, plan: Plan, quantized: Quantized) -> list[dict[str, Any]]:
    """The Record's histograms: weights and inputs of every quantized linear, before and after."""
    texts = as_texts(job.probe[:32])
    batches = token_batches(job.model.tokenizer, texts, max_tokens=job.model.max_tokens, batch_size=8)
    layers = {name: quantized.layers[name].load() for name in quantized_names(plan)}
    sites = [site for site in job.sites if site.name in layers]
    samples: dict[str, Tensor] = {}

    def keep(seen: Tensor | None, x_MK: Tensor) -> Tensor:
        return x_MK[:_SAMPLE_ROWS] if seen is None else torch.cat((seen, x_MK))[:_SAMPLE_ROWS]

    base = _folded(job, quantized)
    for stage in stream_stages(base, job.loaded.architecture, sites, batches):
        samples |= stage.observe(stage.sites, keep)
    rows = []
    for site in sites:
        layer, x = layers[site.name], samples.get(site.name)
        weight = _weight(base, site.name)
        if layer.input_scale_K is not None:
            shift = 0 if layer.input_shift_K is None else layer.input_shift_K
            weight, x = weight * layer.input_scale_K, None if x is None else (x - shift) / layer.input_scale_K
        inputs = None if x is None else (x, _rounded_inputs(x, layer))
        rows.append(linear_distributions(site.name, site.role, (weight, layer.qtensor.dequantize()), inputs))
    return rows


def run_task(task: Task, model: AnyModel | EngineModel, progress: Progress, what: str) -> Outputs:
    """The outputs of `model` for the texts of `task`."""
    return task.run(lambda texts: model.encode(texts, track=lambda steps: progress.track(list(steps), what)))


def half_dtype(job: Job) -> torch.dtype:
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


def _remembering(model: Model) -> Encode:
    """`encode` that does not run a text twice."""
    known: dict[str, np.ndarray] = {}

    def encode(items: Sequence[str] | Sequence[Window]) -> Outputs:
        texts = [item for item in items if isinstance(item, str)]
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known.update(zip(new, model.encode(new), strict=True))
        rows = [known[text] for text in texts]
        return np.stack(rows) if model.task in ("embedding", "sequence-classification") else rows

    return encode


def _rounded_inputs(x_MK: Tensor, layer: StoredLinear) -> Tensor:
    if layer.input_spec is None:
        return x_MK
    scale = None if layer.input_scale is None else layer.input_scale.reshape(1, 1)
    zero = None if layer.input_zero_point is None else layer.input_zero_point.reshape(1, 1)
    if scale is None:
        scale, zero = RANGES["min_max"](x_MK, layer.input_spec)
    return fake_quantize(x_MK, scale, zero, layer.input_spec)
