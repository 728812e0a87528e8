"""`StreamedModel`: a model that runs in the memory of one block.

Every call fills what is outside the blocks, takes all texts or windows through one block after another, and empties it
again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitwright.calibration.stream import Visit, stream_outputs
from bitwright.errors import ModelError
from bitwright.files.sentences import Sentences
from bitwright.generate.chat import ChatTemplates
from bitwright.models.heap import trim_heap
from bitwright.models.load import LoadedModel, lent, materialise, release
from bitwright.runtime import encoding, scoring
from bitwright.runtime.changes import NO_CHANGES, Changes, apply_changes
from bitwright.runtime.generic_model import (
    GenericModel,
    check_inputs,
    float_model,
    next_token_rows,
    output_rows,
    output_width,
    padded,
    read_texts,
    refuse_threads,
    types_of,
    vocabulary_of,
)
from bitwright.runtime.items import Tokens
from bitwright.runtime.pickling import reduce_model
from bitwright.runtime.swap import set_compute


@dataclass(frozen=True, slots=True)
class StreamedModel:
    """A `Model` that is a float model or a variant of it. loaded: its directory and its tokenizer."""

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
        """Itself, because nothing in it changes, and every call opens the files again."""
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
        """As `Model` says; language models know of no types."""
        return 1 if self._generates else types_of(self.loaded.config)

    @property
    def width(self) -> int | None:
        """As `Model` says."""
        return output_width(self.loaded.config, self.task, self.sentences)

    @property
    def tokens_at_once(self) -> int | None:
        """1, so that each window is a batch and memory holds the logits of one window."""
        return 1 if self._generates or self.sentences.answers is not None else None

    @property
    def pads(self) -> bool:
        """They are, where they differ."""
        return True

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
        return frozenset() if self.tokenizer is None else frozenset(self.tokenizer.all_special_ids)

    @property
    def generic(self) -> GenericModel:
        """The whole source, which is loaded on each access.

        Raises:
            ModelError: this is a variant, which is whole nowhere.
        """
        if self.changes is not NO_CHANGES:
            raise ModelError(
                f"{self.path}: this variant of the model runs only block by block, so it cannot be loaded whole"
            )
        whole = self.loaded.reopen()
        materialise(whole, "")
        return float_model(whole)

    def __call__(self, **inputs: Any) -> Any:
        """The Hugging Face forward of the source, whole. Raises as `generic`."""
        return self.generic(**inputs)

    @property
    def templates(self) -> ChatTemplates | None:
        """The source's."""
        return None if self.sentences.chat is None else ChatTemplates(self.loaded.directory)

    def read(
        self, first: list[str], second: list[str] | None, *, typed: bool, limit: int | None, special: bool = True
    ) -> Tokens:  # fmt: skip
        """As `Model.read`."""
        return read_texts(self, first, second, typed=typed, limit=limit, special=special)

    def run(self, batches: Sequence[Tokens], threads: int | None = None) -> Iterator[Sequence[np.ndarray]]:
        """As `Model.run`. The outputs come after all batches have passed all blocks except the last."""
        refuse_threads(threads)
        if not batches:
            return
        if self._generates:
            inputs = [{"input_ids": torch.tensor(tokens.ids)} for tokens in batches]
            for batch, out in zip(inputs, self._outputs(inputs), strict=True):
                yield next_token_rows(out.logits, batch["input_ids"])
        elif self.changes is NO_CHANGES and self._fits_better_whole(batches):
            with lent(self.loaded) as opened:
                materialise(opened, "")
                yield from float_model(opened).run(batches)
        else:
            inputs = [padded(tokens, self.loaded.config) for tokens in batches]
            for tokens, batch, out in zip(batches, inputs, self._outputs(inputs), strict=True):
                yield output_rows(out, batch["attention_mask"], self.task, self.sentences, tokens.skip)

    def logits(self, ids_BT: Tensor) -> Tensor:
        """As `Model.logits`."""
        found: Tensor = next(iter(self._outputs([{"input_ids": ids_BT}]))).logits
        return found

    def window_logits(self, windows: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """The logits of a language model for each window: float32 (T, V), one after another. All windows pass a block
        before the next is read. Linears and attention run in bf16 if the CPU multiplies it.
        """
        batches = [{"input_ids": torch.tensor([list(window)])} for window in windows]
        for out in self._outputs(batches, fast=True):
            yield out.logits[0]

    def changed(self, changes: Changes) -> "StreamedModel":
        """The variant of the source with these changes."""
        return replace(self, changes=changes)

    @property
    def _generates(self) -> bool:
        return self.task == "text-generation"

    def _fits_better_whole(self, batches: Sequence[Tokens]) -> bool:
        """Whether the hidden states of all batches together need more memory than the model."""
        tokens = sum(len(batch.ids) * max(map(len, batch.ids)) for batch in batches)
        width: int = self.loaded.config.hidden_size
        return tokens * width > sum(p.numel() for p in self.loaded.model.parameters())

    def _outputs(self, batches: Sequence[Mapping[str, Tensor]], *, fast: bool = False) -> Iterator[Any]:
        """The outputs of the forward for each batch, one at a time. fast: as `stream_outputs` takes it."""
        for batch in batches:
            check_inputs(batch, self.loaded.config)
        # As a loaded checkpoint computes beside its linears; perplexity is judged in float32.
        exact = self._generates or self.sentences.answers is not None
        compute = "auto" if self.changes.swaps and not exact else "float32"
        with lent(self.loaded) as opened:
            _change(opened, self.changes, compute, "")
            enter, leave = partial(_enter, opened, self.changes, compute), partial(_leave, opened)
            yield from stream_outputs(opened, batches, visit=Visit(enter, leave), fast=fast)
        del opened, enter, leave  # another one, it may be
        trim_heap()


def _change(opened: LoadedModel, changes: Changes, compute: str, path: str) -> None:
    """Make the changes in modules at `path` and below that have values."""
    apply_changes(opened.model, opened.architecture, changes, f"{path}." if path else "")
    set_compute(opened.model.get_submodule(path), compute)


def _enter(opened: LoadedModel, changes: Changes, compute: str, paths: Sequence[str]) -> None:
    for path in paths:
        materialise(opened, path)
        _change(opened, changes, compute, path)


def _leave(opened: LoadedModel, paths: Sequence[str]) -> None:
    for path in paths:
        release(opened, path)
