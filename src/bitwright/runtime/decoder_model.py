"""`DecoderModel`: a language model on the engine. It imports neither torch nor transformers.

What only the Hugging Face module can give (`hf`, calling the model) is loaded when it is first asked for, and then runs
the generic path.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.engine.decoders import DEFAULT, Arithmetic, lower_decoder
from bitwright.engine.executor import Executor
from bitwright.engine.executor import Step as Batch
from bitwright.engine.weights import open_weights
from bitwright.errors import EngineError, InputError, ModelError, brief
from bitwright.families.tasks import TaskName
from bitwright.files.directory import ModelDirectory
from bitwright.files.sentences import read_sentences
from bitwright.files.tokenizer import open_tokenizer
from bitwright.generate.cache import CHUNK, Cache
from bitwright.generate.requests import Requests
from bitwright.generate.sampling import GENERATION_FILE, Sampling, eos_ids, generation_config, not_followed
from bitwright.generate.scheduler import Job, Scheduler
from bitwright.generate.sequence import Generation, Step
from bitwright.generate.sequence import Sequence as Request
from bitwright.generate.texts import Detokenizer
from bitwright.kernels import native
from bitwright.kernels.dispatch import active_isa, native_isa
from bitwright.kernels.processors import default_threads
from bitwright.runtime.items import Tokens
from bitwright.runtime.on_engine import OnEngine, at_most_processors
from bitwright.runtime.resident import available_bytes

if TYPE_CHECKING:
    from torch import Tensor


_SHARE = 0.25  # of the free memory, that the cache takes unless told otherwise
_MOST_CONTEXTS = 4  # whole ones, that it then holds at most


class DecoderModel(OnEngine):
    """A language model whose every operator is native: a `Model`, which also generates.

    backend: "engine:<isa>", and what the cache holds. threads: how many a step uses. max_tokens: of a prompt with its
    answer. cache: keys and values of all requests under way.
    """

    task: TaskName = "text-generation"
    n_types, width, folded, tokens_at_once, pads = 1, None, 0, None, False

    def __init__(
        self, directory: ModelDirectory, *, threads: int | None = None, trust_remote_code: bool = False,
        context: int | None = None, cache_tokens: int | None = None, arithmetic: Arithmetic = DEFAULT,
        speculate: bool = True,
    ) -> None:  # fmt: skip
        """Args:
            context: tokens of a prompt with its answer; by default what the model was trained for, if there is memory.
            cache_tokens: of all requests together. arithmetic: how what the checkpoint leaves open is computed.
            speculate: let steps check guesses of the next tokens; no answer changes.

        Raises:
            EngineError: what the engine cannot run, and why. CheckpointError: files that contradict one another.
            InputError: a cache that does not fit into memory.
        """
        self.threads = default_threads() if threads is None else at_most_processors(threads)
        if native.load_error() is not None:
            raise EngineError(f"the native kernels are not available: {native.load_error()}")
        self.directory, self.path = directory, directory.path
        self.sentences = read_sentences(directory, self.task)
        self._tokenizer = open_tokenizer(directory)
        weights = open_weights(directory, fp8=arithmetic.fp8)
        program = lower_decoder(weights, context=context, arithmetic=arithmetic)
        self.executor = Executor(program, native_isa(), cache_kind=arithmetic.cache)
        layout = self.executor.cache
        assert layout is not None
        if cache_tokens is None:
            fitting = int(available_bytes() * _SHARE) // layout.block_bytes * layout.tokens
            context_blocks = layout.blocks_of(program.max_tokens, CHUNK)  # fewer where every layer has a window
            cache_tokens = max(min(_MOST_CONTEXTS * context_blocks * layout.tokens, fitting), layout.tokens)
        executor, steps_threads, tokens = self.executor, self.threads, cache_tokens

        def scheduler() -> Scheduler:
            return Scheduler(
                lambda batch: executor.step(batch, steps_threads), Cache(layout, tokens), speculate=speculate
            )

        self._requests = Requests(scheduler)
        self.max_tokens = self.cache.longest(program.max_tokens)
        self.vocabulary = program.vocabulary
        remarks = "".join(f", {remark}" for remark in weights.remarks)
        bf16 = ", bf16" * (arithmetic.inputs == "bf16")
        self.backend = f"engine:{active_isa()}{bf16}, {arithmetic.cache} cache{remarks}"
        self.generation_config = generation_config(directory)
        self._eos, self._told = eos_ids(self.generation_config), set[str]()
        directory.forget_tensors()  # they are packed
        self._trusted = trust_remote_code

    def generate(
        self, prompts: str | Sequence[str] | Sequence[Sequence[int]], *, priority: int = 0, **asked: Any
    ) -> list[Generation]:
        """The answers to prompts, texts or token ids, computed together.

        Args:
            priority: requests of several threads share steps; lower ones come first.
            asked: `Sampling`; what is left out follows generation_config.json.

        Raises:
            InputError: a prompt that is empty or too long, or `asked` something that cannot be.
        """
        given: Sequence[str | Sequence[int]] = [prompts] if isinstance(prompts, str) else prompts
        requests = [self.request(prompt, **asked) for prompt in given]
        with self._requests.turn() as scheduler:
            jobs = [scheduler.submit(request, priority=priority) for request in requests]
        try:
            while any(request.finish_reason is None for request in requests):
                self._advance(scheduler)
        finally:
            self._let_go(jobs, scheduler)
        return [request.generation() for request in requests]

    def stream(self, prompt: str | Sequence[int], *, priority: int = 0, **asked: Any) -> Iterator[Step]:
        """What each token adds to the answer to a prompt. To stop early, close the iterator.

        Raises:
            InputError: as `generate`. NumericsError, from the iterator: logits that give no token.
        """
        return self._streamed(self.request(prompt, **asked), priority)

    def _streamed(self, request: Request, priority: int) -> Iterator[Step]:
        with self._requests.turn() as scheduler:
            job = scheduler.submit(request, priority=priority)
        try:
            while request.finish_reason is None or job.steps:
                while job.steps:
                    yield job.steps.popleft()
                if request.finish_reason is None:
                    self._advance(scheduler)
            if request.error is not None:
                raise request.error
        finally:
            self._let_go([job], scheduler)

    def request(self, prompt: str | Sequence[int], **asked: Any) -> Request:
        """A request that a scheduler takes."""
        for left_out in not_followed(self.generation_config, **asked):
            if left_out not in self._told:  # once for each model
                self._told.add(left_out)
                warnings.warn(
                    f"{self.directory.transformer / GENERATION_FILE}: {left_out} is not followed", stacklevel=3
                )
        sampling = Sampling.of(self.generation_config, **asked)
        if isinstance(prompt, str):
            (ids,) = self.read([prompt], None, typed=False, limit=None).ids
        elif isinstance(prompt, int) or not hasattr(type(prompt), "__iter__"):
            raise InputError(f"a prompt is a text or a list of token ids, not {brief(prompt)}; give a list of prompts")
        else:
            ids = list(prompt)
        detokenizer = None if self._tokenizer is None else Detokenizer(self._tokenizer.tokenizer)
        return Request(
            ids, sampling, eos_ids=self._eos, detokenizer=detokenizer, context=self.max_tokens,
            vocabulary=self.vocabulary,
        )  # fmt: skip

    def chat_prompt(self, messages: Sequence[dict[str, Any]], tools: Sequence[Any] | None = None) -> list[int]:
        """The token ids of a conversation, by the model's chat template."""
        if self._tokenizer is None:
            raise ModelError(f"{self.path}: there is no tokenizer.json")
        text = self.templates.render(messages, tools=tools)
        return list(self._tokenizer.tokenizer.encode(text, add_special_tokens=False).ids)

    def run(self, batches: Sequence[Tokens], threads: int | None = None) -> Iterator[Sequence[np.ndarray]]:
        """As `Model.run`."""
        for tokens in batches:
            yield [self._scored(ids, threads) for ids in tokens.ids]

    def logits(self, ids_BT: "Tensor") -> "Tensor":
        """As `Model.logits`."""
        import torch

        texts = ids_BT.tolist()
        parts = [out_MV.reshape(len(texts), -1, self.vocabulary) for out_MV in self._logits(texts, None)]
        return torch.from_numpy(np.concatenate(parts, axis=1))

    def _scored(self, ids: list[int], threads: int | None) -> np.ndarray:
        """float32 (2, T − 1): NLL in nats of each token after the first, and the most likely id."""
        kept, begin = np.empty((2, len(ids) - 1), np.float32), 0
        for logits_MV in self._logits([ids], threads):
            rows_MV = logits_MV[: len(ids) - 1 - begin]
            expected, place = ids[begin + 1 :][: len(rows_MV)], slice(begin, begin + len(rows_MV))
            most_M1 = rows_MV.max(axis=1, keepdims=True)
            total_M = np.exp(rows_MV - most_M1).sum(axis=1, dtype=np.float64)
            kept[0, place] = np.log(total_M) + most_M1[:, 0] - rows_MV[np.arange(len(rows_MV)), expected]
            kept[1, place] = rows_MV.argmax(axis=1)
            begin += len(logits_MV)
        return kept

    def _logits(self, texts: list[list[int]], threads: int | None) -> Iterator[np.ndarray]:
        """The logits at each token of texts of one length, part by part: float32 (texts times tokens of a part, V)."""
        length = len(texts[0])
        if length > self.max_tokens:
            raise InputError(f"a text has {length} tokens; this model takes {self.max_tokens}")
        cache, at_once = self.cache, max(CHUNK // len(texts), 1)
        if not cache.fits(length, at_once, len(texts)):
            room = cache.size * cache.layout.tokens
            raise InputError(
                f"{len(texts)} texts of {length} tokens do not fit into a cache of {room}; give fewer at once"
            )
        with self._requests.turn() as scheduler:
            cache = scheduler.cache
            held = [cache.begin([]) for _ in texts]
            try:
                for begin in range(0, length, at_once):
                    parts = [ids[begin : begin + at_once] for ids in texts]
                    for one, part in zip(held, parts, strict=True):
                        scheduler.make_room(one, len(part))
                    work = [(one, part, len(part)) for one, part in zip(held, parts, strict=True)]
                    yield self.step(cache.step(work), threads)
                    for one, ids in zip(held, texts, strict=True):
                        cache.appended(one, ids[: begin + at_once])
            finally:
                for one in held:
                    cache.end(one)

    def step(self, step: Batch, threads: int | None = None) -> np.ndarray:
        """The logits of a step that `cache` made: float32 (outputs, vocabulary). For schedulers and benchmarks."""
        return self.executor.step(step, self.threads if threads is None else at_most_processors(threads))

    @property
    def scheduler(self) -> Scheduler:
        """Whose turn it is: for those who know that no other thread asks."""
        return self._requests.scheduler

    @property
    def cache(self) -> Cache:
        """Keys and values of all requests under way."""
        return self.scheduler.cache

    def _advance(self, scheduler: Scheduler) -> None:
        """One step for all requests, of other threads too."""
        with self._requests.turn(scheduler):
            if not scheduler.idle:
                scheduler.step()

    def _let_go(self, jobs: Sequence[Job], scheduler: Scheduler) -> None:
        with self._requests.turn():
            for job in jobs:
                scheduler.cancel(job)
