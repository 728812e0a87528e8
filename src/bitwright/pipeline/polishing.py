"""Polishes a quantized model: trains its scales and norms with the float model as teacher, and keeps what is better."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from bitwright.models.heap import trim_heap
from bitwright.numerics.linear import PendingLinear, QuantizedLinear, StaticGrid
from bitwright.pipeline.job import Job
from bitwright.pipeline.polish_lessons import LOSSES, prepare
from bitwright.progress import Progress
from bitwright.quantizing.layers import Quantized
from bitwright.quantizing.shards import KeptTensors, keep_tensors
from bitwright.record import Polished
from bitwright.training.polish import Schedule, train
from bitwright.training.student import Student

STATE, RESULT = "polish-state.safetensors", "polish-result.safetensors"
_RATE = 2e-3
_AT_ONCE, _LEAST_STEPS = 4, 16  # windows, or batches of texts, of a step; in an epoch of few there are so many steps


def polish_model(job: Job, quantized: Quantized, folder: Path, progress: Progress) -> tuple[Quantized, Polished]:
    """Train the floats beside the codes of `quantized`, and say how. Finished work is kept in `folder`; the trained
    floats are read from there.

    Raises:
        As `polish_lessons.prepare` and `training.polish.train`.
    """
    settings = job.recipe.polish
    assert settings is not None
    begun = time.perf_counter()
    progress.say("polishing: the scales and norms are trained")
    student, lesson, tokens = prepare(job, quantized, settings, folder, progress)
    task = job.opened.loaded.task
    rate = settings.learning_rate or _RATE
    batch = max(1, min(_AT_ONCE, lesson.items // _LEAST_STEPS))
    schedule = Schedule(lesson.items, batch, settings.epochs, rate, job.recipe.seed)
    trained = train(
        student.parameters, student.units, lesson.backward, lesson.held_out_loss, schedule, folder / STATE, progress
    )
    if trained.best:
        quantized = _with_floats(quantized, student, folder / RESULT)
    del student, lesson
    trim_heap()
    told = Polished(
        LOSSES[task], *tokens, settings.epochs, rate, trained.points, trained.best,
        round(time.perf_counter() - begun, 3), trained.stopped or None, kept=trained.best > 0,
    )  # fmt: skip
    return quantized, told


def without_polish(job: Job) -> Job:
    """The job whose recipe does not polish."""
    return job.with_recipe(job.recipe.model_copy(update={"polish": None}))


def _with_floats(quantized: Quantized, student: Student, path: Path) -> Quantized:
    """The same codes beside what was trained, which is written to `path` and read from there linear by linear."""
    tensors: dict[str, Tensor] = {f"norm/{name}": value.detach().clone() for name, value in student.norms.items()}
    statics: dict[str, tuple[float, int]] = {}
    for name, module in student.linears.items():
        linear = module.trained()
        tensors[f"scale/{name}"] = linear.weight.scale_NG
        if linear.weight.minimum_NG is not None:
            tensors[f"minimum/{name}"] = linear.weight.minimum_NG
        if linear.bias_N is not None:
            tensors[f"bias/{name}"] = linear.bias_N
        if linear.static is not None:
            statics[name] = linear.static.scale, linear.static.zero_point
    keep_tensors(path, tensors, statics)
    kept = KeptTensors.open(path)

    def layer(pending: PendingLinear, name: str) -> QuantizedLinear:
        linear = pending.load().torch()
        parts = {
            part: kept.tensor(key) for part in ("scale", "minimum", "bias") if (key := f"{part}/{name}") in kept.tensors
        }
        weight = replace(linear.weight, scale_NG=parts["scale"], minimum_NG=parts.get("minimum"))
        static = StaticGrid(*statics[name]) if name in statics else linear.static
        return replace(linear, weight=weight, bias_N=parts.get("bias"), static=static)

    layers = {
        name: pending._replace(load=partial(layer, pending, name)) if name in student.linears else pending
        for name, pending in quantized.layers.items()
    }
    changed: dict[str, Callable[[], Tensor]] = {name: partial(kept.tensor, f"norm/{name}") for name in student.norms}
    biases = {name: partial(kept.tensor, f"bias/{name}") for name in student.linears if f"bias/{name}" in tensors}
    return replace(
        quantized, layers=layers, changed={**quantized.changed, **changed}, biases={**quantized.biases, **biases}
    )
