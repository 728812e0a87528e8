"""Draws from the user's texts: some for the verdict, others for calibration."""

from collections.abc import Sequence
from typing import cast

from bitwright.calibration.columns import Source
from bitwright.calibration.data import LEAST_CALIBRATION_TEXTS, in_pairs, mix, parse_sources, require_texts
from bitwright.calibration.windows import Window, mix_windows
from bitwright.errors import DataError, InputError
from bitwright.evaluate import Task, labelled_task, load_custom
from bitwright.evaluate.kinds import Items
from bitwright.evaluate.language import WINDOW, WINDOWS, LanguageModel, language_task
from bitwright.evaluate.usable import refuse_few
from bitwright.files.task import PAIR_TASKS
from bitwright.models.load import LoadedModel
from bitwright.pipeline.request import Texts
from bitwright.recipe import Recipe
from bitwright.runtime.model import Model

BUILTIN_DATA = ("builtin",)
HELD_OUT = 8  # an eighth of what is polished with, beside it, chooses among the steps
_SHORT_TEXT = 16  # tokens
MAX_PROBE = 200  # texts whose outputs sensitivity compares
MAX_WINDOWS = 64  # of a language model, tuning and held-out together


def text_sources(data: Sequence[str], task: str, evidence: str | None) -> list[Source]:
    """The sources of a model's texts; built-in ones if the user gave none. If the model reads pairs, as `evidence`
    shows, two columns of each table are read.

    Raises:
        DataError: pairs beside single texts, or for a model that reads no pairs.
    """
    sources = parse_sources(data or BUILTIN_DATA)
    sources = [in_pairs(source) for source in sources] if evidence else sources
    paired = next((source for source in sources if source.pairs), None)
    single = next((source for source in sources if not source.pairs), None)
    if paired and single:
        raise DataError(
            f"{paired.name} holds pairs of texts, but {single.name} holds single texts; give only pairs or only "
            "single texts"
        )
    if paired and task not in PAIR_TASKS:
        raise DataError(
            f"{paired.name}: two columns are named, but a model for {task} reads single texts; name one column"
        )
    return sources


def given_task(texts: Texts, loaded: LoadedModel, evidence: str | None) -> Task | None:
    """The user's metric, if any. evidence: what shows that the model reads pairs."""
    if texts.metric is not None:
        if texts.evaluation is not None:
            raise InputError("--metric and --eval both choose what is scored; give only one of them")
        return load_custom(texts.metric)
    if texts.evaluation is None:
        return None
    found = labelled_task(loaded.task, loaded.config, texts.evaluation, texts.kind, evidence)
    refuse_few(found, texts.evaluation)
    return found


def given_texts(
    texts: Texts, sources: Sequence[Source], recipe: Recipe, labelled: Task | None, *, calibrates: bool
) -> tuple[Items, Items]:
    """Texts for the label-free metric or the probe, and texts to calibrate and polish with. They are disjoint, and no
    scored text is among them.

    Raises:
        DataError: fewer calibration texts than make sense.
    """
    n_pool = texts.samples if labelled is None else 0 if labelled.texts else MAX_PROBE
    n_calibration = max(recipe.calibration.samples if calibrates else 0, polishing_texts(recipe))
    if n_pool + n_calibration == 0:
        return (), ()
    scored: set[object] = set(labelled.texts) if labelled else set()
    wanted = n_pool + n_calibration
    drawn = mix(sources, wanted + len(scored), seed=recipe.seed)
    drawn = [text for text in drawn if text not in scored][:wanted]
    if len(drawn) < wanted:  # both get their share of what there is
        n_calibration = min(len(drawn) * n_calibration // wanted, _most_looked_at(len(drawn), recipe))
    if calibrates:
        require_texts(drawn[:n_calibration], LEAST_CALIBRATION_TEXTS, "static ranges")
    return cast(Items, tuple(drawn[n_calibration:])), cast(Items, tuple(drawn[:n_calibration]))


def given_windows(
    texts: Texts, recipe: Recipe, model: Model, sources: Sequence[Source], *, calibrates: bool
) -> tuple[Task, list[Window]]:
    """Perplexity on windows of text, and windows to calibrate and polish with. They are disjoint.

    Raises:
        DataError: a text shorter than a window, or fewer calibration windows than make sense.
    """
    if texts.metric is not None:
        raise InputError(
            "--metric is not for language models, which are judged by perplexity; give a text with --eval instead"
        )
    length = window_length(recipe, model)
    n_calibration = max(recipe.calibration.samples if calibrates else 0, polishing_windows(recipe, model))
    n_scored = 0 if texts.evaluation else min(texts.samples, MAX_WINDOWS)
    wanted = n_calibration + n_scored
    drawn = mix_windows(model.tokenizer, sources, wanted, length, seed=recipe.seed) if wanted else []
    if len(drawn) < wanted:  # both get their share of what there is
        n_calibration = min(len(drawn) * n_calibration // wanted, _most_looked_at(len(drawn), recipe))
    if calibrates:
        _require_windows(n_calibration, length)
    if texts.evaluation:
        window = min(WINDOW, model.max_tokens)
        task = language_task(texts.evaluation, model.tokenizer, window=window, windows=WINDOWS)
    else:
        names = " and ".join(source.name for source in sources)
        protocol = f"{names}, {len(drawn) - n_calibration} windows of {length} tokens drawn at random, no BOS"
        task = Task(names, tuple(drawn[n_calibration:]), LanguageModel(protocol))
    return task, drawn[:n_calibration]


def calibration_windows(sources: Sequence[Source], recipe: Recipe, model: Model) -> tuple[Window, ...]:
    """Windows of running text to calibrate and polish with.

    Raises:
        DataError: fewer than make sense.
    """
    length = window_length(recipe, model)
    wanted = max(recipe.calibration.samples, polishing_windows(recipe, model))
    drawn = mix_windows(model.tokenizer, sources, wanted, length, seed=recipe.seed)
    _require_windows(len(drawn), length)
    return tuple(drawn)


def window_length(recipe: Recipe, model: Model) -> int:
    """The number of tokens in a window of running text."""
    return min(recipe.calibration.max_tokens, model.max_tokens)


def polishing_windows(recipe: Recipe, model: Model) -> int:
    """Windows that polishing takes: to train on, and to choose among the steps."""
    if recipe.polish is None:
        return 0
    trained = max(1, recipe.polish.tokens // window_length(recipe, model))
    return trained + -(-trained // HELD_OUT)


def polishing_texts(recipe: Recipe) -> int:
    """Texts that polishing takes at most, as short as a sentence; those beyond `polish.tokens` are left."""
    return 0 if recipe.polish is None else -(-recipe.polish.tokens // _SHORT_TEXT)


def _most_looked_at(n: int, recipe: Recipe) -> int:
    """Of so many texts or windows, how many may be looked at. Polishing wants many, and leaves half to the verdict."""
    return n if recipe.polish is None else n // 2


def _require_windows(n: int, length: int) -> None:
    if n < LEAST_CALIBRATION_TEXTS:
        raise DataError(
            f"there are {n} windows of {length} tokens for calibration, but at least {LEAST_CALIBRATION_TEXTS} are "
            "needed. Give more text with --data, or set a smaller calibration.max_tokens in the recipe"
        )
