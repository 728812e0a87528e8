"""How much each calibration token counts in a linear's outputs: squared gradients of the float model's loss."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.calibration.hooks import hooked
from bitwright.calibration.precision import fast_forward
from bitwright.errors import InputError
from bitwright.methods import METHODS
from bitwright.methods.loss_weighted import squared_gradients
from bitwright.models.heap import trim_heap
from bitwright.pipeline.gradients import output_of, require_memory, scalar_for
from bitwright.pipeline.job import Job
from bitwright.plan import quantized_names
from bitwright.progress import Progress
from bitwright.quantizing.shards import KeptTensors, keep_tensors
from bitwright.quantizing.work import LossWeights
from bitwright.runtime.generic_model import GenericModel


def without_weights_that_do_not_fit(job: Job) -> Job:
    """The job, unweighted where the gradients of the whole model do not fit into memory; its warnings say so."""
    options = job.recipe.options
    if not weighted_names(job):
        return job
    try:
        require_memory(job, len(job.scored.calibration[0]) if job.opened.streams else 0)
    except InputError as error:
        job.warnings.append(f"errors are not weighted by the loss (options.loss_groups): {error}")
        unweighted = options.model_copy(update={"loss_groups": 0})
        return job.with_recipe(job.recipe.model_copy(update={"options": unweighted}))
    return job


def loss_weights(
    job: Job, batches: Sequence[Mapping[str, Tensor]], folder: Path, progress: Progress
) -> LossWeights | None:
    """The weights of each batch: float32 (B, T, groups) by linear, 0 for padding; None if the recipe asks for none.

    They are the mean squares of gradients of log p(y), with y drawn from the model, or of a random projection of its
    output: the diagonal of Fisher information (`search/fisher.py`). A file in `folder` keeps each batch.
    """
    names = weighted_names(job)
    if not names:
        return None
    missing = [index for index in range(len(batches)) if not _path(folder, index).is_file()]
    if missing:
        model, groups = job.model.generic, job.recipe.options.loss_groups
        for index in progress.track(missing, "gradients of the loss"):
            generator = torch.Generator().manual_seed((job.recipe.seed << 32) + index)
            keep_tensors(_path(folder, index), _of_batch(model, names, batches[index], groups, generator), None)
        del model
        trim_heap()
    return partial(_read, folder)


def _of_batch(
    model: GenericModel, names: Sequence[str], batch: Mapping[str, Tensor], groups: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """The weights (B, T, groups) by linear, one text after another."""
    found: dict[str, list[Tensor]] = {}
    for row in range(len(batch["input_ids"])):
        one = {key: value[row : row + 1] for key, value in batch.items()}
        mask_T1 = one["attention_mask"][0, :, None] if "attention_mask" in one else 1.0
        for name, gradient_TN in _gradients(model, names, one, generator).items():
            found.setdefault(name, []).append(squared_gradients(gradient_TN, groups) * mask_T1)
    return {name: torch.stack(rows) for name, rows in found.items()}


def _gradients(
    model: GenericModel, names: Sequence[str], batch: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """Of one text and one scalar drawn from its output, with respect to the outputs (T, N) of linears that see all its
    tokens."""
    outputs: dict[str, Tensor] = {}

    def note(_: nn.Module, args: tuple[Tensor, ...], output: Tensor, *, name: str) -> Tensor:
        if not output.requires_grad:  # nothing before it is differentiated: the gradient ends here
            output = output.detach().requires_grad_()
        outputs[name] = output
        return output

    hooks = {name: partial(note, name=name) for name in names}
    with torch.enable_grad(), hooked(model.hf, after=hooks):
        with fast_forward():
            output = output_of(model, batch)
        scalar = scalar_for(model)(output, generator)
    found: Any = torch.autograd.grad(scalar, list(outputs.values()), materialize_grads=True)
    pairs = zip(outputs, found, strict=True)
    return {name: gradient[0] for name, gradient in pairs if gradient.ndim == 3}


def weighted_names(job: Job) -> list[str]:
    """The linears whose errors are weighted by the loss."""
    if not job.recipe.options.loss_groups:
        return []
    chosen = {row.name for row in job.plan if row.name in quantized_names(job.plan) and row.method in METHODS}
    gptq = {row.name for row in job.plan if row.name in chosen and METHODS[row.method].rounding == "gptq"}
    return [site.name for site in job.opened.sites if site.name in gptq and site.is_whole]


def _path(folder: Path, index: int) -> Path:
    return folder / f"loss-weights-{index:05}.safetensors"


def _read(folder: Path, index: int) -> dict[str, Tensor]:
    kept = KeptTensors.open(_path(folder, index))
    return {name: kept.tensor(name) for name in kept.names()}
