"""Runs the float model in the user's own library, which is the judge, and compares it with Bitwright before the work.

Bitwright reads a model by its own code. If that misses a key or a form of file, the quantized model and a float one
that Bitwright reads are wrong alike, and no comparison of the two shows it. So a process of its own runs the library on
the model's directory: first on texts that readers are known to see differently, whose tokens and outputs must be those
of Bitwright's float model; then on the texts of the verdict, so that the loss is one against the library. Of a language
model that does not fit into memory, some blocks are compared (`blockwise.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import psutil
import torch

from bitwright.errors import LibraryError, ModelError, NotFiniteError, brief
from bitwright.evaluate import Task
from bitwright.evaluate.kinds import Outputs
from bitwright.files.sentences import of_cross_encoder
from bitwright.models.load import LoadedModel
from bitwright.pipeline.blockwise import compare_blocks, compared_bytes, path_of_blocks
from bitwright.pipeline.hard_texts import hard_pairs, hard_texts
from bitwright.progress import Progress
from bitwright.runtime.library import Library
from bitwright.runtime.model import Model

# How far outputs may lie apart, relative to the longest: both compute in float32, and order sums differently.
_TOLERANCE = 1e-3
_FORWARDED = 24  # hard texts whose outputs are compared, of at most so many tokens
_FORWARDED_TOKENS = 512
_PADDED = 4  # of them in a batch of ours: those of 32 would take the memory of as many long ones


class Sides(Protocol):
    """The tasks that need the library's outputs, as in `Scored`."""

    @property
    def tuning(self) -> Task:
        """The task on which choices are made."""

    @property
    def held_out(self) -> Task:
        """The task of the verdict."""

    @property
    def elsewhere(self) -> Task | None:
        """The task that is shown beside the verdict."""


@dataclass(frozen=True, slots=True)
class Reference:
    """library: the library that judges, with its version and the compared blocks if only some were; None if there is
    none, and `why` says the reason. tuning, held_out, elsewhere: its outputs for the texts of `Scored`, None if it was
    not asked.
    """

    library: str | None
    why: str | None = None
    tuning: Outputs | None = None
    held_out: Outputs | None = None
    elsewhere: Outputs | None = None


def ask_library(
    loaded: LoadedModel, model: Model, scored: Sides, *, pairs: bool, judges: bool, progress: Progress
) -> Reference:
    """Compare the float model with the library, and if the library judges, take its outputs for the texts that decide.

    pairs: whether the model is used on pairs. judges: whether there will be a verdict.

    Raises:
        ModelError: the library reads other tokens, or gives other outputs; the message names the text and both, or the
            block.
        NotFiniteError: it gives none that are finite.
    """
    if loaded.task == "text-generation":
        if not judges:
            return Reference(None)
        needed = 4 * sum(p.numel() for p in loaded.model.parameters())
        if why := _lack(needed, "it"):
            return _block_by_block(loaded, scored, why, progress)
    progress.say("comparing the float model with the user's library (transformers or sentence-transformers)")
    try:
        with _opened(loaded) as library:
            for items in [] if loaded.task == "text-generation" else _kinds_of_items(loaded, pairs):
                _check_tokens(loaded, model, library, items)
                _check_outputs(loaded, model, library, items)
            if not judges:
                return Reference(library.name)
            tasks = (scored.tuning, scored.held_out, scored.elsewhere)
            tuning, held_out, elsewhere = (None if task is None else task.run(library.encode) for task in tasks)
            return Reference(library.name, None, tuning, held_out, elsewhere)
    except LibraryError as error:
        return Reference(None, f"the float model was not compared with the user's library ({error})")


