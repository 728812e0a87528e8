"""Draws the texts that a model is trained on: none of those that judge it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from bitwright.calibration.columns import Text
from bitwright.calibration.data import mix, parse_sources
from bitwright.calibration.passages import DOCUMENTATION
from bitwright.calibration.windows import mix_windows
from bitwright.errors import DataError, InputError
from bitwright.evaluate import labelled_task
from bitwright.evaluate.kinds import Classification, Pairs, Ranking
from bitwright.files.task import pair_evidence
from bitwright.pipeline.builtin import NAME, builtin_texts_of
from bitwright.pipeline.given import BUILTIN_DATA, text_sources
from bitwright.pipeline.job import Job
from bitwright.pipeline.request import TrainingAsked
from bitwright.runtime.encoding import refuse_empty, tokens_of
from bitwright.runtime.items import Tokens

LEAST_TEXTS, LEAST_WINDOWS = 256, 16
_MOST_TEXTS, _MOST_WINDOWS = 100_000, 20_000
_PER_MINUTE = 1000  # texts drawn for each minute of training: the teacher reads each of them once
_LONGEST = 128  # tokens of a text: longer ones cost more than they teach
_WINDOW = 256  # tokens


@dataclass(frozen=True, slots=True)
class TrainingTexts:
    """What to train on.

    tokens: of each text, or window. items: what a step draws from, each the numbers of one text, or of two. labels: of
    the items, float64 or int64, or None. texts: empty for windows. words: what they are, for people.
    """

    tokens: Tokens
    items: tuple[tuple[int, ...], ...]
    texts: tuple[Text, ...]
    words: str
    labels: np.ndarray | None = None

    @property
    def lengths(self) -> list[int]:
        """Tokens of each item."""
        return [sum(len(self.tokens.ids[i]) for i in item) for item in self.items]


def texts_for(asked: TrainingAsked, batch: int) -> int:
    """How many texts a training draws: as many as its steps take, or are worth drawing in its time."""
    wanted = asked.steps * batch if asked.steps else int((asked.minutes or 0) * _PER_MINUTE)
    return min(_MOST_TEXTS, wanted + 4 * LEAST_TEXTS)


def training_texts(job: Job, asked: TrainingAsked, batch: int) -> TrainingTexts:
    """The texts of a training: the user's, a labelled file, or built-in texts of the kinds that neither tune nor judge.

    Raises:
        DataError: too few; the message says how many more. InputError: labels that the model has no output for.
    """
    sources, labels = asked.texts, asked.labels
    if job.opened.streams:
        if labels is not None:
            raise InputError(f"--labels {labels}: a language model is trained on text alone; give it with --texts")
        return _windows(job, sources)
    if labels is not None:
        return _labelled(job, labels)
    if sources:
        parsed = text_sources(sources, job.model.task, pair_evidence(job.opened.loaded.directory, job.model.task))
        drawn = mix(parsed, texts_for(asked, batch), seed=job.recipe.seed)
        words = " and ".join(source.name for source in parsed)
    else:
        config = job.opened.loaded.config
        built = builtin_texts_of(job.model, job.opened.loaded.directory, config, job.recipe.seed)
        kinds = built.names("calibration")
        drawn = [passage.text for kind in kinds for passage in built.kinds[kind]]
        words = f"{NAME} ({', '.join(kinds)})"
    texts = _without_judged(job, drawn)
    _require(len(texts), LEAST_TEXTS, "texts")
    return TrainingTexts(_tokens(job, texts), tuple((i,) for i in range(len(texts))), tuple(texts), words)


def _labelled(job: Job, path: str) -> TrainingTexts:
    """The texts of a labelled file, with their labels.

    Raises:
        DataError: labels that do not fit the head, or too few. InputError: labels of a kind that nothing is trained on.
    """
    loaded = job.opened.loaded
    task = labelled_task(job.model.task, loaded.config, path, None, pair_evidence(loaded.directory, loaded.task))
    texts, kind = cast(Sequence[Text], task.texts), task.kind
    judged = _judged(job)
    n_labels: Any = getattr(loaded.config, "num_labels", 0)
    match kind:
        case Classification():
            labels: np.ndarray = kind.gold_U
            if int(labels.max()) >= n_labels:
                raise DataError(
                    f"{path}: there is a label {int(labels.max())}, but the model's head has {n_labels} classes, "
                    f"0 to {n_labels - 1}; give labels of its classes"
                )
            items = [(i,) for i in range(len(texts))]
        case Ranking():
            labels, items = kind.gold_U, [(i,) for i in range(len(texts))]
        case Pairs():
            gold = kind.gold_P
            labels = (gold - gold.min()) / (gold.max() - gold.min())
            items = list(zip(kind.first_P.tolist(), kind.second_P.tolist(), strict=True))  # type: ignore[arg-type]
        case _:
            raise InputError(
                f"{path}: labels of the kind {kind.name} cannot be trained on; give texts alone, with --texts"
            )
    kept = [i for i, item in enumerate(items) if not any(texts[part] in judged for part in item)]
    _require(len(kept), LEAST_TEXTS, "labelled examples")
    return TrainingTexts(
        _tokens(job, texts), tuple(items[i] for i in kept), tuple(texts), f"{path}, with its labels", labels[kept]
    )


def _windows(job: Job, sources: Sequence[str]) -> TrainingTexts:
    length = min(_WINDOW, job.model.max_tokens)
    given = parse_sources(sources or BUILTIN_DATA)
    drawn = mix_windows(job.model.tokenizer, given, _MOST_WINDOWS, length, seed=job.recipe.seed)
    judged = _judged(job)
    drawn = [window for window in drawn if window not in judged]
    _require(len(drawn), LEAST_WINDOWS, f"windows of {length} tokens")
    words = " and ".join(source.name for source in given) if sources else f"{NAME} ({DOCUMENTATION})"
    return TrainingTexts(Tokens([list(window) for window in drawn]), tuple((i,) for i in range(len(drawn))), (), words)


def _judged(job: Job) -> set[object]:
    """Everything that the run scores on."""
    scored = job.scored
    tasks = [task for task in (scored.tuning, scored.held_out, scored.elsewhere) if task is not None]
    return {text for task in tasks for text in task.texts}


def _without_judged(job: Job, texts: Sequence[Text]) -> list[Text]:
    judged = _judged(job)
    return [text for text in dict.fromkeys(texts) if text not in judged]


def _tokens(job: Job, texts: Sequence[Text]) -> Tokens:
    tokens = tokens_of(job.model, list(texts))  # type: ignore[arg-type]  # texts, or pairs
    refuse_empty(tokens.ids)
    cut = min(_LONGEST, job.model.max_tokens)
    if any(len(ids) > cut for ids in tokens.ids) and job.model.task != "question-answering":
        tokens = job.model.read(*_split(texts), typed=tokens.types is not None, limit=cut)
    return tokens


def _split(texts: Sequence[Text]) -> tuple[list[str], list[str] | None]:
    if isinstance(texts[0], str):
        return [str(text) for text in texts], None
    return [pair[0] for pair in texts], [pair[1] for pair in texts]


def _require(have: int, least: int, what: str) -> None:
    if have < least:
        raise DataError(
            f"there are {have} {what} to train on that the verdict does not use, but at least {least} are needed: give "
            f"{least - have} more with --texts"
        )
