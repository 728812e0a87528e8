"""The texts of a run, drawn: what decides, what methods look at, and what sensitivity compares, all disjoint."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from bitwright.calibration.columns import Source, Text, TextPair
from bitwright.calibration.data import LEAST_CALIBRATION_TEXTS, in_pairs, mix, parse_sources, require_texts
from bitwright.calibration.windows import Window, mix_windows
from bitwright.errors import DataError, InputError
from bitwright.evaluate import Task, agreement_task, labelled_task, load_custom, shared_texts, split
from bitwright.evaluate.kinds import Items, pairs_in
from bitwright.evaluate.language import WINDOW, WINDOWS, LanguageModel, language_task
from bitwright.evaluate.usable import refuse_few
from bitwright.files.task import PAIR_TASKS, pair_evidence
from bitwright.models.load import LoadedModel
from bitwright.pipeline.opened import Opened
from bitwright.pipeline.request import Texts
from bitwright.recipe import Recipe
from bitwright.runtime.model import Model

BUILTIN_DATA = ("builtin",)
_MAX_WINDOWS = 64  # of a language model, tuning and held-out together
_MAX_PROBE = 200  # texts whose outputs sensitivity compares


@dataclass(frozen=True, slots=True)
class Scored:
    """The texts of a run.

    tuning, held_out: the two sides of what decides. calibration: texts, or windows of token ids, that methods look at,
    on neither side. probe: texts whose outputs sensitivity compares; from the tuning side. sha256: of the labels, or of
    the user's metric. Of a model that reads pairs, the texts are pairs where the user gave some.

    missing_pairs: what shows that the model reads pairs, where the two sides are single texts; None where they are what
    the model reads.
    """

    tuning: Task
    held_out: Task
    calibration: Items
    probe: Items
    sha256: str
    missing_pairs: str | None = None


def draw(opened: Opened, model: Model, recipe: Recipe, texts: Texts, *, calibrates: bool) -> Scored:
    """Draw the texts of a run. calibrates: whether a method looks at inputs.

    Raises:
        DataError, InputError: texts or a metric that cannot be used.
    """
    calibration: Items
    pool: list[Text] = []
    evidence = pair_evidence(opened.loaded.directory, opened.loaded.task)
    if opened.streams:
        task, windows = _draw_windows(texts, recipe, model, needs_calibration=calibrates)
        calibration = tuple(windows)
    else:
        labelled = _labelled_task(texts, opened.loaded, evidence)
        sources = text_sources(texts.data, opened.loaded.task, evidence)
        pool, drawn = _draw_texts(texts, sources, recipe, labelled, needs_calibration=calibrates)
        task = labelled or agreement_task(opened.loaded.task, opened.loaded.config, pool)
        calibration = cast(Items, tuple(drawn))
    tuning, held_out = split(task, seed=recipe.seed)
    probe = tuning.texts[:_MAX_PROBE] or cast(Items, tuple(pool[:_MAX_PROBE]))
    missing = None if texts.metric or pairs_in(held_out.texts) else evidence
    return Scored(tuning, held_out, calibration, probe, _evaluation_sha256(texts), missing)


def text_sources(data: Sequence[str], task: str, evidence: str | None) -> list[Source]:
    """The sources of a model's texts, built-in prose without any. Of a model that reads pairs, as `evidence` shows,
    two columns of each table are read.

    Raises:
        DataError: pairs beside single texts, or for a model that reads no pairs.
    """
    sources = parse_sources(data or BUILTIN_DATA)
    sources = [in_pairs(source) for source in sources] if evidence else sources
    paired = next((source for source in sources if source.pairs), None)
    single = next((source for source in sources if not source.pairs), None)
    if paired and single:
        raise DataError(f"{paired.name} holds pairs of texts and {single.name} single ones; give one or the other")
    if paired and task not in PAIR_TASKS:
        raise DataError(f"{paired.name}: two columns are named, and a model for {task} reads single texts; name one")
    return sources


def as_texts(items: Items) -> list[str] | list[TextPair]:
    """The items of a model that reads texts, or pairs of them."""
    return pairs_in(items) or [item for item in items if isinstance(item, str)]


def _draw_windows(texts: Texts, recipe: Recipe, model: Model, *, needs_calibration: bool) -> tuple[Task, list[Window]]:
    """(perplexity on windows of text, windows for calibration): disjoint.

    Raises:
        DataError: a text shorter than a window, or fewer calibration windows than make sense.
    """
    if texts.metric is not None:
        raise InputError(
            "--metric is for models that encode texts; a language model is judged by perplexity: give --eval"
        )
    length = min(recipe.calibration.max_tokens, model.max_tokens)
    n_calibration = recipe.calibration.samples if needs_calibration else 0
    n_scored = 0 if texts.evaluation else min(texts.samples, _MAX_WINDOWS)
    sources, wanted = parse_sources(texts.data or BUILTIN_DATA), n_calibration + n_scored
    drawn = mix_windows(model.tokenizer, sources, wanted, length, seed=recipe.seed) if wanted else []
    if len(drawn) < wanted:  # both get their share of what there is
        n_calibration = len(drawn) * n_calibration // wanted
    if needs_calibration and n_calibration < LEAST_CALIBRATION_TEXTS:
        raise DataError(
            f"{n_calibration} windows of {length} tokens for calibration; at least {LEAST_CALIBRATION_TEXTS} are "
            "needed: give more text with --data, or a smaller calibration.max_tokens in the recipe"
        )
    if texts.evaluation:
        window = min(WINDOW, model.max_tokens)
        task = language_task(texts.evaluation, model.tokenizer, window=window, windows=WINDOWS)
    else:
        names = " and ".join(source.name for source in sources)
        protocol = f"{names}, {len(drawn) - n_calibration} windows of {length} tokens drawn at random, no BOS"
        task = Task(names, tuple(drawn[n_calibration:]), LanguageModel(protocol))
    return task, drawn[:n_calibration]


def _draw_texts(
    texts: Texts, sources: Sequence[Source], recipe: Recipe, labelled: Task | None, *, needs_calibration: bool
) -> tuple[list[Text], list[Text]]:
    """(texts for the label-free metric or the probe, texts for calibration): disjoint, and none that is scored.

    Raises:
        DataError: fewer calibration texts than make sense.
    """
    n_pool = texts.samples if labelled is None else 0 if labelled.texts else _MAX_PROBE
    n_calibration = recipe.calibration.samples if needs_calibration else 0
    if n_pool + n_calibration == 0:
        return [], []
    scored: set[object] = set(labelled.texts) if labelled else set()
    wanted = n_pool + n_calibration
    drawn = mix(sources, wanted + len(scored), seed=recipe.seed)
    drawn = [text for text in drawn if text not in scored][:wanted]
    if len(drawn) < wanted:  # both get their share of what there is
        n_calibration = len(drawn) * n_calibration // wanted
    if needs_calibration:
        require_texts(drawn[:n_calibration], LEAST_CALIBRATION_TEXTS, "static ranges")
    return drawn[n_calibration:], drawn[:n_calibration]


def _labelled_task(texts: Texts, loaded: LoadedModel, evidence: str | None) -> Task | None:
    """The metric that the user gave, if any. evidence: that the model reads pairs."""
    if texts.metric is not None:
        if texts.evaluation is not None:
            raise InputError("--metric and --eval both say what decides; give one of them")
        return load_custom(texts.metric)
    if texts.evaluation is None:
        return None
    found = labelled_task(loaded.task, loaded.config, texts.evaluation, texts.kind, evidence)
    refuse_few(found, texts.evaluation)
    return found


def doubts(scored: Scored) -> list[str]:
    """What a reader of the verdict should know of the split, and of the texts."""
    found = []
    if shared := len(shared_texts(scored.tuning, scored.held_out)):
        found.append(
            f"{shared} texts occur in the tuning and in the held-out data: they tie too many examples together"
        )
    if pairs_in(scored.held_out.texts) and scored.calibration and not pairs_in(scored.calibration):
        found.append("the model was calibrated on single texts, and it reads pairs; give pairs with --data")
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
