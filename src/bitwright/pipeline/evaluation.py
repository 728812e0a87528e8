"""Scores one model on one metric: a float or a quantized model, alone or against its float original."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitwright.calibration.data import mix
from bitwright.errors import InputError, LibraryError
from bitwright.evaluate import (
    Task,
    agreement_task,
    labelled_task,
    language_task,
    load_custom,
    loss_interval,
    metric_found,
)
from bitwright.evaluate.kinds import OUTPUTS, Outputs, Window, pairs_in, windows_in
from bitwright.evaluate.language import WINDOW, WINDOWS
from bitwright.evaluate.logits import compare_windows, token_outputs
from bitwright.families.tasks import TaskName
from bitwright.files.opening import open_path
from bitwright.files.sentences import of_cross_encoder
from bitwright.files.task import pair_evidence
from bitwright.pipeline.builtin import agreement_of, builtin_texts_of, per_kind
from bitwright.pipeline.given import BUILTIN_DATA, text_sources
from bitwright.pipeline.request import Texts, make_texts
from bitwright.progress import Progress, Quiet, tracking
from bitwright.runtime.library import Library
from bitwright.runtime.load import load
from bitwright.runtime.model import Model


@dataclass(frozen=True, slots=True)
class _Measured:
    """The outputs of the model and of the reference, if there is one. `extra`: companion values that the outputs do not
    show.
    """

    outputs: Outputs
    reference_outputs: Outputs | None
    extra: dict[str, float]


def evaluate(
    model: str | Path,
    *,
    reference: str | Path | None = None,
    data: str | Sequence[str] = (),
    evaluation: str | Path | None = None,
    kind: str | None = None,
    metric: str | None = None,
    samples: int = 1000,
    window: int | None = None,
    windows: int | None = None,
    bos: bool = False,
    seed: int = 0,
    task: TaskName | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a model, and its loss against a reference if one is given.

    A language model is scored by its perplexity on the first windows of a text, `evaluation` or `data`; an encoder by
    the labels in `evaluation`, by the user's `metric`, or without either by its agreement with the reference.

    Args:
        model: a directory, float or quantized, or a hub name. reference: the float model to compare it with.
        data, evaluation, kind, metric, samples: as `quantize` takes them.
        window, windows, bos: for language models: tokens per window (1024, or what the model can take), windows (40),
            and whether each begins with BOS.
        task: what both models are for, where their files do not tell or contradict each other.

    Returns:
        {"model", "reference", "task", "metric": as in the Record's `evaluation`, "protocol": what was scored, in words,
        "n_units", "score", "reference_score", "loss", "loss_lower", "loss_upper", "confidence", "kinds", "companions",
        "seconds"}; without a reference those that compare are None, and there are no companions. kinds: of each kind of
        built-in text its loss, largest first; loss_upper is then the bound for a kind that was not tried.

    Raises:
        InputError: no labels and no reference, options that do not fit the model, models that do not fit one another.
        BitwrightError: a model or data that cannot be used.
    """
    begun = time.perf_counter()
    progress, texts = progress or Quiet(), make_texts(data, evaluation, kind, metric, samples)
    opened = partial(_open, task=task, trust_remote_code=trust_remote_code, progress=progress)
    subject = opened(model)
    if OUTPUTS[subject.task] == "tokens" and texts.metric is None:
        scored = _language_task(subject, texts, window, windows, bos)
        measured = _measure_language(subject, scored, reference, opened, progress)
        protocol = getattr(scored.kind, "protocol", "")
    else:
        if window or windows or bos:
            raise InputError(
                f"{model}: --window, --windows and --bos are for language models, and this model's task is "
                f"{subject.task}; leave them out"
            )
        scored, protocol = _text_task(subject, texts, seed, has_reference=reference is not None)
        measured = _measure(subject, scored, reference, opened, progress)
    return {
        "model": str(model),
        "reference": None if reference is None else str(reference),
        "task": subject.task,
        "metric": {
            "name": _metric(scored, measured), "kind": scored.kind.name, "task": scored.name, "unit": scored.kind.unit,
            "label_free": scored.kind.label_free, "higher_is_better": scored.kind.higher_is_better,
        },
        "protocol": protocol,
        **_scores(scored, measured, seed),
        "seconds": round(time.perf_counter() - begun, 3),
    }  # fmt: skip


