"""Prepares polishing: the student, its texts, and what the float model makes of them."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import psutil
import torch
from torch import Tensor, nn

from bitwright.calibration.data import token_batches
from bitwright.calibration.precision import fast_forward
from bitwright.calibration.windows import Window
from bitwright.errors import DataError, InputError, RecipeError, TargetError
from bitwright.files.sentences import Sentences
from bitwright.models.pool_tokens import pool_tokens
from bitwright.pipeline.given import HELD_OUT
from bitwright.pipeline.job import Job
from bitwright.pipeline.preflight import check_targets
from bitwright.pipeline.scored import as_texts
from bitwright.plan import half_dtypes, half_names, quantized_names, transformed_names
from bitwright.progress import Progress, tracking
from bitwright.quantizing.layers import Quantized
from bitwright.recipe import Polish
from bitwright.runtime.chat_pairs import in_chat
from bitwright.runtime.streamed import StreamedModel
from bitwright.targets import ENGINE
from bitwright.training.lessons import Lesson, next_token_loss
from bitwright.training.losses import embedding_loss, logit_loss
from bitwright.training.student import Student, make_student, recompute_blocks
from bitwright.training.teacher import cache_top_logits, teacher_bytes

TEACHER = "polish-teacher.bin"
Batch = Mapping[str, Tensor]

# What is made small for each task.
LOSSES = {
    "text-generation": "KL to float",
    "embedding": "distance to float embeddings",
    "sequence-classification": "KL to float",
}
_TEXTS_AT_ONCE = 16  # of an encoder's batch, whose similarities to each other are compared
_LEAST, _LEAST_BATCHES = 8, 4  # windows of a language model, batches of texts, to train on; beside those held out
_KEPT_PER_OUTPUT = 8  # bytes that a gradient needs per output of a linear: activations, norms and attention in bf16
_LOGIT_BYTES = 14  # per token of the vocabulary: logits in bf16 and float32, their softmax and its gradient


class Prepared(NamedTuple):
    """tokens: that are trained on, and that are held out."""

    student: Student
    lesson: Lesson
    tokens: tuple[int, int]


def check_polish(job: Job) -> None:
    """Refuse what polishing cannot do, before any work.

    Raises:
        RecipeError: a task without a loss for it, or no linear to polish. DataError: too little text; says how much
            more. InputError: too little memory.
    """
    settings, loaded = job.recipe.polish, job.opened.loaded
    if settings is None:
        return
    one_score = loaded.task == "sequence-classification" and loaded.config.num_labels == 1
    if loaded.task not in LOSSES or one_score or job.model.sentences.answers is not None:
        raise RecipeError(
            f"{loaded.name}: polish trains language models, embedding models and classifiers of several classes, and "
            f"this is {'a reranker' if loaded.task in LOSSES else f'a model for {loaded.task}'}; leave polish out"
        )
    if not quantized_names(job.plan):
        raise RecipeError("polish trains scales of quantized linears, and the plan quantizes none; leave polish out")
    if job.opened.streams:
        n, length = len(job.scored.polishing), max(map(len, job.scored.polishing), default=0)
        _require_text(n - _held_out(n), f"windows of {length} tokens", _LEAST)
        needed, free = memory_needed(job, recomputing=True), psutil.virtual_memory().available
        if needed > free:
            raise InputError(
                f"{loaded.name}: polishing with windows of {length} tokens needs about {needed / 1e9:.1f} GB, and "
                f"{free / 1e9:.1f} GB are free. Leave polish out, or set a smaller calibration.max_tokens"
            )
    else:
        _require_text(len(job.scored.polishing), "texts", (_LEAST_BATCHES + 1) * _TEXTS_AT_ONCE)


def prepare(job: Job, quantized: Quantized, settings: Polish, folder: Path, progress: Progress) -> Prepared:
    """The student and what it learns. The float model's outputs are computed here, and kept in `folder`.

    Raises:
        DataError: too little text. CheckpointError: the disk is full.
    """
    return (_language if job.opened.streams else _encoder)(job, quantized, settings, folder, progress)


def memory_needed(job: Job, *, recomputing: bool) -> int:
    """Bytes, roughly, that polishing a language model takes: codes, floats, and what a window's gradients need.

    recomputing: whether activations inside blocks are computed again for the gradient.
    """
    model, names = job.opened.loaded.model, quantized_names(job.plan)
    outputs, blocks = {}, set()
    for site in job.opened.sites:
        outputs[site.name] = model.get_parameter(f"{site.name}.weight").shape[0]
        blocks.add(site.block)
    codes = sum(model.get_parameter(f"{name}.weight").numel() for name in names)
    floats = sum(p.numel() for p in model.parameters()) - codes
    length = max(map(len, job.scored.polishing))
    kept = _KEPT_PER_OUTPUT * sum(outputs.values())
    if recomputing:
        kept = kept // max(1, len(blocks)) + 4 * job.opened.loaded.config.get_text_config().hidden_size * len(blocks)
    return codes + 4 * floats + length * (kept + _LOGIT_BYTES * job.model.vocabulary)


def disk_needed(job: Job) -> int:
    """Bytes of the float model's outputs, which stay in the work directory until the run is done."""
    settings, windows = job.recipe.polish, job.scored.polishing
    if settings is None or not job.opened.streams:
        return 0
    return teacher_bytes(len(windows), max(map(len, windows)), min(settings.top, job.model.vocabulary))