def _block_by_block(loaded: LoadedModel, scored: Sides, why: str, progress: Progress) -> Reference:
    """Compare some blocks of a language model that does not fit in memory, if one block fits. `why`: why it does not
    fit.
    """
    not_theirs = f"the verdict compares with Bitwright's own float model, not with transformers: {why}"
    if lack := _lack(compared_bytes(loaded), "one block with the embeddings"):
        return Reference(None, f"{not_theirs}; {lack}")
    progress.say("comparing some blocks of the float model with transformers")
    try:
        with _opened(loaded, path_of_blocks(loaded)) as library:
            ids = [token for token in scored.tuning.texts[0] if isinstance(token, int)]
            return Reference(f"{library.name}, {compare_blocks(loaded, library, ids)}")
    except LibraryError as error:
        return Reference(None, f"{not_theirs}; its blocks could not be compared either ({error})")


def _lack(needed: int, what: str) -> str | None:
    """Why the machine has no room for so many bytes; None if it has."""
    free = psutil.virtual_memory().available
    if needed <= free // 2:
        return None
    return (
        f"{what} needs {needed / 1e9:.1f} GB in float32, which is more than half of the {free / 1e9:.1f} GB of free "
        "memory"
    )


def _opened(loaded: LoadedModel, blocks: str | None = None) -> Library:
    return Library(
        loaded.path, loaded.task, threads=torch.get_num_threads(), limit=loaded.max_tokens, blocks=blocks,
        trust_remote_code=loaded.trust_remote_code, cross_encoder=of_cross_encoder(loaded.sentences),
    )  # fmt: skip


def _kinds_of_items(loaded: LoadedModel, pairs: bool) -> list[Sequence[Any]]:
    texts = hard_texts(sorted(loaded.tokenizer.get_added_vocab()), loaded.max_tokens)
    if pairs and loaded.sentences.chat is not None:  # whose template may have no place for a text alone
        return [hard_pairs(texts)]
    return [texts, hard_pairs(texts)] if pairs else [texts]


def _check_tokens(loaded: LoadedModel, model: Model, library: Library, items: Sequence[Any]) -> None:
    """Compare outputs for each item. Texts that the library cuts too late for the model's positions are left out,
    because the library cannot run them.
    """
    for item, theirs, ours in zip(items, library.read(items), model.tokenize(items), strict=True):
        if theirs[0].tolist() != ours and theirs.shape[1] <= loaded.max_tokens:
            raise ModelError(
                f"{loaded.path}: {library.name} reads {brief(item)} as {brief(theirs[0].tolist())}, but Bitwright "
                f"reads it as {brief(ours)}. The result would not answer as the model does, so nothing was "
                "quantized"
            )


def _check_outputs(loaded: LoadedModel, model: Model, library: Library, items: Sequence[Any]) -> None:
    short = [n for n, ids in enumerate(model.tokenize(items)) if 0 < len(ids) <= _FORWARDED_TOKENS]
    some = [items[n] for n in dict.fromkeys([*short[:_FORWARDED], *short[-1:]])]
    theirs = dict(zip(some, _rows(library.encode(some)), strict=True))
    some = [item for item, row in theirs.items() if np.isfinite(row).all()]  # all prompt
    if not some:
        raise NotFiniteError(
            f"{loaded.path}: the outputs of {library.name} are NaN or infinite for every text that was tried; the "
            "checkpoint is damaged, or its values do not fit float32"
        )
    ours = _rows(model.encode(some, batch_size=_PADDED))
    longest = max(float(np.linalg.norm(theirs[item])) for item in some)
    for item, b in zip(some, ours, strict=True):
        a = theirs[item]
        apart = float(np.linalg.norm(a - b)) if a.shape == b.shape else float("inf")
        if not apart <= _TOLERANCE * longest:
            how = (
                f"differ by {apart / longest:.2g}"
                if a.shape == b.shape
                else f"have different shapes, {a.shape} and {b.shape}"
            )
            raise ModelError(
                f"{loaded.path}: the outputs of {library.name} and of Bitwright's float model for {brief(item)} "
                f"{how}. The result would not answer as the model does, so nothing was quantized"
            )


def _rows(outputs: Sequence[np.ndarray] | np.ndarray) -> list[np.ndarray]:
    return [np.asarray(row, np.float64) for row in outputs]