def _metric(task: Task, measured: _Measured) -> str:
    """The part of these outputs that was scored."""
    if measured.reference_outputs is None:
        return task.kind.metric
    return metric_found(task.kind, measured.reference_outputs, measured.outputs)[0]


def _open(name: str | Path, *, task: TaskName | None, trust_remote_code: bool, progress: Progress) -> Model:
    progress.say(f"loading {name}")
    model = load(name, task=task, trust_remote_code=trust_remote_code)
    if model.tokenizer is None:
        raise InputError(
            f"{name}: scoring texts needs a tokenizer, and the model's files do not give one; add its tokenizer files"
        )
    return model


def _language_task(model: Model, texts: Texts, window: int | None, windows: int | None, bos: bool) -> Task:
    """Perplexity on the user's text, or on built-in prose."""
    given = [source for source in (texts.evaluation, *texts.data) if source is not None]
    if texts.kind is not None:
        raise InputError(
            f"--kind {texts.kind} is not for language models, which are scored by perplexity on plain text; leave "
            "it out"
        )
    if len(given) > 1:
        raise InputError(
            f"perplexity is measured on one text, but {len(given)} were given: {', '.join(given)}; give one of them"
        )
    if window is not None and window > model.max_tokens:
        raise InputError(
            f"windows of {window} tokens are too long: {model.path.name} takes at most {model.max_tokens}; ask for "
            "shorter ones"
        )
    length = min(WINDOW, model.max_tokens) if window is None else window
    source = given[0] if given else BUILTIN_DATA[0]
    return language_task(
        source, model.tokenizer, window=length, windows=WINDOWS if windows is None else windows, bos=bos
    )


def _text_task(model: Model, texts: Texts, seed: int, *, has_reference: bool) -> tuple[Task, str]:
    """The task, and in words what it scores: labels, the user's metric, or agreement with the reference."""
    if texts.metric is not None:
        if texts.evaluation is not None:
            raise InputError("--metric and --eval both choose what is scored; give only one of them")
        return load_custom(texts.metric), f"what {texts.metric} returns"
    config: Any = model.hf.config
    evidence = pair_evidence(open_path(model.path), model.task)
    if texts.evaluation is not None:
        task = labelled_task(model.task, config, texts.evaluation, texts.kind, evidence)
        return task, f"{Path(texts.evaluation).name}, all {task.n_units} {task.kind.unit}"
    if not has_reference:
        raise InputError(
            "there are no labels, so Bitwright can only compare the model with another. Give labelled data with "
            "--eval, or the float model with --reference"
        )
    if not texts.data:
        return _builtin_task(model, config, texts.samples, seed)
    sources = text_sources(texts.data, model.task, evidence)
    task = agreement_task(model.task, config, mix(sources, texts.samples, seed=seed))
    drawn = " and ".join(texts.data)
    unlike = (
        (f"; these are single texts, but this model reads pairs ({evidence}): give pairs with --data FILE#FIRST,SECOND")
        if evidence
        else ""
    )
    unlike = "" if pairs_in(task.texts) else unlike
    return task, f"{len(task.texts)} {task.kind.unit} of {drawn}, drawn with seed {seed}, without labels{unlike}"


def _builtin_task(model: Model, config: Any, samples: int, seed: int) -> tuple[Task, str]:
    """Agreement with float on built-in texts of every kind that the model can read."""
    built = builtin_texts_of(model, open_path(model.path), config, seed)
    task = agreement_of(model, config, built, list(built.kinds), per_kind(samples, len(built.kinds)))
    languages = ", ".join(built.languages)
    said = f"{len(task.texts)} built-in {task.kind.unit} of {len(built.kinds)} kinds ({languages}), without labels"
    return task, said


