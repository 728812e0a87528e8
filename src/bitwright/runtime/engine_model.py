"""`EngineModel`: a model of whole texts on the engine: an encoder, or a decoder that embeds texts or scores them. It
imports neither torch nor transformers.

What only the Hugging Face module can give (`hf`, calling the model, logits of a language model) is loaded when it is
first asked for, and then runs the generic path.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bitwright.engine.builders import encoder_task, has_position_table, lower_encoder, unread_at_the_end
from bitwright.engine.executor import Executor
from bitwright.engine.fp8 import Fp8
from bitwright.engine.linears import Inputs
from bitwright.engine.weights import open_weights
from bitwright.errors import EngineError
from bitwright.files.directory import CONFIG_FILE, ModelDirectory
from bitwright.files.limits import length_limit, text_limit, tokenizer_limit
from bitwright.files.pooling import pool_rows
from bitwright.files.sentences import after_pooling, engine_pooling, read_sentences, width_of
from bitwright.files.tokenizer import open_tokenizer
from bitwright.kernels import native
from bitwright.kernels.dispatch import active_isa, native_isa
from bitwright.kernels.processors import default_threads
from bitwright.runtime.items import Tokens
from bitwright.runtime.on_engine import OnEngine, at_most_processors

if TYPE_CHECKING:
    from torch import Tensor


_POSITIONS = "max_position_embeddings"


class EngineModel(OnEngine):
    """A model of whole texts whose every operator is native: a `Model`.

    backend: "engine:<isa>", and where attention is computed in int8, if anywhere. threads: how many `encode` uses
    unless told otherwise. More than the process may use processors (`usable_processors`) are taken as so many: they
    wait for each other by spinning, for the processor too.
    """

    def __init__(
        self, directory: ModelDirectory, *, threads: int | None = None, trust_remote_code: bool = False,
        float_attention: bool = False, inputs: Inputs = "int8", fp8: Fp8 = "bf16",
    ) -> None:  # fmt: skip
        """trust_remote_code: for the generic path, which is loaded only when it is needed. float_attention: compute
        attention in float, whatever the checkpoint says. inputs: of linears of at most 4 bits, where the file leaves
        them in 16 bits. fp8: how FP8 linears are held.

        Raises:
            EngineError: what the engine cannot run, and why. CheckpointError: files that contradict one another.
        """
        self.threads = default_threads() if threads is None else at_most_processors(threads)
        if native.load_error() is not None:
            raise EngineError(f"the native kernels are not available: {native.load_error()}")
        self._float_attention, self._inputs, self._fp8 = float_attention, inputs, fp8
        self._unpooled: Executor | None = None
        weights = open_weights(directory, float_attention=float_attention, fp8=fp8)
        self.directory, self.path, self.task = directory, directory.path, encoder_task(weights)
        self.sentences = read_sentences(directory, self.task)
        modes, normalize = engine_pooling(self.sentences)
        if self.sentences.chat is not None:
            _ = self.templates  # read now, as all files are
        program = lower_encoder(weights, pooling=modes, normalize=normalize, inputs=inputs)
        self._unread = unread_at_the_end(weights)
        self.executor = Executor(program, native_isa())
        remarks = "".join(f", {remark}" for remark in weights.remarks)
        bf16 = ", bf16" * (inputs == "bf16")
        self.backend = f"engine:{active_isa()}{bf16}{_attention_words(program.int8_attention)}{remarks}"
        trained = length_limit(directory.config.get(_POSITIONS), directory.transformer / CONFIG_FILE, _POSITIONS)
        rows = [program.max_tokens] if has_position_table(weights) else []
        self.max_tokens = text_limit(self.sentences, tokenizer_limit(directory), trained, rows)
        self.vocabulary, self.n_types, self.folded = program.vocabulary, program.types, program.folded
        width = program.output.width
        self.width = width if program.output.per == "sequence" else None
        if self.task == "embedding":
            self.width = width_of(self.sentences, width // len(modes) if modes else width)
        self.tokens_at_once, self.pads = None, False
        self._tokenizer = open_tokenizer(directory, lowers=self.sentences.lower_case)
        directory.forget_tensors()  # they are packed
        self._trusted = trust_remote_code

    def run(self, batches: Sequence[Tokens], threads: int | None = None) -> Iterator[Sequence[np.ndarray]]:
        """As `Model.run`."""
        threads = self.threads if threads is None else at_most_processors(threads)
        for given in batches:
            tokens = given if self._unread is None else _ending_before(self._unread, given)
            if max(map(len, tokens.ids), default=0) > self.executor.program.max_tokens:
                yield self._with_longer(tokens, threads)
            else:
                yield self._outputs(self.executor.run(tokens.ids, threads, types=tokens.types), tokens)

    def _with_longer(self, tokens: Tokens, threads: int) -> Sequence[np.ndarray]:
        """Run a batch in which some sequences are longer than the program's positions. Those run on the generic path,
        one by one. Only models without a position table and without a tokenizer limit get such sequences.
        """
        most, found = self.executor.program.max_tokens, {}
        short = [i for i, ids in enumerate(tokens.ids) if len(ids) <= most]
        for i in sorted(set(range(len(tokens.ids))) - set(short)):
            (rows,) = self.generic.run([tokens.of([i])])
            found[i] = rows[0]
        if short:
            (rows,) = self.run([tokens.of(short)], threads)
            found |= zip(short, rows, strict=True)
        return [found[i] for i in range(len(tokens.ids))]

    def _outputs(self, out: np.ndarray, tokens: Tokens) -> Sequence[np.ndarray]:
        """The outputs from the program's rows, which are one per item or one per token."""
        if self.executor.program.output.per == "sequence":
            return list(after_pooling(self.sentences, out))
        rows = np.split(out, np.cumsum([len(ids) for ids in tokens.ids])[:-1])
        if self.task == "embedding":
            pooled = [pool_rows(row, self.sentences.pooling, tokens.skip) for row in rows]
            return list(after_pooling(self.sentences, np.stack(pooled)))
        return [row.T for row in rows] if self.task == "question-answering" else rows

    def token_vectors(self, tokens: Tokens) -> list[np.ndarray]:
        """What the last block of an embedding model gives for each token: float32 (T, H) of each sequence.

        A program that pools has no such rows, so the first call packs the weights a second time.

        Raises:
            InputError: as `Model.run`.
        """
        if self._unpooled is None:
            pools = self.executor.program.output.per == "sequence"
            self._unpooled = self._without_pooling() if pools else self.executor
        if max(map(len, tokens.ids), default=0) > self._unpooled.program.max_tokens:
            return self.generic.token_vectors(tokens)
        rows = self._unpooled.run(tokens.ids, self.threads, types=tokens.types)
        return np.split(rows, np.cumsum([len(ids) for ids in tokens.ids])[:-1])

    def _without_pooling(self) -> Executor:
        weights = open_weights(self.directory, float_attention=self._float_attention, fp8=self._fp8)
        executor = Executor(lower_encoder(weights, pooling=None, inputs=self._inputs), native_isa())
        self.directory.forget_tensors()
        return executor

    def logits(self, ids_BT: "Tensor") -> "Tensor":
        """As `Model.logits`, on the generic path."""
        return self.generic.logits(ids_BT)


def _ending_before(token: int, tokens: Tokens) -> Tokens:
    """Texts without those of their last tokens that are this one, but never without a token."""

    def length(ids: list[int]) -> int:
        return next((place for place in range(len(ids), 0, -1) if ids[place - 1] != token), 1)

    return tokens._replace(ids=[ids[: length(ids)] for ids in tokens.ids])


def not_on_engine(directory: ModelDirectory) -> str:
    """Why the engine does not run a model, quantized or not; "" if it does.

    Raises:
        CheckpointError, ModelError: as `EngineModel`.
    """
    try:
        EngineModel(directory)
    except EngineError as error:
        return str(error)
    return ""


def _attention_words(int8: Sequence[bool]) -> str:
    """The part of `backend` about attention. int8: of each layer, whether its attention is computed so."""
    if not any(int8):
        return ""
    return ", int8 attention" if all(int8) else f", int8 attention in {sum(int8)} of {len(int8)} layers"
