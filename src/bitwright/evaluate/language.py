"""The perplexity of language models on a text that is cut into windows.

    task = language_task("wiki.test.raw", tokenizer, window=1024, windows=40)
    task.kind.protocol      'wiki.test.raw, first 40 non-overlapping windows of 1024 tokens, no BOS'

A model's output for a window of T tokens is float32 (2, T − 1): the negative log-likelihood, in nats, of each token
after the first given those before it, and the id of the token that the model thought most likely. Perplexities of
different protocols (window length, overlap, BOS) or tokenizers do not compare.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bitwright.calibration.columns import Source
from bitwright.calibration.data import BUILTIN
from bitwright.calibration.windows import running_text, token_windows
from bitwright.errors import DataError
from bitwright.evaluate.kinds import Items, Outputs, OutputSort, chosen, same_items
from bitwright.evaluate.statistic import FloatArray, IntArray, Perplexity
from bitwright.evaluate.tasks import Task

WINDOW, WINDOWS = 1024, 40  # tokens, number: a minute for 10⁸ parameters on two cores


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """Windows of token ids: perplexity of a language model on their text. Units: windows.

    The next tokens are the labels, so `label_free` is False: the float model has a score of its own.

    protocol: which windows of which text, so that a reader can tell whether another figure compares.
    """

    protocol: str
    name: ClassVar[str] = "language model"
    unit: ClassVar[str] = "windows"
    outputs: ClassVar[OutputSort] = "tokens"
    label_free: ClassVar[bool] = False
    metric: ClassVar[str] = "perplexity"
    higher_is_better: ClassVar[bool] = False

    def statistics(self, float_outputs: Outputs, quant_outputs: Outputs) -> tuple[Perplexity, Perplexity]:
        return _perplexity(float_outputs), _perplexity(quant_outputs)

    def groups(self, texts: Items) -> IntArray:
        return same_items(texts)

    def select(self, units: IntArray, texts: Items) -> "tuple[LanguageModel, Items]":
        return self, chosen(texts, units)


def language_task(
    source: str | Path, tokenizer: Any, *, window: int = WINDOW, windows: int | None = WINDOWS, bos: bool = False
) -> Task:
    """Perplexity on the first windows of a text.

    The text is tokenized once, as a whole, without special tokens, and cut into windows that do not overlap; every
    token of a window but its first is predicted from those before it in the window.

    Args:
        source: a file of plain text (.raw, .txt, any suffix), taken whole; a table of texts; "builtin" for the prose of
            Python's documentation.
        tokenizer: of transformers.
        window: tokens per window. windows: how many; fewer if the text has fewer, all if None.
        bos: begin each window with the tokenizer's BOS, which is one of its tokens.

    Raises:
        DataError: a source that cannot be read, a text shorter than one window, a BOS that the tokenizer lacks, a
            window of fewer than 2 tokens, fewer than 1 window.
    """
    if window < 2 + bos or (windows is not None and windows < 1):
        raise DataError(f"{windows} windows of {window} tokens: ask for at least 1 window of at least {2 + bos} tokens")
    start = (tokenizer.bos_token_id,) if bos else ()
    if None in start:
        raise DataError(f"{source}: windows shall begin with BOS, but the tokenizer has none; leave --bos out")
    name = "built-in English prose" if str(source) == BUILTIN else Path(source).name
    found = token_windows(tokenizer, running_text(Source(str(source))), window - bos, name)[:windows]
    which = "first" if len(found) == windows else "all"
    begin = "each begun with BOS" if bos else "no BOS"
    protocol = f"{name}, {which} {len(found)} non-overlapping windows of {window} tokens, {begin}"
    return Task(name, tuple((*start, *ids) for ids in found), LanguageModel(protocol))


def _perplexity(outputs: Outputs) -> Perplexity:
    windows: list[FloatArray] = [np.asarray(window, dtype=np.float64) for window in outputs]
    if wrong := [window.shape for window in windows if window.ndim != 2 or len(window) != 2 or not window.size]:
        raise DataError(f"an output has the shape {wrong[0]}, but a language model gives (2, tokens − 1) for a window")
    nll_U = np.array([window[0].sum() for window in windows])
    return Perplexity(nll_U, np.array([float(window.shape[1]) for window in windows]))