def _measure(
    model: Model, task: Task, reference: str | Path | None, opened: Callable[[str | Path], Model], progress: Progress
) -> _Measured:
    """The outputs for texts, first of one model, then of the other."""

    def outputs(of: Model, name: str) -> Outputs:
        return task.run(partial(of.encode, track=tracking(progress, f"texts, {name}")))

    found = outputs(model, "the model")
    if reference is None:
        return _Measured(found, None, {})
    original = opened(reference)
    _check_alike(model, original)
    return _Measured(found, _of_library(task, original, progress) or outputs(original, "reference"), {})


def _of_library(task: Task, reference: Model, progress: Progress) -> Outputs | None:
    """The outputs of the user's own library for a float reference, as in a run's verdict; None if it is not asked."""
    if not reference.backend.startswith("torch"):  # it is quantized itself
        return None
    progress.say("running the float model in the user's library")
    threads, limit = torch.get_num_threads(), reference.max_tokens
    try:
        with Library(
            reference.path, reference.task, threads=threads, limit=limit,
            cross_encoder=of_cross_encoder(reference.sentences),
        ) as library:  # fmt: skip
            return list(task.run(library.encode))
    except LibraryError as error:
        progress.say(f"the user's library cannot run it ({error}), so Bitwright runs it")
        return None


def _measure_language(
    model: Model, task: Task, reference: str | Path | None, opened: Callable[[str | Path], Model], progress: Progress
) -> _Measured:
    """The outputs for windows of tokens. With a reference both models run side by side, for the KL of their logits."""
    windows = windows_in(task.texts)
    if reference is None:
        track = tracking(progress, "windows")
        return _Measured([token_outputs(_logits(model, ids), ids) for ids in track(windows)], None, {})
    original = opened(reference)
    _check_alike(model, original)
    compared = compare_windows(
        windows, partial(_logits, original), partial(_logits, model), track=tracking(progress, "windows, both models")
    )
    return _Measured(compared.quant_outputs, compared.float_outputs, {"kl": compared.mean_kl})


def _logits(model: Model, ids: Window) -> Tensor:
    return model.logits(torch.tensor([ids]))[0]


def _check_alike(model: Model, reference: Model) -> None:
    """Refuse a reference that tokenizes texts differently or has another kind of output."""
    if model.task != reference.task:
        raise InputError(
            f"{reference.path}: this model's task is {reference.task}, but the task of {model.path} is "
            f"{model.task}; give the float model of the same task"
        )
    if model.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        raise InputError(
            f"{reference.path}: this model and {model.path} have different vocabularies; give the float model that "
            "the quantized one was made from"
        )


def _scores(task: Task, measured: _Measured, seed: int) -> dict[str, Any]:
    """The scores, and the loss with its bounds if there is a reference."""
    outputs, reference = measured.outputs, measured.reference_outputs
    if reference is None:
        compared = dict.fromkeys(("reference_score", "loss", "loss_lower", "loss_upper", "confidence"))
        n_units = task.statistics(outputs, outputs)[0].n_units
        return {"n_units": n_units, "score": task.score(outputs), **compared, "kinds": [], "companions": {}}
    interval = loss_interval(task, reference, outputs, seed=seed)
    reference_score, score = task.scores(reference, outputs)
    return {
        "n_units": interval.n_units,
        "score": score,
        "reference_score": reference_score,
        "loss": interval.loss,
        "loss_lower": interval.lower,
        "loss_upper": interval.upper,
        "confidence": interval.confidence,
        "kinds": [asdict(kind) for kind in sorted(interval.kinds, key=lambda kind: -kind.loss)],
        "companions": measured.extra | task.companions(reference, outputs),
    }
