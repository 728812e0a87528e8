"""Fisher sensitivity of a quantized model's units. It needs gradients, so the whole model must be in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional

from bitwright.errors import InputError
from bitwright.evaluate.kinds import Items
from bitwright.models.pool_tokens import pool_tokens
from bitwright.pipeline.job import Job
from bitwright.pipeline.swapped import folded, quantized_modules
from bitwright.plan import quantized_names
from bitwright.progress import Progress
from bitwright.quantizing.layers import Quantized
from bitwright.runtime.encoding import tokens_of
from bitwright.runtime.generic_model import GenericModel
from bitwright.runtime.items import Tokens
from bitwright.search.fisher import Draw, Score, fisher_scores, log_likelihood, memory_needed, projection

_TEXTS, _WINDOWS = 64, 8  # that gradients are taken of: of encoders, of language models


def require_memory(job: Job, tokens: int | None = None) -> None:
    """Refuse a language model whose gradients do not fit.

    tokens: of the longest window; by default of those that Fisher scores are computed on.

    Raises:
        InputError: says how much is needed, and how much there is.
    """
    if not job.opened.streams:  # encoders fit, and their texts are short
        return
    tokens = tokens or max(map(len, _items(job)))
    needed = memory_needed(job.opened.loaded.model, quantized_names(job.plan), tokens)
    free = psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"{job.opened.loaded.name}: Fisher sensitivity needs about {needed / 1e9:.1f} GB for gradients of the "
            f"whole model with windows of {tokens} tokens, but {free / 1e9:.1f} GB are free. Leave it out, or set a "
            "smaller calibration.max_tokens in the recipe"
        )


def fisher_rows(
    job: Job, quantized: Quantized, progress: Progress, model: GenericModel | None = None
) -> list[dict[str, Any]]:
    """A row {name, block, role, fisher, diagonal} per unit, largest first.

    model: the float model after folding, where it is in memory already.
    """
    model = model or folded(job.model, quantized)
    sites = {site.unit: site for site in job.opened.sites if site.name in quantized.layers}
    units = {unit: [site.name for site in job.opened.sites if site.unit == unit] for unit in sites}
    items = _items(job)
    progress.say(f"computing gradients of {len(items)} texts")
    scores = fisher_of(model, quantized_modules(quantized), units, items)
    rows = [
        {"name": unit, "block": sites[unit].block, "role": sites[unit].role} | asdict(score)
        for unit, score in scores.items()
    ]
    return sorted(rows, key=lambda row: -row["fisher"])


def fisher_of(
    model: GenericModel, modules: Mapping[str, nn.Module], units: Mapping[str, Sequence[str]], items: Items
) -> dict[str, Score]:
    """The Fisher score of each unit, on texts or windows of token ids.

    Args:
        modules: of each linear of the units, the quantized module that would stand in its place in `model.hf`.
    """
    tokens = tokens_of(model, items)
    texts = [partial(_output, model, tokens.of([i])) for i in range(len(tokens.ids))]
    return fisher_scores(model.hf, units, modules, texts, scalar_for(model))


def scalar_for(model: GenericModel) -> Draw:
    """How a scalar is drawn from an output of this model."""
    config: Any = model.hf.config
    several = getattr(config, "problem_type", None) == "multi_label_classification" or config.num_labels == 1
    is_vector = model.task == "embedding" or (model.task == "sequence-classification" and several)
    return projection if is_vector else log_likelihood


def _items(job: Job) -> Items:
    return job.scored.tuning.texts[:_WINDOWS] if job.opened.streams else job.scored.probe[:_TEXTS]


def _output(model: GenericModel, tokens: Tokens) -> Tensor:
    """The outputs that are differentiated for one item: an embedding of length 1, or logits with the classes in the
    last dimension.
    """
    ids_BT = torch.tensor(tokens.ids)
    types = {} if tokens.types is None else {"token_type_ids": torch.tensor(tokens.types)}
    return output_of(model, {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), **types})


def output_of(model: GenericModel, batch: Mapping[str, Tensor]) -> Tensor:
    """The outputs that are differentiated for a batch of one text, as the model's forward takes it."""
    if model.task == "text-generation":
        logits: Tensor = model.hf(input_ids=batch["input_ids"], use_cache=False).logits
        return logits[0, :-1]
    mask_BT = batch["attention_mask"]
    out = model.hf(**batch)
    if (answers := model.sentences.answers) is not None:
        score: Tensor = answers.score(out.logits[:, -1])
        return score
    if model.task == "embedding":
        return functional.normalize(pool_tokens(out.last_hidden_state, mask_BT, model.sentences.pooling), dim=-1)
    return torch.cat((out.start_logits, out.end_logits)) if model.task == "question-answering" else out.logits
