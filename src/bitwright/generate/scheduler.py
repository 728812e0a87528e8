"""`Scheduler`: which tokens of which requests the next step of a model computes, and what becomes of its logits.

Every step takes the next token of each answer under way, with drafted ones behind it, and fills up with parts of
prompts. Requests join and leave between steps. What a request gets depends neither on the others nor on how its prompt
is cut: each token is computed by the same arithmetic in any company.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from bitwright.engine.executor import Step as Batch
from bitwright.errors import BitwrightError, EngineError
from bitwright.generate.cache import CHUNK, Cache, CacheFull, Held
from bitwright.generate.drafts import Drafter
from bitwright.generate.sequence import Sequence, Step

_DRAFTED_ROWS = 8  # of a step: up to about so many cost little more than one


@dataclass(slots=True, eq=False)
class Job:
    """A request in a scheduler's hands.

    priority: lower ones come first, among equals the older. ids: prompt and answer so far. held: its part of the cache;
    None while it waits, or once it was put back because others needed the memory. steps: what came of it, for whoever
    takes them out.
    """

    sequence: Sequence
    priority: int
    number: int
    ids: list[int]
    drafter: Drafter | None
    held: Held | None = None
    draft: list[int] = field(default_factory=list)
    steps: deque[Step] = field(default_factory=deque)

    @property
    def pending(self) -> int:
        """Tokens that the cache does not hold yet."""
        return len(self.ids) - (self.held.length if self.held else 0)


class Scheduler:
    """One model's requests. One thread at a time may use it.

    Args:
        run: computes a step: float32 (outputs, vocabulary).
        chunk: tokens of prompts in a step, at most `CHUNK`.
        speculate: draft tokens by what prompt and answer held before (`generate/drafts.py`).
    """

    def __init__(
        self, run: Callable[[Batch], np.ndarray], cache: Cache, *, chunk: int = CHUNK, speculate: bool = True
    ) -> None:
        self.cache, self._run, self._chunk, self._speculate = cache, run, chunk, speculate
        self._jobs: list[Job] = []
        self._numbers = count()
        self.steps = self.drafted = self.accepted = self.preempted = 0

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return not self._jobs

    def submit(self, sequence: Sequence, *, priority: int = 0) -> Job:
        """Take a request in; its first step comes with the next `step`."""
        ids = sequence.prompt_ids.tolist()
        drafter = Drafter(ids) if self._speculate else None
        job = Job(sequence, priority, next(self._numbers), ids, drafter)
        self._jobs.append(job)
        self._jobs.sort(key=lambda job: (job.priority, job.number))
        return job

    def cancel(self, job: Job) -> None:
        """Let go of a request, finished or not."""
        if job in self._jobs:
            self._jobs.remove(job)
        self._put_back(job)

    def step(self) -> None:
        """Compute one step. Requests that are finished leave.

        Raises:
            MemoryError: the system has none for it. All requests are as before.
        """
        work = self._chosen()
        if not work:
            if self._jobs:
                raise EngineError("no request fits into the cache")
            return
        wanted = [self._wanted(job, tokens) for job, tokens in work]
        batch = [(_held(job), self._new_ids(job, tokens), n) for (job, tokens), n in zip(work, wanted, strict=True)]
        logits_OV = self._run(self.cache.step(batch))
        self.steps += 1
        rows = iter(logits_OV)
        for (job, tokens), n in zip(work, wanted, strict=True):
            self._take(job, tokens, [next(rows) for _ in range(n)])
        for job in [job for job in self._jobs if job.sequence.finish_reason is not None]:
            self.cancel(job)

    def make_room(self, held: Held, tokens: int, job: Job | None = None) -> bool:
        """Give a sequence blocks for its next tokens: those of the jobs last in line, if none is free.

        Returns:
            False if `job`, whose sequence it is, is last itself, and was put back.

        Raises:
            CacheFull: nobody is left to give any.
        """
        while True:
            try:
                self.cache.grow(held, tokens)
                return True
            except CacheFull:
                last = next((other for other in reversed(self._jobs) if other.held is not None), None)
                if last is None:
                    raise
            self._put_back(last)
            self.preempted += 1
            if last is job:
                return False

    def _chosen(self) -> list[tuple[Job, int]]:
        """Jobs of the next step, and how many tokens of each; they have room in the cache."""
        work: list[tuple[Job, int]] = []
        answering = [job for job in self._jobs if job.held and job.pending == 1]
        spare = max(_DRAFTED_ROWS - len(answering), 0)
        for job in answering:
            if job.held is None:  # put back for an older one
                continue
            most = min(spare, job.sequence.remaining - 1, self.cache.layout.undone)
            job.draft = job.drafter.draft(most) if job.drafter and most > 0 else []
            if self.make_room(job.held, 1 + len(job.draft), job):
                spare -= len(job.draft)
                work.append((job, 1 + len(job.draft)))
        left = self._chunk
        for job in self._jobs:
            if left <= 0:
                break
            if (job.held and job.pending == 1) or any(job is other for other, _ in work):
                continue
            begun = job.held is not None
            if job.held is None:
                job.held = self.cache.begin(job.ids)
            tokens = min(job.pending, left)
            try:
                self.cache.grow(job.held, tokens)
            except CacheFull:
                if not begun:
                    self._put_back(job)
                break  # until another leaves: those behind it wait too
            job.draft = []
            work.append((job, tokens))
            left -= tokens
        if not work and self._jobs:
            return self._forced()
        return work

    def _forced(self) -> list[tuple[Job, int]]:
        """The first job alone, for whose next tokens all others give their blocks back."""
        first, *others = self._jobs
        for job in others:
            self.preempted += job.held is not None
            self._put_back(job)
        if first.held is None:
            first.held = self.cache.begin(first.ids)
        tokens = min(first.pending, self._chunk)
        try:
            self.cache.grow(first.held, tokens)
        except CacheFull:
            return []
        first.draft = []
        return [(first, tokens)]

    def _put_back(self, job: Job) -> None:
        if job.held is not None:
            self.cache.end(job.held)
            job.held = None

    def _new_ids(self, job: Job, tokens: int) -> list[int]:
        length = _held(job).length
        return (job.ids[length:] + job.draft)[:tokens]

    def _wanted(self, job: Job, tokens: int) -> int:
        """How many of a job's new tokens have logits that are wanted: none while its prompt is not complete."""
        return 1 + len(job.draft) if tokens >= job.pending else 0

    def _take(self, job: Job, tokens: int, logits: list[np.ndarray]) -> None:
        """Logits become tokens, as long as these are those that were drafted."""
        held, before = _held(job), len(job.ids)
        if not logits:
            self.cache.appended(held, job.ids[: held.length + tokens])
            return
        kept = 0
        for row, expected in zip(logits, [*job.draft, None], strict=True):
            step = self._next(job, row)
            job.steps.append(step)
            if step.id is not None:
                job.ids.append(step.id)
            if step.id is None or step.finish_reason is not None or step.id != expected:
                break
            kept += 1
        if job.drafter is not None:
            job.drafter.learn(job.ids[before:], len(job.draft), kept)
        self.drafted += len(job.draft)
        self.accepted += kept
        self.cache.appended(held, job.ids[: before + kept])

    def _next(self, job: Job, logits_V: np.ndarray) -> Step:
        try:
            return job.sequence.take(logits_V)
        except BitwrightError as error:  # of this request: the others go on
            return job.sequence.fail(error)


def _held(job: Job) -> Held:
    assert job.held is not None
    return job.held
