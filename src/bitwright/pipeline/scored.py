"""Draws the texts of a run into disjoint parts: for the verdict, for calibration and for sensitivity."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from bitwright.calibration.columns import Text, TextPair
from bitwright.calibration.data import BUILTIN, parse_sources
from bitwright.calibration.fit import require_fit
from bitwright.calibration.passages import DOCUMENTATION
from bitwright.errors import InputError
from bitwright.evaluate import Task, agreement_task, shared_texts, split
from bitwright.evaluate.by_kind import LEAST_KINDS
from bitwright.evaluate.kinds import Items, pairs_in
from bitwright.files.task import pair_evidence
from bitwright.models.load import LoadedModel
from bitwright.pipeline.builtin import (
    NAME,
    BuiltIn,
    agreement_of,
    builtin_texts_of,
    calibration_texts,
    per_kind,
    reader_of,
    texts_of,
    windows_task,
)
from bitwright.pipeline.given import (
    BUILTIN_DATA,
    MAX_PROBE,
    MAX_WINDOWS,
    calibration_windows,
    given_task,
    given_texts,
    given_windows,
    polishing_texts,
    text_sources,
    window_length,
)
from bitwright.pipeline.opened import Opened
from bitwright.pipeline.request import Texts
from bitwright.recipe import Recipe
from bitwright.runtime.model import Model

_ELSEWHERE = 20  # texts of each built-in kind beside the user's own; windows: one


@dataclass(frozen=True, slots=True)
class Scored:
    """The texts of a run.

    tuning, held_out: the two sides of what decides. calibration: texts, or windows of token ids, that methods look at,
    on neither side. probe: texts whose outputs sensitivity compares; from the tuning side. sha256: of the labels, or of
    the user's metric. polishing: those that scales are trained on, the calibration's among them. Of a model that reads
    pairs, the texts are pairs where the user gave some.

    missing_pairs: what shows that the model reads pairs, where the two sides are single texts; None where they are what
    the model reads. elsewhere: agreement with float on built-in texts, beside the user's own texts that decide.
    source: what the texts are, for people; calibrated_on: what methods look at; languages: of built-in texts; unread:
    those that the model cannot read. told: what a reader should know of them.
    """

    tuning: Task
    held_out: Task
    calibration: Items
    probe: Items
    sha256: str
    polishing: Items = ()
    missing_pairs: str | None = None
    elsewhere: Task | None = None
    source: str = NAME
    calibrated_on: str | None = None
    languages: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    told: tuple[str, ...] = ()

    @property
    def by_kind(self) -> bool:
        """Whether built-in texts decide, kind by kind."""
        return bool(self.held_out.text_kinds)


def draw(
    opened: Opened, model: Model, recipe: Recipe, texts: Texts, *, calibrates: bool, judged: bool = True
) -> Scored:
    """Draw the texts of a run: the user's, and built-in ones beside them or instead of them.

    calibrates: whether a method looks at inputs. judged: whether there will be a verdict; where there is neither,
    built-in texts need not be such as the model can read.

    Raises:
        DataError, InputError: texts or a metric that cannot be used, or that the model cannot read; a mix of kinds
            where methods look at other texts.
    """
    if recipe.calibration.mix is not None and (texts.data or opened.streams):
        looked_at = "those of --data" if texts.data else "documentation alone, as it is a language model"
        raise InputError(
            f"calibration: mix says how built-in texts are mixed, but the texts that methods look at are {looked_at}; "
            "leave it out" + (", or give weights as FILE:WEIGHT" if texts.data else "")
        )
    if texts.data or texts.evaluation or texts.metric:
        drawn = _draw_given(opened, model, recipe, texts, calibrates, judged=judged)
    else:
        drawn = _draw_builtin(opened, model, recipe, texts, calibrates, must_fit=judged or calibrates)
    return replace(drawn, sha256=_evaluation_sha256(texts))


def _draw_builtin(
    opened: Opened, model: Model, recipe: Recipe, texts: Texts, calibrates: bool, *, must_fit: bool
) -> Scored:
    """Built-in texts alone: kinds for calibration, for choices, and for the verdict."""
    loaded = opened.loaded
    built = builtin_texts_of(model, loaded.directory, loaded.config, recipe.seed, must_fit=must_fit)
    tunes = built.names("tuning")
    if opened.streams:  # methods look at prose of the documentation alone, so what else is of that part judges
        judges = [kind for kind in built.names("calibration", "judging") if kind != DOCUMENTATION]
        each = max(1, min(texts.samples, MAX_WINDOWS) // len([*tunes, *judges]))
        length = window_length(recipe, model)
        tuning, held_out = (
            windows_task(built, kinds, model.tokenizer, length=length, per_kind=each) for kinds in (tunes, judges)
        )
        looks = calibrates or recipe.polish is not None
        looked: Items = calibration_windows(parse_sources(BUILTIN_DATA), recipe, model) if looks else ()
        looked_at = [DOCUMENTATION]
    else:
        judges = built.names("judging", *([] if calibrates or recipe.polish else ["calibration"]))
        each = per_kind(texts.samples, len([*tunes, *judges]))
        tuning, held_out = (agreement_of(model, loaded.config, built, kinds, each) for kinds in (tunes, judges))
        looked = _builtin_texts(built, recipe, calibrates=calibrates)
        looked_at = built.names("calibration")
    calibration, polishing = _divided(looked, recipe, calibrates=calibrates)
    return Scored(
        tuning, held_out, calibration, tuning.texts[:MAX_PROBE], "", polishing, languages=built.languages,
        unread=built.unread, calibrated_on=f"{NAME} ({', '.join(looked_at)})" if looked else None,
    )  # fmt: skip


def _draw_given(
    opened: Opened, model: Model, recipe: Recipe, texts: Texts, calibrates: bool, *, judged: bool
) -> Scored:
    """The user's texts decide. Built-in ones are shown beside them, and used for calibration if the user gave no
    others.
    """
    loaded = opened.loaded
    evidence = pair_evidence(loaded.directory, loaded.task)
    sources = text_sources(texts.data, loaded.task, evidence)
    names = " and ".join(source.name for source in sources) if texts.data else NAME
    built, told = _beside(loaded, model, recipe.seed) if judged or not texts.data else (None, [])
    pool: Items = ()
    if opened.streams:
        task, windows = given_windows(texts, recipe, model, sources, calibrates=calibrates)
        looked: Items = tuple(windows)
    else:
        labelled = given_task(texts, loaded, evidence)
        if texts.data or labelled is None or built is None:
            pool, looked = given_texts(texts, sources, recipe, labelled, calibrates=calibrates)
        else:
            pool, _ = texts_of(built, built.names("tuning"), per_kind(MAX_PROBE, len(built.names("tuning"))))
            looked = _builtin_texts(built, recipe, calibrates=calibrates)
        task = labelled or agreement_task(loaded.task, loaded.config, cast(Sequence[Text], pool))
        where = texts.evaluation or " and ".join(texts.data)
        told += require_fit(cast(Sequence[Text], task.texts), reader_of(model), where)
    tuning, held_out = split(task, seed=recipe.seed)
    calibration, polishing = _divided(looked, recipe, calibrates=calibrates)
    return Scored(
        tuning, held_out, calibration, tuning.texts[:MAX_PROBE] or pool[:MAX_PROBE], "", polishing,
        missing_pairs=None if texts.metric or pairs_in(held_out.texts) else evidence,
        elsewhere=None if built is None or not judged else _elsewhere(opened, built, model, recipe, texts),
        source=Path(texts.evaluation).name if texts.evaluation else texts.metric or names,
        calibrated_on=names if looked else None,
        told=tuple(told),
    )  # fmt: skip


def _builtin_texts(built: BuiltIn, recipe: Recipe, *, calibrates: bool) -> Items:
    """Built-in texts to calibrate and polish with."""
    wanted = max(recipe.calibration.samples if calibrates else 0, polishing_texts(recipe))
    return calibration_texts(built, wanted, recipe.calibration.mix) if wanted else ()


def _divided(looked: Items, recipe: Recipe, *, calibrates: bool) -> tuple[Items, Items]:
    """What methods look at, and what scales are trained on: the one may be part of the other."""
    return looked[: recipe.calibration.samples] if calibrates else (), () if recipe.polish is None else looked


def _beside(loaded: LoadedModel, model: Model, seed: int) -> tuple[BuiltIn | None, list[str]]:
    """The built-in texts that are shown beside the user's. If the model cannot read them: None, and a warning."""
    try:
        return builtin_texts_of(model, loaded.directory, loaded.config, seed), []
    except InputError:
        return None, ["the built-in texts do not fit the model's vocabulary, so the verdict uses only the given texts"]


