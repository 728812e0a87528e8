"""Makes variants of a model: quantizes its linears, and carries out any plan with them, in memory or on disk."""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from bitwright.calibration.data import token_batches
from bitwright.checkpoints.formats import FORMATS
from bitwright.checkpoints.write import QuantizedParts
from bitwright.errors import RecipeError, named
from bitwright.methods import ROUNDINGS
from bitwright.models.heap import trim_heap
from bitwright.numerics import RANGES
from bitwright.numerics.linear import ready
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec
from bitwright.pipeline.job import Job
from bitwright.pipeline.loss_weights import loss_weights
from bitwright.pipeline.scored import as_texts
from bitwright.plan import Plan, half_dtypes, half_names, int8_attention
from bitwright.progress import Progress
from bitwright.quantizing.layers import Quantized, at_eight_bits, in_parts, needs_inputs, quantize_linears
from bitwright.runtime.changes import Changes
from bitwright.runtime.chat_pairs import in_chat
from bitwright.runtime.generic_model import check_ids_in
from bitwright.runtime.model import Model
from bitwright.search.ladder import Ladders


def quantize_model(job: Job, folder: Path | None, progress: Progress) -> Quantized:
    """Quantize every linear of the job's plan. Finished work is kept in `folder` if the model must run for it.

    Raises:
        NumericsError: NaN or infinity in a weight or in what enters a linear; the message names the linear.
    """
    batches = calibration_batches(job) if any(needs_inputs(row, job.recipe) for row in job.plan) else []
    opened = job.opened
    weights = None
    if batches and folder is not None:
        batches = in_parts(batches)
        weights = loss_weights(job, batches, folder, progress)
    quantized = quantize_linears(opened.loaded, job.plan, job.recipe, batches, folder, progress, weights)
    if opened.streams:
        return quantized
    layers = {
        name: ready(lazy.load()) for name, lazy in progress.track(list(quantized.layers.items()), "rounding weights")
    }
    loaded = {name: load() for name, load in quantized.changed.items()}
    trim_heap()
    return replace(quantized, layers=layers, changed={name: partial(loaded.__getitem__, name) for name in loaded})


def calibration_batches(job: Job, at_most: int | None = None) -> list[dict[str, Tensor]]:
    """The calibration texts as token batches; windows of a language model are equally long and need no mask.

    at_most: of the texts or windows.
    """
    items, settings = job.scored.calibration[:at_most], job.recipe.calibration
    if not items:
        raise RecipeError("a method of the recipe needs calibration texts, but there are none; give some with --data")
    if job.opened.streams:
        batches = [{"input_ids": part} for part in torch.split(torch.tensor(items), settings.batch_size)]
    else:
        limit, chat = min(settings.max_tokens, job.model.max_tokens), job.model.sentences.chat
        batches = token_batches(
            job.model.tokenizer, as_texts(items) if chat is None else in_chat(job.model, items),
            max_tokens=limit, batch_size=settings.batch_size, seed=job.recipe.seed, special=chat is None,
        )  # fmt: skip
    for batch in batches:
        check_ids_in(batch["input_ids"], job.model.vocabulary, "its tokenizer gives the token id")
    return batches


def with_tables(job: Job, quantized: Quantized) -> Quantized:
    """The embedding tables as int8 beside the linears, one scale per row, if the recipe asks for it."""
    if job.recipe.embeddings != "int8":
        return quantized
    tables: dict[str, QTensor] = {}
    for name in job.opened.embeddings:
        with named(name):
            weight = job.opened.loaded.source[f"{name}.weight"].float()
            tables[name] = ROUNDINGS["rtn"](weight, None, QuantSpec(), RANGES["absmax"]).qtensor
    return replace(quantized, tables=tables)


def with_finer(job: Job, quantized: Quantized, climbs: Ladders) -> Quantized:
    """The linears with fewer than 8 bits, and the 8-bit forms that may replace them."""
    rows = [replace(row, scheme=climbs[row.unit][0]) for row in job.plan if row.unit in climbs]
    finer = at_eight_bits(job.opened.loaded, quantized, tuple(rows))
    if not job.opened.streams:  # there is memory for what a search asks for again and again
        finer = {name: lazy._replace(load=cache(lazy.load)) for name, lazy in finer.items()}
    return replace(quantized, finer=finer)


def stored_plan(job: Job, quantized: Quantized) -> Plan:
    """The job's plan with the bytes of input transforms, which are known only after the methods ran: a float32 per
    feature for each scale or shift.
    """
    forms = {name: layer.form for name, layer in quantized.layers_for(job.plan).items()}
    parts = {name: form.scales_input + form.shifts_input for name, form in forms.items()}
    added = [4 * row.shape[1] * parts.get(row.name, 0) for row in job.plan]
    return tuple(replace(row, bytes_after=row.bytes_after + more) for row, more in zip(job.plan, added, strict=True))


def candidate(job: Job, quantized: Quantized) -> Model:
    """The model after the whole plan of the job: what the checkpoint will hold."""
    dtypes = half_dtypes(job.plan)
    changes = Changes(
        layers={name: layer.load for name, layer in quantized.layers_for(job.plan).items()},
        half={name: dtypes[name] for name in half_names(job.plan)},
        tables=quantized.tables,
        changed=quantized.changed_for(job.plan),
        in_16_bit={f"{name}.weight": dtypes[name] for name in job.opened.embeddings if name not in quantized.tables},
    )
    return job.model.changed(changes)


def write_variant(job: Job, quantized: Quantized, directory: Path) -> None:
    """Write the checkpoint of what the job's plan says, without a model card."""
    layers = quantized.layers_for(job.plan)
    changed = quantized.changed_for(job.plan)
    parts = QuantizedParts(
        layers, half_names(job.plan), quantized.tables, changed=changed, int8_attention=int8_attention(job.plan)
    )
    written = FORMATS["compressed-tensors"].write
    assert written is not None
    written(
        job.opened.loaded.directory, directory, parts, job.opened.names, model_card="", extra_files=job.tokenizer.files
    )


def dequantized(job: Job, quantized: Quantized) -> Model:
    """The float model whose weights are the dequantized codes of the checkpoint."""
    tables, layers = quantized.tables, quantized.layers_for(job.plan)

    def part(name: str, number: int) -> Tensor:
        tensor = layers[name].load().effective()[number]
        assert isinstance(tensor, Tensor)
        return tensor

    shifted = {name for name, layer in layers.items() if layer.form.shifts_input}
    numbers = quantized.changed_for(job.plan) | {f"{name}.weight": partial(part, name, 0) for name in layers}
    numbers |= {f"{name}.bias": partial(part, name, 1) for name in shifted}
    numbers |= {f"{name}.weight": table.dequantize for name, table in tables.items()}
    rounded = (*half_names(job.plan), *(name for name in job.opened.embeddings if name not in tables))
    dtypes = half_dtypes(job.plan)
    return job.model.changed(Changes(changed=numbers, in_16_bit={f"{name}.weight": dtypes[name] for name in rounded}))
