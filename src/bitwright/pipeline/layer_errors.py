"""The output error of every linear: known from quantizing if the recipe looked at inputs, else measured here."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bitwright.calibration.data import token_batches
from bitwright.calibration.observers import observe
from bitwright.calibration.stream import stream_lazily
from bitwright.evaluate.output_errors import output_errors
from bitwright.models.load import LoadedModel
from bitwright.models.sites import find_linears
from bitwright.pipeline.job import Job
from bitwright.pipeline.scored import as_texts
from bitwright.progress import Progress
from bitwright.quantizing.layers import Quantized
from bitwright.record import LayerRow

_TOKENS = 8192  # of a language model's tuning windows that errors are measured on: several per input feature
_BATCH = 16  # texts


def layers_by_error(job: Job, quantized: Quantized, progress: Progress) -> list[LayerRow]:
    """The rows of a quantized model's linears, largest relative output error first. If the recipe did not look at
    inputs, the errors are measured now: on tuning texts, in one pass over the float model in the memory of one block.
    """
    account = list(quantized.account)
    if all(row.error is None for row in account):
        progress.say("measuring the output error of every linear")
        errors = errors_by_linear(job.opened.loaded, quantized, _batches(job))
        account = [replace(row, **errors[row.name]) for row in account]
    return sorted(account, key=lambda row: 1.0 if row.error is None else -row.error)


def errors_by_linear(
    loaded: LoadedModel, quantized: Quantized, batches: Sequence[Mapping[str, Tensor]]
) -> dict[str, dict[str, Any]]:
    """Linear -> {n_tokens, error, sqnr_db, cosine} as in `LayerRow`: how far rounding the weight moves the linear's own
    outputs.

    loaded: where the model lies; its own modules are neither used nor changed. Of an expert that no token reached, the
    error is that of its weight.
    """
    opened = loaded.reopen()
    sites = [site for site in find_linears(opened.model, opened.architecture) if site.name in quantized.layers]
    errors: dict[str, dict[str, Any]] = {}
    for stage in stream_lazily(opened, sites, batches, fast=True):
        seen = stage.observe(stage.sites, partial(observe, gram=True, histogram=False, fast=stage.fast))
        for site in stage.sites:
            weight, stats = opened.model.get_parameter(f"{site.name}.weight").detach(), seen.get(site.name)
            rounded = quantized.layers[site.name].load().weight.dequantize()
            n_tokens = 0 if stats is None else stats.n_tokens
            errors[site.name] = {"n_tokens": n_tokens, **output_errors(weight, rounded, stats)}
        if len(errors) == len(sites):
            break  # what this stage puts out is nobody's input
    return errors


def _batches(job: Job) -> list[dict[str, Tensor]]:
    """Tuning texts or windows as token batches."""
    if not job.opened.streams:
        texts = as_texts(job.scored.probe)
        return token_batches(job.model.tokenizer, texts, max_tokens=job.model.max_tokens, batch_size=_BATCH)
    windows = job.scored.tuning.texts
    return [{"input_ids": torch.tensor([window])} for window in windows[: max(1, _TOKENS // len(windows[0]))]]