def _language(job: Job, quantized: Quantized, settings: Polish, folder: Path, progress: Progress) -> Prepared:
    windows = cast(tuple[Window, ...], job.scored.polishing)
    float_model = StreamedModel(job.opened.loaded, job.model.max_tokens)
    track = tracking(progress, "float model, text to polish with")
    top = min(settings.top, job.model.vocabulary)
    teacher = cache_top_logits(folder / TEACHER, windows, top, float_model.window_logits, track)
    recomputing = memory_needed(job, recomputing=False) > psutil.virtual_memory().available // 2
    student = _student(job, quantized, recomputing=recomputing)
    n_held = _held_out(len(windows))
    lesson = Lesson(partial(next_token_loss, student.model, windows, teacher), len(windows) - n_held, n_held)
    length = len(windows[0])
    return Prepared(student, lesson, (lesson.items * length, n_held * length))


def _encoder(job: Job, quantized: Quantized, settings: Polish, folder: Path, progress: Progress) -> Prepared:
    batches = _text_batches(job, settings)
    n_held = _held_out(len(batches))
    _require_text(len(batches) - n_held, f"batches of {_TEXTS_AT_ONCE} texts", _LEAST_BATCHES)
    task, sentences = job.opened.loaded.task, job.model.sentences
    whole = job.model.generic.hf
    with torch.no_grad():
        targets = [_output(whole, batch, task, sentences) for batch in progress.track(batches, "float model")]
    del whole
    student = _student(job, quantized)
    distance = embedding_loss if task == "embedding" else logit_loss

    def loss_of(item: int) -> Tensor:
        with fast_forward():
            output = _output(student.model, batches[item], task, sentences)
        return distance(output, targets[item])

    tokens = [int(batch["attention_mask"].sum()) for batch in batches]
    lesson = Lesson(loss_of, len(batches) - n_held, n_held)
    return Prepared(student, lesson, (sum(tokens[: lesson.items]), sum(tokens[lesson.items :])))


def _student(job: Job, quantized: Quantized, *, recomputing: bool = False) -> Student:
    opened, tables = job.opened.loaded.reopen(), quantized.tables
    dtypes = half_dtypes(job.plan)
    rounded = (*half_names(job.plan), *(name for name in job.opened.embeddings if name not in tables))
    changed = quantized.changed_for(job.plan) | {f"{name}.weight": table.dequantize for name, table in tables.items()}
    student = make_student(
        opened,
        quantized.layers_for(job.plan),
        changed,
        {f"{name}.weight": dtypes[name] for name in rounded},
        rounds_groups=_runs_on_engine(job),
    )
    if recomputing:
        recompute_blocks(opened)
    return student


def _runs_on_engine(job: Job) -> bool:
    """Whether the result is for our engine, which rounds the inputs of weights of at most 4 bits to int8."""
    if not {"bitwright", ENGINE}.intersection(job.recipe.targets or ()):
        return False
    loaded = job.opened.loaded
    transformed = transformed_names(job.plan, loaded.model, loaded.architecture, job.opened.sites)
    try:
        check_targets([ENGINE], loaded, job.plan, transformed)
    except TargetError:
        return False
    return True


def _text_batches(job: Job, settings: Polish) -> list[dict[str, Tensor]]:
    """The texts as batches, up to the tokens that are asked for and those that are held out beside them."""
    items, chat = job.scored.polishing, job.model.sentences.chat
    limit = min(job.recipe.calibration.max_tokens, job.model.max_tokens)
    batches = token_batches(
        job.model.tokenizer, as_texts(items) if chat is None else in_chat(job.model, items),
        max_tokens=limit, batch_size=_TEXTS_AT_ONCE, seed=job.recipe.seed, special=chat is None,
    )  # fmt: skip
    taken, wanted = [], settings.tokens + settings.tokens // HELD_OUT
    for batch in batches:
        if wanted <= 0:
            break
        taken.append(batch)
        wanted -= int(batch["attention_mask"].sum())
    return taken


def _output(model: nn.Module, batch: Batch, task: str, sentences: Sentences) -> Tensor:
    """What is compared with the float model's: pooled vectors (B, H), or logits (B, classes)."""
    out: Any = model(**batch)
    if task == "embedding":
        return pool_tokens(out.last_hidden_state, batch["attention_mask"], sentences.pooling)
    logits: Tensor = out.logits
    return logits


def _held_out(n: int) -> int:
    """How many of `n` windows or batches are held out."""
    return -(-n // (HELD_OUT + 1))


def _require_text(found: int, what: str, least: int) -> None:
    if found < least:
        raise DataError(
            f"polish needs at least {least} {what} to train on, beside those that it holds out, and there are "
            f"{max(found, 0)}: {least - max(found, 0)} more are needed. Give more text with --data, set a larger "
            "polish.tokens, or leave polish out"
        )
