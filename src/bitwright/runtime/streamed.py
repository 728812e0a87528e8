"""`StreamedModel`: a language model that runs in the memory of one block.

Every call opens the model anew, takes all windows through one block after another, and lets go of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitwright.calibration.stream import stream_outputs
from bitwright.errors import ModelError
from bitwright.files.sentences import Sentences
from bitwright.models.load import LoadedModel, materialise, release
from bitwright.runtime import encoding, scoring
from bitwright.runtime.changes import NO_CHANGES, Changes, apply_changes
from bitwright.runtime.generic_model import (
    GenericModel,
    check_ids_in,
    float_model,
    next_token_rows,
    read_texts,
    refuse_threads,
    vocabulary_of,
)
from bitwright.runtime.items import Tokens
from bitwright.runtime.pickling import reduce_model


@dataclass(frozen=True, slots=True)
class StreamedModel:
    """A float language model, or a variant of it: a `Model`. loaded: where it lies, and its tokenizer."""

    loaded: LoadedModel
    max_tokens: int
    changes: Changes = NO_CHANGES

    encode = encoding.encode
    encode_query = encoding.encode_query
    encode_document = encoding.encode_document
    tokenize = encoding.tokenize
    similarity = scoring.similarity
    predict = scoring.predict
    rank = scoring.rank

    @property
    def sentences(self) -> Sentences:
        """The source's."""
        return self.loaded.sentences

    __reduce__ = reduce_model

    def __copy__(self) -> "StreamedModel":
        """Itself: nothing of it changes, and every call opens the files anew."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "StreamedModel":
        """As `__copy__`."""
        return self

    @property
    def path(self) -> Path:
        """The source's directory."""
        return self.loaded.path

    @property
    def task(self) -> str:
        """The source's."""
        return self.loaded.task

    @property
    def backend(self) -> str:
        """As `Model` says."""
        return "blocks of torch, one in memory at a time"

    @property
    def vocabulary(self) -> int:
        """The source's."""
        return vocabulary_of(self.loaded.config)

    @property
    def n_types(self) -> int:
        """One: language models know of no types."""
        return 1

    @property
    def width(self) -> int | None:
        """None: outputs are as long as the windows."""
        return None

    @property
    def tokens_at_once(self) -> int | None:
        """Each window is a batch, whose logits are in memory alone."""
        return 1

    @property
    def folded(self) -> int:
        """None: every linear runs."""
        return 0

    @property
    def tokenizer(self) -> Any:
        """The source's."""
        return self.loaded.tokenizer

    @property
    def hf(self) -> Any:
        """The source's transformers module, whole. Raises as `generic`."""
        return self.generic.hf

    @property
    def special_ids(self) -> frozenset[int]:
        """As `Model` says."""
        return frozenset(self.tokenizer.all_special_ids)

    @property
    def generic(self) -> GenericModel:
        """The source, loaded whole, each time it is asked for.

        Raises:
            ModelError: this is a variant, which is whole nowhere.
        """
        if self.changes is not NO_CHANGES:
            raise ModelError(f"{self.path}: a variant of it that runs block by block cannot be had whole")
        whole = self.loaded.reopen()
        materialise(whole, "")
        return float_model(whole)

    def __call__(self, **inputs: Any) -> Any:
        """The Hugging Face forward of the source, whole. Raises as `generic`."""
        return self.generic(**inputs)

    def read(self, first: list[str], second: list[str] | None, *, typed: bool, limit: int | None) -> Tokens:
        """As `Model.read`."""
        return read_texts(self, first, second, typed=typed, limit=limit)

    def run(self, batches: Sequence[Tokens], threads: int | None = None) -> Iterator[Sequence[np.ndarray]]:
        """As `Model.run`; the outputs come when all batches have gone through all blocks but the last."""
        refuse_threads(threads)
        if batches:
            inputs = [torch.tensor(tokens.ids) for tokens in batches]
            for ids_BT, logits_BTV in zip(inputs, self._logits(inputs), strict=True):
                yield next_token_rows(logits_BTV, ids_BT)

    def logits(self, ids_BT: Tensor) -> Tensor:
        """As `Model.logits`."""
        return next(iter(self._logits([ids_BT])))

    def changed(self, changes: Changes) -> "StreamedModel":
        """The variant of the source that these changes make."""
        return replace(self, changes=changes)

    def _logits(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """The logits of each batch, one at a time."""
        for ids_BT in batches:
            check_ids_in(ids_BT, self.vocabulary, "token id")
        opened = self.loaded.reopen()
        apply_changes(opened.model, opened.architecture, self.changes)
        enter, leave = partial(_enter, opened, self.changes), partial(_leave, opened)
        for output in stream_outputs(opened, [{"input_ids": ids} for ids in batches], enter=enter, leave=leave):
            yield output.logits


def _enter(opened: LoadedModel, changes: Changes, paths: Sequence[str]) -> None:
    for path in paths:
        materialise(opened, path)
        apply_changes(opened.model, opened.architecture, changes, f"{path}.")


def _leave(opened: LoadedModel, paths: Sequence[str]) -> None:
    for path in paths:
        release(opened, path)