def _elsewhere(opened: Opened, built: BuiltIn, model: Model, recipe: Recipe, texts: Texts) -> Task | None:
    """Agreement with float on the built-in kinds that the run does not use otherwise; None if hardly any are left."""
    sources = [source for source in parse_sources(texts.data or BUILTIN_DATA) if source.name == BUILTIN]
    given = {source.field for source in sources} if texts.data else set()  # without a field, some of every kind
    kinds = [kind for kind in built.names("tuning", "judging") if not {kind, None} & given]
    if len(kinds) < LEAST_KINDS:
        return None
    if opened.streams:
        return windows_task(built, kinds, model.tokenizer, length=window_length(recipe, model), per_kind=1)
    return agreement_of(model, opened.loaded.config, built, kinds, min(_ELSEWHERE, per_kind(texts.samples, len(kinds))))


def as_texts(items: Items) -> list[str] | list[TextPair]:
    """The items as texts, or as pairs of texts."""
    return pairs_in(items) or [item for item in items if isinstance(item, str)]


def doubts(scored: Scored) -> list[str]:
    """Warnings about the split and about the texts."""
    found = []
    if shared := len(shared_texts(scored.tuning, scored.held_out)):
        found.append(
            f"{shared} texts are in the tuning data and in the held-out data, because they connect too many "
            "examples; remove repeated texts to keep the two apart"
        )
    if pairs_in(scored.held_out.texts) and scored.calibration and not pairs_in(scored.calibration):
        found.append("the model reads pairs, but it was calibrated on single texts; give pairs with --data")
    return found


def _evaluation_sha256(texts: Texts) -> str:
    """A digest of the files that hold the labels or the text, or the code of the user's metric."""
    digest = hashlib.sha256(str(texts.kind).encode())
    if place := texts.evaluation or (texts.metric or "").rpartition(":")[0]:
        path = Path(place)
        if not path.exists():  # a name, as of the built-in prose
            digest.update(place.encode())
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(file.read_bytes())
    return digest.hexdigest()
