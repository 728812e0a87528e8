"""Variants of a model: its linears quantized, and any plan carried out with them, in memory or on disk."""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bitwright.calibration.data import token_batches
from bitwright.checkpoints.write import QuantizedParts, write_checkpoint
from bitwright.errors import RecipeError, named
from bitwright.kernels import dispatch
from bitwright.methods import ROUNDINGS
from bitwright.models.parameters import weight_of
from bitwright.numerics import RANGES
from bitwright.numerics.linear import ready
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec
from bitwright.pipeline.job import Job
from bitwright.pipeline.opened import AnyModel
from bitwright.pipeline.scored import as_texts
from bitwright.pipeline.swapped import fold_in
from bitwright.plan import half_names, quantized_names
from bitwright.progress import Progress
from bitwright.quantizing.layers import Quantized, needs_inputs, quantize_linears
from bitwright.runtime.streamed import Changes, StreamedModel
from bitwright.runtime.swap import set_compute, swap_linears


def quantize_model(job: Job, folder: Path | None, progress: Progress) -> Quantized:
    """Quantize every linear of the job's plan. What is done is kept in `folder`, if the model must be run for it.

    Raises:
        NumericsError: NaN or infinity in a weight or in what enters a linear; the message names the linear.
    """
    batches = calibration_batches(job) if any(needs_inputs(row, job.recipe) for row in job.plan) else []
    opened = job.opened
    quantized = quantize_linears(opened.loaded, job.plan, job.recipe, batches, folder, opened.half_dtype, progress)
    if opened.streams:
        return quantized
    layers = {
        name: ready(lazy.load()) for name, lazy in progress.track(list(quantized.layers.items()), "rounding weights")
    }
    loaded = {name: load() for name, load in quantized.changed.items()}
    return replace(quantized, layers=layers, changed={name: partial(loaded.__getitem__, name) for name in loaded})


def calibration_batches(job: Job, at_most: int | None = None) -> list[dict[str, Tensor]]:
    """The calibration texts as token batches; windows of a language model are equally long and need no mask.

    at_most: of the texts or windows.
    """
    items, settings = job.scored.calibration[:at_most], job.recipe.calibration
    if not items:
        raise RecipeError("a method that looks at inputs needs calibration texts, and there are none; give --data")
    if job.opened.streams:
        return [{"input_ids": part} for part in torch.split(torch.tensor(items), settings.batch_size)]
    limit = min(settings.max_tokens, job.model.max_tokens)
    return token_batches(
        job.model.tokenizer, as_texts(items), max_tokens=limit, batch_size=settings.batch_size, seed=job.recipe.seed
    )


def with_tables(job: Job, quantized: Quantized) -> Quantized:
    """The embedding tables as int8 beside the linears, one scale per row, if the recipe asks for it."""
    if job.recipe.embeddings != "int8":
        return quantized
    tables: dict[str, QTensor] = {}
    for name in job.opened.embeddings:
        with named(name):
            weight = weight_of(job.opened.loaded.model.get_submodule(name))
            tables[name] = ROUNDINGS["rtn"](weight, None, QuantSpec(), RANGES["absmax"]).qtensor
    return replace(quantized, tables=tables)


def candidate(job: Job, quantized: Quantized) -> AnyModel:
    """The model with everything that the job's plan says done to it: what the checkpoint will hold. A copy in memory,
    or, of a language model, block by block.
    """
    opened, names, half = job.opened, quantized_names(job.plan), half_names(job.plan)
    if isinstance(job.model, StreamedModel):
        layers = {name: quantized.layers[name].load for name in names}
        in_16_bit = tuple(f"{name}.weight" for name in opened.embeddings)
        return replace(
            job.model, changes=Changes(layers, half, quantized.changed_for(job.plan), in_16_bit, opened.half_dtype)
        )
    hf = copy.deepcopy(opened.loaded.model)
    fold_in(hf, quantized.changed_for(job.plan))
    for name in set(opened.embeddings) - quantized.tables.keys():
        weight = weight_of(hf.get_submodule(name))
        weight.copy_(weight.to(opened.half_dtype))
    chosen = {name: quantized.layers[name].load() for name in names}
    swap_linears(hf, chosen, half, opened.loaded.architecture, tables=quantized.tables)
    set_compute(hf, "auto")  # as `load` does
    return replace(job.model, hf=hf, backend=f"kernels:{dispatch.active_isa()}")


def write_variant(job: Job, quantized: Quantized, directory: Path) -> None:
    """Write the checkpoint of what the job's plan says, without a model card."""
    layers = {name: quantized.layers[name] for name in quantized_names(job.plan)}
    changed = quantized.changed_for(job.plan)
    parts = QuantizedParts(layers, half_names(job.plan), quantized.tables, changed=changed)
    write_checkpoint(job.opened.loaded.directory, directory, parts, job.opened.names, model_card="")


def dequantized(job: Job, quantized: Quantized) -> AnyModel:
    """A float copy of the model whose weights are the numbers that the checkpoint's codes stand for."""
    if isinstance(job.model, StreamedModel):
        return _dequantized_stream(job, job.model, quantized)
    opened, tables = job.opened, quantized.tables
    hf = copy.deepcopy(opened.loaded.model)
    weights = {f"{name}.weight": table.dequantize() for name, table in tables.items()}
    kept = half_names(job.plan) | (set(opened.embeddings) - tables.keys())
    fold_in(hf, quantized.changed_for(job.plan))
    weights |= {f"{name}.weight": weight_of(hf.get_submodule(name)).to(opened.half_dtype) for name in kept}
    for name in quantized_names(job.plan):
        weights[f"{name}.weight"], bias = quantized.layers[name].load().effective()
        if bias is not None:
            weights[f"{name}.bias"] = bias
    with torch.no_grad():
        for name, weight in weights.items():
            hf.get_parameter(name).copy_(weight)
    return replace(job.model, hf=hf)


def _dequantized_stream(job: Job, model: StreamedModel, quantized: Quantized) -> StreamedModel:
    def part(name: str, number: int) -> Tensor:
        tensor = quantized.layers[name].load().effective()[number]
        assert isinstance(tensor, Tensor)
        return tensor

    names = quantized_names(job.plan)
    shifted = {name for name in names if quantized.layers[name].form.shifts_input}
    numbers = quantized.changed_for(job.plan) | {f"{name}.weight": partial(part, name, 0) for name in names}
    numbers |= {f"{name}.bias": partial(part, name, 1) for name in shifted}
    rounded = tuple(f"{name}.weight" for name in (*job.opened.embeddings, *half_names(job.plan)))
    return replace(model, changes=Changes(changed=numbers, in_16_bit=rounded, dtype=job.opened.half_dtype))
