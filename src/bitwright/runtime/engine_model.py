"""`EngineModel`: a quantized encoder on the engine. Its door imports neither torch nor transformers.

What only the Hugging Face module can give (`hf`, calling the model, logits of a language model) is loaded when it is
first asked for, and then runs the generic path.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.engine.encoders import lower_encoder, task_of
from bitwright.engine.executor import Executor, check_count
from bitwright.engine.weights import open_weights
from bitwright.errors import EngineError, ModelError, NumericsError
from bitwright.files.directory import ModelDirectory
from bitwright.files.limits import sentence_limit, tokenizer_limit
from bitwright.files.pooling import Pooling, read_pooling
from bitwright.files.tokenizer import cut, encodings_of, open_tokenizer
from bitwright.kernels import native
from bitwright.kernels.dispatch import active_isa, isa_index
from bitwright.runtime.items import Items, Tokens, Track, check_ids, check_types, refuse_long, refuse_types, texts_of

if TYPE_CHECKING:
    from bitwright.runtime.model import Model


class EngineModel:
    """An encoder whose every operator is native.

    task: what it was trained for; it decides what `encode` returns. backend: "engine:<isa>". max_tokens: longer texts
    are cut there. threads: how many `encode` uses unless told otherwise.
    """

    def __init__(self, directory: ModelDirectory, *, threads: int | None = None) -> None:
        """Raises:
        EngineError: what the engine cannot run, and why. CheckpointError: files that contradict one another.
        """
        if threads is not None:
            check_count("threads", threads)
        if native.load_error() is not None:
            raise EngineError(f"the native kernels are not available: {native.load_error()}")
        weights = open_weights(directory)
        self.directory, self.path, self.task = directory, directory.path, task_of(weights)
        self.pooling: Pooling = read_pooling(directory)
        program = lower_encoder(weights, pooling=self.pooling.modes, normalize=self.pooling.normalize)
        self.executor = Executor(program, isa_index())
        self.backend = f"engine:{active_isa()}"
        self.max_tokens = min([program.max_tokens, *tokenizer_limit(directory), *sentence_limit(directory)])
        self.threads = threads or default_threads()
        self._tokenizer = open_tokenizer(directory)
        self._generic: Model | None = None

    def encode(
        self, items: Items, *, types: Sequence[Sequence[int]] | None = None, batch_size: int = 32,
        threads: int | None = None, truncate: bool = True, track: Track = iter,
    ) -> np.ndarray | list[np.ndarray]:  # fmt: skip
        """What the model makes of each text, each pair (text, text), or each sequence of token ids.

        Embedding models: float32 (n, H), pooled and normalised as the model's own sentence-transformers files say.
        Sequence classifiers: logits, float32 (n, labels). Token classifiers: a list of n arrays (tokens, labels);
        question answering: a list of n arrays (2, tokens), the start and end logits.

        Items are taken `batch_size` at a time, those of like length together; the result is in the order of `items`.
        Sequences are never padded. Texts are cut at `max_tokens`, of a pair the longer one first. The tokens of a pair
        have the types that the tokenizer gives them, if the model has more than one.

        Args:
            truncate: cut texts that are too long, instead of refusing them.
            types: of the tokens of each item, where items are ids; by default all of type 0.
            threads: of the CPU; by default the model's.
            track: wraps the loop over batches, for a progress bar.

        Raises:
            InputError: `items` is a single string, or holds something else than `Items` says, or ids or types that the
                model does not have, or more of them than `max_tokens`; a text that is longer, unless it may be cut;
                types of texts, or not one for each id; batch_size or threads < 1.
            NumericsError: the model produced NaN or infinity.
        """
        tokens = self._tokens(items, types, batch_size, truncate)
        order = sorted(range(len(tokens.ids)), key=lambda i: -len(tokens.ids[i]))
        batches = [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]
        rows: list[np.ndarray] = [np.empty(0, np.float32)] * len(order)
        for chosen in track(batches):
            for i, row in zip(chosen, self._run(tokens.of(chosen), threads), strict=True):
                rows[i] = row
        for i, row in enumerate(rows):
            if not np.isfinite(row).all():
                raise NumericsError(
                    f"{self.path}: the output for text {i} has {int((~np.isfinite(row)).sum())} values of {row.size} "
                    "that are NaN or infinite"
                )
        if self.task in ("embedding", "sequence-classification"):
            return np.stack(rows) if rows else np.empty((0, self.executor.program.output.width), np.float32)
        return rows

    def tokenize(self, items: Items, *, batch_size: int = 32) -> list[list[int]]:
        """Token ids of each text or pair, special tokens included, cut at `max_tokens`; ids as they are.

        Raises as `encode`.
        """
        return self._tokens(items, None, batch_size, True).ids

    def _tokens(self, items: Items, types: Sequence[Sequence[int]] | None, batch_size: int, truncate: bool) -> Tokens:
        check_count("batch_size", batch_size)
        texts, n_types = texts_of(items), self.executor.program.types
        if texts is None:
            return check_types(types, check_ids(items, self.max_tokens), n_types)
        refuse_types(types)
        if self._tokenizer is None:
            raise ModelError(f"{self.path}: has no tokenizer.json; give token ids instead")
        (tokenizer, side), typed = self._tokenizer, texts[1] is not None and n_types > 1
        encodings = encodings_of(tokenizer, *texts)
        if not truncate:
            refuse_long((len(encoding) > self.max_tokens for encoding in encodings), self.max_tokens)
        rows = [cut(encoding, self.max_tokens, side, typed=typed) for encoding in encodings]
        ids = [row for row, _ in rows]
        return check_types([row or [] for _, row in rows] if typed else None, ids, n_types)

    def rows(self, ids_BT: Any, mask_BT: Any, types_BT: Any = None) -> list[np.ndarray]:
        """What `encode` gives for each sequence of a batch of token ids with its 0/1 mask: float32 arrays.

        types_BT: of tokens; None for all of type 0.
        """
        mask = np.asarray(mask_BT).astype(bool)

        def kept(values_BT: Any) -> list[list[int]]:
            return [row[keep].tolist() for row, keep in zip(np.asarray(values_BT), mask, strict=True)]

        return self._run(Tokens(kept(ids_BT), None if types_BT is None else kept(types_BT)), None)

    def _run(self, tokens: Tokens, threads: int | None) -> list[np.ndarray]:
        out = self.executor.run(tokens.ids, self.threads if threads is None else threads, types=tokens.types)
        if self.executor.program.output.per_sequence:
            return list(out)
        ends = np.cumsum([len(ids) for ids in tokens.ids])
        rows = np.split(out, ends[:-1])
        return [row.T for row in rows] if self.task == "question-answering" else rows

    @property
    def generic(self) -> "Model":
        """The same checkpoint on the generic path: a transformers module with our linears. Needs torch."""
        if self._generic is None:
            from bitwright.runtime.generic import load_generic

            self._generic = load_generic(self.directory)
        return self._generic

    @property
    def hf(self) -> Any:
        """The transformers module, on the generic path."""
        return self.generic.hf

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer."""
        return self.generic.tokenizer

    def __call__(self, **inputs: Any) -> Any:
        """The Hugging Face forward, on the generic path, without gradients."""
        return self.generic(**inputs)


def default_threads() -> int:
    """OMP_NUM_THREADS if that is set, as torch takes it; else the processors that this process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) else len(os.sched_getaffinity(0))
