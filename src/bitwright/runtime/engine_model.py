"""`EngineModel`: a quantized encoder on the engine. Its door imports neither torch nor transformers.

What only the Hugging Face module can give (`hf`, calling the model, logits of a language model) is loaded when it is
first asked for, and then runs the generic path.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from bitwright.engine.encoders import lower_encoder, task_of
from bitwright.engine.executor import Executor
from bitwright.engine.weights import Weights
from bitwright.errors import EngineError, InputError, ModelError, NumericsError
from bitwright.kernels import native
from bitwright.kernels.dispatch import active_isa, isa_index
from bitwright.models.pooling import Pooling, read_pooling
from bitwright.models.source import read_object
from bitwright.runtime.items import Items, Track, check_ids, check_texts

if TYPE_CHECKING:
    from bitwright.runtime.model import Model


class EngineModel:
    """An encoder whose every operator is native.

    task: what it was trained for; it decides what `encode` returns. backend: "engine:<isa>". max_tokens: longer texts
    are cut there. threads: how many `encode` uses unless told otherwise.
    """

    def __init__(self, directory: Path, *, threads: int | None = None) -> None:
        """Raises:
        EngineError: what the engine cannot run, and why. CheckpointError: files that contradict one another.
        """
        if threads is not None and threads < 1:
            raise InputError(f"threads = {threads}: at least 1")
        if native.load_error() is not None:
            raise EngineError(f"the native kernels are not available: {native.load_error()}")
        weights = Weights(directory)
        self.path, self.task = directory, task_of(weights)
        self.pooling: Pooling = read_pooling(directory)
        program = lower_encoder(weights, pooling=self.pooling.modes, normalize=self.pooling.normalize)
        self.executor = Executor(program, isa_index())
        self.backend = f"engine:{active_isa()}"
        self.max_tokens = min([program.max_tokens, *_limits(directory)])
        self.threads = threads or default_threads()
        self._tokenizer = _fast_tokenizer(directory, self.max_tokens)
        self._generic: Model | None = None

    def encode(
        self, items: Items, *, batch_size: int = 32, threads: int | None = None, track: Track = iter
    ) -> np.ndarray | list[np.ndarray]:
        """What the model makes of each text, or of each sequence of token ids.

        Embedding models: float32 (n, H), pooled and normalised as the model's own sentence-transformers files say.
        Sequence classifiers: logits, float32 (n, labels). Token classifiers: a list of n arrays (tokens, labels);
        question answering: a list of n arrays (2, tokens), the start and end logits.

        Items are taken `batch_size` at a time, those of like length together; the result is in the order of `items`.
        Sequences are never padded. Texts are cut at `max_tokens`.

        Args:
            threads: of the CPU; by default the model's.
            track: wraps the loop over batches, for a progress bar.

        Raises:
            InputError: `items` is a single string, or holds something that is neither text nor token ids, or ids that
                the model does not have, or more of them than `max_tokens`; batch_size or threads < 1.
            NumericsError: the model produced NaN or infinity.
        """
        tokens = self.tokenize(items, batch_size=batch_size)
        order = sorted(range(len(tokens)), key=lambda i: -len(tokens[i]))
        batches = [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]
        rows: list[np.ndarray] = [np.empty(0, np.float32)] * len(tokens)
        for chosen in track(batches):
            for i, row in zip(chosen, self._run([tokens[i] for i in chosen], threads), strict=True):
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
        """Token ids of each text, special tokens included, cut at `max_tokens`; ids as they are. Raises as `encode`."""
        if batch_size < 1:
            raise InputError(f"batch_size = {batch_size}: at least 1")
        if not check_texts(items):
            return check_ids(items, self.max_tokens)
        if self._tokenizer is None:
            raise ModelError(f"{self.path}: has no tokenizer.json; give token ids instead")
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(items))]

    def rows(self, ids_BT: Any, mask_BT: Any) -> list[np.ndarray]:
        """What `encode` gives for each sequence of a batch of token ids with its 0/1 mask: float32 arrays."""
        ids, mask = np.asarray(ids_BT), np.asarray(mask_BT).astype(bool)
        sequences = [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]
        return self._run(sequences, None)

    def _run(self, sequences: Sequence[Sequence[int]], threads: int | None) -> list[np.ndarray]:
        out = self.executor.run(sequences, self.threads if threads is None else threads)
        if self.executor.program.output.per_sequence:
            return list(out)
        ends = np.cumsum([len(ids) for ids in sequences])
        rows = np.split(out, ends[:-1])
        return [row.T for row in rows] if self.task == "question-answering" else rows

    @property
    def generic(self) -> "Model":
        """The same checkpoint on the generic path: a transformers module with our linears. Needs torch."""
        if self._generic is None:
            from bitwright.runtime.generic import load_generic

            self._generic = load_generic(self.path)
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


def _limits(directory: Path) -> Sequence[int]:
    """Tokens that a text may have, by the tokenizer's and sentence-transformers' files."""
    limits = []
    for name, key in (("tokenizer_config.json", "model_max_length"), ("sentence_bert_config.json", "max_seq_length")):
        value = read_object(directory / name).get(key) if (directory / name).is_file() else None
        if isinstance(value, int | float) and value >= 1:
            limits.append(int(value))
    return limits


def _fast_tokenizer(directory: Path, limit: int) -> Tokenizer | None:
    file = directory / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise EngineError(f"{file}: the tokenizer cannot be built ({str(error)[:200]})") from None
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit)
    return tokenizer
