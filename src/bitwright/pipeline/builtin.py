"""Draws the built-in texts of a run: those that its model can read, kind by kind.

Kinds that a method looks at and kinds that choices are made on do not judge (`calibration.passages.ROLES`); where no
method looks at texts, the kinds for that judge too.
"""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import Any, TypeVar, cast

from bitwright.calibration.columns import Text
from bitwright.calibration.data import LEAST_CALIBRATION_TEXTS, require_texts
from bitwright.calibration.fit import Reader, readable
from bitwright.calibration.passages import (
    ROLES,
    PairSort,
    Passage,
    language_name,
    pair_passages,
    passages,
)
from bitwright.calibration.tokens import token_ids
from bitwright.calibration.windows import Window
from bitwright.errors import InputError
from bitwright.evaluate import Task, agreement_task
from bitwright.evaluate.by_kind import LEAST_KINDS
from bitwright.evaluate.kinds import OUTPUTS, Items
from bitwright.evaluate.language import LanguageModel
from bitwright.files.directory import ModelDirectory
from bitwright.files.task import pair_evidence
from bitwright.recipe import Mix
from bitwright.runtime.model import Model

T = TypeVar("T")

NAME = "built-in texts"
_LEAST_TEXTS = 8  # of a kind; a rank correlation of fewer is mostly chance
_WINDOW = 512  # tokens, at most: the shortest kinds fill three or four such windows


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """kinds: the texts of each kind that fits, in a seeded order. languages: the languages of those texts. unread:
    languages that the vocabulary does not cover.
    """

    kinds: dict[str, tuple[Passage, ...]]
    languages: tuple[str, ...]
    unread: tuple[str, ...]

    def names(self, *parts: str) -> list[str]:
        """The kinds that have one of these roles."""
        return [kind for kind in self.kinds if ROLES[kind] in parts]


def pair_sort(task: str, n_labels: int) -> PairSort:
    """The sort of built-in pairs for a task whose model reads pairs."""
    if task == "question-answering":
        return "questions"
    return "rerank" if n_labels == 1 else "nli"


def builtin(reader: Reader, sort: PairSort | None, *, seed: int, must_fit: bool = True) -> BuiltIn:
    """The built-in texts that a model can read; pairs of a sort, if one is named. Without `must_fit`, all of them.

    Raises:
        InputError: it can read none, or too few kinds of them to judge by.
    """
    everything = passages() if sort is None else pair_passages(sort)
    found, dropped = readable(everything, reader) if must_fit else (everything, ())
    rng = random.Random(seed)
    kinds = {}
    for kind in ROLES:
        some = [passage for passage in found if passage.kind == kind]
        if len(some) >= _LEAST_TEXTS:
            kinds[kind] = tuple(rng.sample(some, len(some)))
    languages = dict.fromkeys(passage.language for passage in found)
    built = BuiltIn(kinds, tuple(map(language_name, languages)), tuple(map(language_name, dropped)))
    if len(built.names("judging")) < LEAST_KINDS:
        raise InputError(
            f"{reader.name}: {len(built.names('judging'))} kinds of built-in texts fit the model's vocabulary, but "
            f"a verdict needs {LEAST_KINDS}. Give texts that the model is made for, with --data or --eval"
        )
    return built


def builtin_texts_of(
    model: Model, directory: ModelDirectory, config: Any, seed: int, *, must_fit: bool = True
) -> BuiltIn:
    """The built-in texts, or pairs, that a model can read.

    directory, config: of the model, the latter as transformers reads it. must_fit: as `builtin` takes it.

    Raises:
        InputError: as `builtin`.
    """
    sort = pair_sort(model.task, config.num_labels) if pair_evidence(directory, model.task) else None
    return builtin(reader_of(model), sort, seed=seed, must_fit=must_fit)


def reader_of(model: Model) -> Reader:
    """How a model reads texts. A language model reads them whole."""
    streams = OUTPUTS[model.task] == "tokens"

    def windows(texts: Sequence[Text]) -> list[list[int]]:
        return [token_ids(model.tokenizer, str(text)) for text in texts]

    unknown = getattr(model.tokenizer, "unk_token_id", None)
    limit = sys.maxsize if streams else model.max_tokens
    return Reader(model.path.name, windows if streams else model.tokenize, unknown, limit)


def texts_of(built: BuiltIn, kinds: Sequence[str], per_kind: int) -> tuple[Items, tuple[str, ...]]:
    """A number of texts of each kind, and the kind of each text."""
    drawn = _in_turns([built.kinds[kind][:per_kind] for kind in kinds])
    return cast(Items, tuple(passage.text for passage in drawn)), tuple(passage.kind for passage in drawn)


def per_kind(samples: int, n_kinds: int) -> int:
    """The number of texts of each kind if there shall be `n` in all."""
    return max(_LEAST_TEXTS, samples // max(1, n_kinds))


def calibration_texts(built: BuiltIn, n: int, mix: Mix | None = None) -> Items:
    """`n` texts of the kinds that methods look at, as many of each as there are. mix: how many of each kind come in
    one turn; one by default.

    Raises:
        DataError: too few for a static range.
    """
    asked = (mix or Mix()).model_dump()
    counts = {kind: asked[kind] for kind in built.names("calibration")}
    parts = _in_turns([_in_parts(built.kinds[kind], count) for kind, count in counts.items() if count])
    drawn = list(chain.from_iterable(parts))
    require_texts([passage.text for passage in drawn[:n]], LEAST_CALIBRATION_TEXTS, "static ranges")
    return cast(Items, tuple(passage.text for passage in drawn[:n]))


def windows_task(built: BuiltIn, kinds: Sequence[str], tokenizer: Any, *, length: int, per_kind: int) -> Task:
    """Perplexity on windows of each kind's joined texts. Kinds that do not fill a window are left out.

    length: of a window, in tokens; at most 512.
    """
    length = min(length, _WINDOW)
    found: list[tuple[Window, str]] = []
    for kind in kinds:
        text = "\n\n".join(str(passage.text) for passage in built.kinds[kind])
        ids = token_ids(tokenizer, text)[: length * per_kind]
        found += [(tuple(ids[start : start + length]), kind) for start in range(0, len(ids) - length + 1, length)]
    text_kinds = tuple(kind for _, kind in found)
    protocol = f"{NAME}, windows of {length} tokens within one kind, no BOS"
    return Task(NAME, tuple(window for window, _ in found), LanguageModel(protocol), text_kinds)


def agreement_of(model: Model, config: Any, built: BuiltIn, kinds: Sequence[str], each: int) -> Task:
    """Agreement with the float model on a number of texts of each kind."""
    texts, text_kinds = texts_of(built, kinds, each)
    task = agreement_task(model.task, config, cast(Sequence[Text], texts), name=NAME)
    return replace(task, text_kinds=text_kinds)


def _in_turns(rows: Sequence[Sequence[T]]) -> list[T]:
    """The first of each row, then the second of each, and so on, so that any beginning has all kinds equally."""
    return [item for item in chain.from_iterable(zip_longest(*rows)) if item is not None]


def _in_parts(passages: Sequence[Passage], count: int) -> list[Sequence[Passage]]:
    return [passages[start : start + count] for start in range(0, len(passages), count)]
