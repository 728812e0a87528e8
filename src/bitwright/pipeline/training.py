"""Trains the linears that were quantized, with the float model as teacher; what comes out is `Quantized` as before."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.kernels.linear import cpu_multiplies_bf16
from bitwright.models.load import LoadedModel, load_model, materialise
from bitwright.numerics.linear import QuantizedLinear, ready
from bitwright.pipeline.job import Job
from bitwright.pipeline.request import TrainingAsked
from bitwright.pipeline.training_outputs import check_trainable, outputs
from bitwright.pipeline.training_texts import TrainingTexts, training_texts
from bitwright.plan import quantized_names
from bitwright.progress import Progress
from bitwright.quantizing.layers import Quantized
from bitwright.record import LookRow, Training
from bitwright.runtime.generic_model import vocabulary_of
from bitwright.runtime.load import load
from bitwright.search.journal import Journal
from bitwright.training.losses import embedding_loss, label_loss, logit_loss, pair_loss
from bitwright.training.prepare import convert, fake_linears, prepare
from bitwright.training.trainer import Data, Settings, Trained, steps_in, train

_KEPT_APART, _MOST_KEPT_APART = 0.1, 256  # of the texts
_MOST_WINDOWS_APART = 32  # of a language model, each of which has as many tokens as eight texts
_STEPS_PER_LOOK = 10  # at least: trying what is kept apart takes as long as a few steps
_LABELS = 0.5  # of the loss, where there are labels
_CACHED = ("embedding", "sequence-classification")  # tasks whose teacher is asked once for each text
_BATCH = {"text-generation": 4}
_RATE, _RATES = 0.01, {"text-generation": 0.002}  # of the weights, in steps of their grids


Target = Callable[[Sequence[int]], Tensor]


@dataclass(frozen=True, slots=True)
class Lesson:
    """A training that was checked and can begin. open_teacher: gives its outputs for the texts with these numbers."""

    asked: TrainingAsked
    texts: TrainingTexts
    open_teacher: Callable[[], Target]

    def digest(self) -> str:
        """Of all that the training depends on, beside what the run does."""
        labels = None if self.texts.labels is None else self.texts.labels.tolist()
        of_teacher = None if self.asked.teacher is None else str(Path(self.asked.teacher).resolve())
        parts = [asdict(self.asked), of_teacher, self.texts.tokens.ids, labels]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def open_lesson(job: Job, asked: TrainingAsked) -> Lesson:
    """Everything that a training needs, checked before any work is done.

    Raises:
        InputError: a teacher or labels that do not fit the model, a model or a plan that cannot be trained, or too
            little text.
    """
    loaded = job.opened.loaded
    check_trainable(loaded.sentences, loaded.name)
    if not quantized_names(job.plan):
        raise InputError("this recipe quantizes no linear, so there is nothing to train; name a scheme below 16 bits")
    if asked.steps is None and asked.minutes is None:
        raise InputError("say how long to train: minutes or steps")
    texts = training_texts(job, asked, _batch(job))
    return Lesson(asked, texts, _teacher(job, asked, texts))


def train_linears(
    job: Job, quantized: Quantized, lesson: Lesson, journal: Journal, folder: Path, progress: Progress
) -> tuple[Quantized, Training]:
    """Train the linears of `quantized` from what they are. A run that was killed goes on from what lies in `folder`.

    Raises:
        InputError: a linear that cannot be trained. CheckpointError: as `trainer.train`.
    """
    begun = time.perf_counter()
    loaded = _begun(job, quantized)
    model = loaded.model
    starts = {name: layer.load().torch() for name, layer in quantized.layers_for(job.plan).items()}
    prepare(model, job.plan, start=starts)
    for table in job.opened.embeddings:  # words that no text has would stay behind, and the files hold 16 bits
        model.get_submodule(table).requires_grad_(False)
    data = _data(job, model, lesson)
    batch = min(_batch(job), len(data.train))
    rate = lesson.asked.rate or _RATES.get(job.model.task, _RATE)
    settings = Settings(
        steps=1, batch=batch, rate=rate, bf16=cpu_multiplies_bf16(), short=not job.opened.streams, seed=job.recipe.seed
    )
    steps = _steps(model, data, settings, lesson.asked, journal)
    settings = replace(settings, steps=steps, looks=min(settings.looks, max(1, steps // _STEPS_PER_LOOK)))
    progress.say(f"training on {len(data.train)} texts for {settings.steps} steps")
    trained = train(model, data, settings, folder, progress)
    if trained.stopped:
        progress.say(f"the training stopped: {trained.stopped}; the best state before it is kept")
    if not trained.best:
        progress.say("no step of the training made the texts that it kept apart better; the linears stay as they were")
    made = _made(job, quantized, model)
    return made, _facts(job, lesson, settings, trained, round(time.perf_counter() - begun, 1))


def _batch(job: Job) -> int:
    """Texts of a step."""
    return _BATCH.get(job.model.task, 32)


def _begun(job: Job, quantized: Quantized) -> LoadedModel:
    """The model whole in memory, in float, as folding left it."""
    loaded = job.opened.loaded.reopen()
    materialise(loaded, "")
    with torch.no_grad():
        for name, load in quantized.changed.items():
            loaded.model.get_parameter(name).copy_(load())
    loaded.model.eval()  # no dropout: the teacher has none either
    return loaded


def _data(job: Job, model: nn.Module, lesson: Lesson) -> Data:
    """Items, split into those that are trained on and those that are tried only, and the loss of some of them."""
    texts, task, sentences = lesson.texts, job.model.task, job.opened.loaded.sentences
    n = len(texts.items)
    order = np.random.default_rng(job.recipe.seed).permutation(n).tolist()
    most = _MOST_WINDOWS_APART if job.opened.streams else _MOST_KEPT_APART
    apart = min(most, max(1, round(_KEPT_APART * n)))
    size, teacher = _batch(job), lesson.open_teacher()
    by_length = sorted(order[:apart], key=lambda i: texts.lengths[i]) if n < 4096 else order[:apart]

    def loss(chosen: Sequence[int]) -> Tensor:
        parts = [part for i in chosen for part in texts.items[i]]
        student = outputs(model, texts.tokens.of(parts), task, sentences)
        distance = embedding_loss if task == "embedding" else logit_loss
        found = distance(student, teacher(parts))
        if texts.labels is None:
            return found
        labels = torch.from_numpy(texts.labels[list(chosen)])
        labelled = (
            pair_loss(student[::2], student[1::2], labels) if task == "embedding" else label_loss(student, labels)
        )
        return (1 - _LABELS) * found + _LABELS * labelled

    batches = [by_length[start : start + size] for start in range(0, apart, size)]
    return Data(texts.lengths, loss, order[apart:], batches)


def _steps(model: nn.Module, data: Data, settings: Settings, asked: TrainingAsked, journal: Journal) -> int:
    """The number of steps. What fits into the minutes is found once: a run that goes on takes as many."""
    if asked.steps is not None:
        return asked.steps
    assert asked.minutes is not None
    return int(journal.remember("training steps", partial(steps_in, model, data, settings, asked.minutes)))


def _made(job: Job, quantized: Quantized, model: nn.Module) -> Quantized:
    """The quantized linears and every float parameter of a trained model, as quantizing leaves them."""
    half = {row.name: getattr(torch, row.half) for row in job.plan if row.half}
    latent = {name: (fake.weight.detach().clone(), fake.bias) for name, fake in fake_linears(model)}
    layers = {name: linear.torch() for name, linear in convert(model).items()}
    changed: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        owner, _, part = name.rpartition(".")
        if not parameter.requires_grad or owner in layers:
            continue
        value = parameter.detach()
        changed[name] = (
            value.to(half[owner]) if part == "weight" and owner in half and value.ndim == 2 else value.clone()
        )
    for name, (weight_NK, _) in latent.items():  # for a linear that falls back to more bits
        changed |= _plain(name, weight_NK, layers[name], half.get(name))
    biases = {name: layer.bias_N for name, layer in layers.items() if layer.bias_N is not None}
    kept = {name: load for name, load in quantized.changed.items() if name not in changed}
    return replace(
        quantized,
        layers={name: ready(layer) for name, layer in layers.items()},
        changed=kept | {name: partial(changed.__getitem__, name) for name in changed},
        biases={name: partial(biases.__getitem__, name) for name in biases},
    )


def _plain(name: str, weight_NK: Tensor, layer: QuantizedLinear, half: torch.dtype | None) -> dict[str, Tensor]:
    """Weight and bias of a trained linear before its rounding, for its input as it is."""
    bias_N = layer.bias_N
    if layer.transform is not None:
        weight_NK, bias_N = layer.transform.effective(weight_NK, bias_N)
    found = {f"{name}.weight": weight_NK if half is None else weight_NK.to(half)}
    return found if bias_N is None else found | {f"{name}.bias": bias_N}


def _teacher(job: Job, asked: TrainingAsked, texts: TrainingTexts) -> Callable[[], Target]:
    """The teacher's outputs for texts by number. Where they are small it is asked once for all texts, when training
    begins: not in the first step, whose settings are others in a run that goes on. Else it is asked in each step.

    Raises:
        InputError: a teacher whose outputs or vocabulary are others than the model's.
    """
    name, task, loaded = asked.teacher, job.model.task, job.opened.loaded
    if task in _CACHED:
        teacher = job.model if name is None else load(name)
        if teacher.task != task:
            raise InputError(f"--teacher {name}: its task is {teacher.task}, but that of the model is {task}")
        if teacher.width != job.model.width:
            what = "values in an embedding" if task == "embedding" else "classes"
            raise InputError(
                f"--teacher {name}: it has {teacher.width} {what}, but the model has {job.model.width}; take a teacher "
                "with as many"
            )

        def ask() -> Target:
            if name is None:  # the same tokens as the student, cut where they are
                found = teacher.encode(texts.tokens.ids, types=texts.tokens.types)
            else:
                found = teacher.encode(cast(Any, list(texts.texts)))
            rows = torch.from_numpy(np.array(found))
            return lambda chosen: rows[list(chosen)]

        return ask
    other = loaded.reopen() if name is None else load_model(name)
    if name is None:
        materialise(other, "")
    if vocabulary_of(other.model.config) != vocabulary_of(loaded.model.config) or (
        name is not None and other.tokenizer.get_vocab() != loaded.tokenizer.get_vocab()
    ):
        raise InputError(
            f"--teacher {name}: its vocabulary ({vocabulary_of(other.model.config)} tokens) is another than the "
            f"model's "
            f"({vocabulary_of(loaded.model.config)}); take a teacher with the same one"
        )
    other.model.eval().requires_grad_(False)

    def asked_now(chosen: Sequence[int]) -> Tensor:
        with torch.no_grad():
            return outputs(other.model, texts.tokens.of(list(chosen)), task, loaded.sentences)

    return lambda: asked_now


def _facts(job: Job, lesson: Lesson, settings: Settings, trained: Trained, seconds: float) -> Training:
    of_task = {
        "embedding": "distance of the embeddings and of their similarities",
        "text-generation": "KL divergence of the next token",
    }
    objective = of_task.get(job.model.task, "KL divergence of the outputs")
    return Training(
        teacher=lesson.asked.teacher or "the float model",
        texts=lesson.texts.words,
        objective=f"{objective} from the teacher's" + ("" if lesson.texts.labels is None else ", and the labels"),
        n_texts=len(lesson.texts.items),
        n_tokens=sum(lesson.texts.lengths),
        curve=tuple(LookRow(**look._asdict()) for look in trained.curve),
        best=trained.best,
        stopped=trained.stopped,
        seconds=seconds,
        **{key: value for key, value in asdict(settings).items() if key in ("steps", "batch", "rate", "bf16")},
    )
