"""`EngineModel`: a quantized encoder on the engine. Its door imports neither torch nor transformers.

What only the Hugging Face module can give (`hf`, calling the model, logits of a language model) is loaded when it is
first asked for, and then runs the generic path.
"""

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.engine.builders import encoder_task, lower_encoder
from bitwright.engine.executor import Executor, check_count
from bitwright.engine.weights import open_weights
from bitwright.errors import EngineError, ModelError
from bitwright.files.directory import ModelDirectory
from bitwright.files.limits import sentence_limit, tokenizer_limit
from bitwright.files.pooling import Pooling
from bitwright.files.task import pooling_for
from bitwright.files.tokenizer import encodings_of, open_tokenizer
from bitwright.kernels import native
from bitwright.kernels.dispatch import active_isa, native_isa
from bitwright.runtime import encoding
from bitwright.runtime.items import Tokens, cut_all

if TYPE_CHECKING:
    from torch import Tensor

    from bitwright.runtime.generic_model import GenericModel


class EngineModel:
    """An encoder whose every operator is native: a `Model`.

    backend: "engine:<isa>". threads: how many `encode` uses unless told otherwise.
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
        self.directory, self.path, self.task = directory, directory.path, encoder_task(weights)
        self.pooling: Pooling = pooling_for(directory, self.task)
        program = lower_encoder(weights, pooling=self.pooling.modes, normalize=self.pooling.normalize)
        self.executor = Executor(program, native_isa())
        self.backend = f"engine:{active_isa()}"
        self.max_tokens = min([program.max_tokens, *tokenizer_limit(directory), *sentence_limit(directory)])
        self.n_types, self.folded = program.types, program.folded
        self.width = program.output.width if program.output.per_sequence else None
        self.tokens_at_once = None  # sequences are never padded
        self.threads = threads or default_threads()
        self._tokenizer = open_tokenizer(directory)
        directory.forget_tensors()  # they are packed
        self._generic: GenericModel | None = None

    encode = encoding.encode
    tokenize = encoding.tokenize

    def read(self, first: list[str], second: list[str] | None, *, typed: bool, limit: int | None) -> Tokens:
        """As `Model.read`."""
        if self._tokenizer is None:
            raise ModelError(f"{self.path}: has no tokenizer.json; give token ids instead")
        tokenizer, side = self._tokenizer
        return cut_all(encodings_of(tokenizer, first, second, self.path), limit, side, typed=typed)

    def run(self, batches: Sequence[Tokens], threads: int | None = None) -> Iterator[Sequence[np.ndarray]]:
        """As `Model.run`."""
        for tokens in batches:
            out = self.executor.run(tokens.ids, self.threads if threads is None else threads, types=tokens.types)
            if self.executor.program.output.per_sequence:
                yield list(out)
                continue
            ends = np.cumsum([len(ids) for ids in tokens.ids])
            rows = np.split(out, ends[:-1])
            yield [row.T for row in rows] if self.task == "question-answering" else rows

    @property
    def generic(self) -> "GenericModel":
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

    def logits(self, ids_BT: "Tensor") -> "Tensor":
        """As `Model.logits`, on the generic path."""
        return self.generic.logits(ids_BT)

    def __call__(self, **inputs: Any) -> Any:
        """The Hugging Face forward, on the generic path, without gradients."""
        return self.generic(**inputs)


def default_threads() -> int:
    """OMP_NUM_THREADS if that is set, as torch takes it; else the processors that this process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) else len(os.sched_getaffinity(0))
