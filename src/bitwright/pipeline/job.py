"""Begins a job: opens the model, resolves the recipe to a plan, and draws the texts and the metric."""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bitwright.errors import InputError
from bitwright.families.tasks import TaskName
from bitwright.files.directory import ModelDirectory, source_files
from bitwright.files.task import PAIR_TASKS
from bitwright.kernels import dispatch, native
from bitwright.models.load import LoadedModel
from bitwright.pipeline.opened import Opened, check_attention, open_model
from bitwright.pipeline.reference import Reference, ask_library
from bitwright.pipeline.request import Texts
from bitwright.pipeline.scored import Scored, doubts, draw
from bitwright.pipeline.tokenizing import NO_TOKENIZER_FILES, TokenizerFiles, tokenizer_files
from bitwright.plan import Plan
from bitwright.progress import Progress
from bitwright.quantizing.layers import needs_inputs
from bitwright.recipe import Recipe
from bitwright.runtime.changes import FloatModel
from bitwright.runtime.environment import version_of
from bitwright.runtime.library import start_library
from bitwright.search.decide import Decision
from bitwright.search.smallest import beginning, check_goal

_COMPARED_TEXTS = 1000  # of the run, which two tokenizers must read alike
_LARGE_FILE = 64 << 20  # bytes; larger files of a model are weights, which have a digest of their own


@dataclass(frozen=True, slots=True)
class Job:
    """A model with everything that is decided before anything is measured.

    recipe: what is asked, its targets named; plan: what it makes of the model. targets_fit: whether nobody named
    targets, so that those that cannot load the result go; dropped: which went, and why. model: in float, ready to run.
    source_sha256: of the weights on disk. warnings: what a reader should know of the texts. decision: what
    `method: auto` became, and why; None where the recipe names every method. tokenizer: files that the result has for
    its own. reference: what the user's own library gives, None before it was asked.
    """

    recipe: Recipe
    plan: Plan
    opened: Opened
    model: FloatModel
    scored: Scored
    source_sha256: str
    warnings: list[str]
    timings_s: dict[str, float] = field(default_factory=dict)
    decision: Decision | None = None
    tokenizer: TokenizerFiles = NO_TOKENIZER_FILES
    reference: Reference | None = None
    targets_fit: bool = False
    dropped: tuple[str, ...] = ()

    def with_recipe(self, recipe: Recipe) -> "Job":
        """The same job with another recipe for the same model, and its plan."""
        asked = recipe.model_copy(update={"targets": None}) if self.targets_fit else recipe
        return replace(self, **self.opened.resolve(asked)._asdict())

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Note how long a step took."""
        start = time.perf_counter()
        yield
        self.timings_s[step] = round(self.timings_s.get(step, 0.0) + time.perf_counter() - start, 3)

    def context(self) -> dict[str, str]:
        """Digests of everything that measurements depend on, by name."""
        scored = self.scored
        other = () if scored.elsewhere is None else scored.elsewhere.texts
        judged = [scored.tuning.texts, scored.held_out.texts, other]
        texts = [scored.tuning.name, *judged, scored.probe, scored.calibration, scored.polishing]
        machine = [
            dispatch.active_isa(),
            torch.get_num_threads(),
            *map(version_of, ("bitwright", "torch", "transformers")),
        ]
        small = [file for file in source_files(self.opened.loaded.path) if file.stat().st_size < _LARGE_FILE]
        kernels = Path(str(native.load().__file__))
        files = [(file.name, self.opened.loaded.directory.digest(file)) for file in (*sorted(small), kernels)]
        return {
            "model": _digest([self.source_sha256, files[:-1], self.opened.loaded.task]),
            "recipe": _digest(self.recipe.model_dump(mode="json", exclude={"budget"})),
            "texts": _digest([*texts, scored.sha256]),
            "machine or release": _digest([machine, files[-1]]),
        }


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _told(loaded: LoadedModel) -> list[str]:
    """The warnings about side-file settings that are not followed, and about floats that were codes."""
    unknown, told = loaded.sentences.unknown, []
    if kinds := loaded.directory.decoded_types:
        told.append(
            f"the original is what the codes of {loaded.directory.origin.name} ({', '.join(kinds)}) stand for; what "
            "that file had lost before does not count"
        )
    if unknown:
        told.append(
            f"Bitwright does not know these settings of the model's files, and ignores them: {', '.join(unknown)}"
        )
    return told


def open_job(
    name: str | Path | ModelDirectory, recipe: Recipe, texts: Texts, *, trust_remote_code: bool = False,
    task: TaskName | None = None, compares: bool = False, judged: bool = True,
) -> Job:  # fmt: skip
    """Load the model, resolve the recipe, and draw the texts. Nothing is written.

    task: as `open_model` takes it. compares: whether `compared_with_library` comes next; what it takes is begun then.
    judged: whether there will be a verdict.

    Raises:
        BitwrightError: of any kind; whatever can be known to fail later fails here.
    """
    start = time.perf_counter()
    check_goal(recipe)
    if compares:
        start_library()
    opened = open_model(name, trust_remote_code=trust_remote_code, task=task)
    recipe = beginning(recipe, language_model=opened.streams)
    resolved, loaded = opened.resolve(recipe), opened.loaded
    check_attention(recipe, resolved.plan, loaded)
    if loaded.tokenizer is None:
        raise InputError(f"encoding texts needs a tokenizer; {loaded.tokenizer_problem or f'{loaded.path} has none'}")
    model = opened.runnable()
    calibrates = any(needs_inputs(row, recipe) for row in resolved.plan)
    scored = draw(opened, model, recipe, texts, calibrates=calibrates, judged=judged)
    tasks = [task for task in (scored.tuning, scored.held_out, scored.elsewhere) if task]
    tokenizer = tokenizer_files(loaded, [text for task in tasks for text in task.texts][:_COMPARED_TEXTS])
    warnings = [
        *_told(loaded),
        *opened.known.notes(resolved.plan),
        *([tokenizer.note] if tokenizer.note else []),
        *scored.told,
        *doubts(scored),
    ]
    job = Job(
        resolved.recipe, resolved.plan, opened, model, scored, loaded.directory.fingerprint, warnings,
        targets_fit=recipe.targets is None, dropped=resolved.dropped, tokenizer=tokenizer,
    )  # fmt: skip
    job.timings_s["load"] = round(time.perf_counter() - start, 3)
    return job


def compared_with_library(job: Job, *, judges: bool, progress: Progress) -> Job:
    """The job, its float model compared with the user's own library.

    judges: whether a verdict needs the library's word.

    Raises:
        ModelError: the library reads the model's files otherwise.
    """
    loaded = job.opened.loaded
    pairs = loaded.task in PAIR_TASKS
    with job.timed("compare"):
        reference = ask_library(loaded, job.model, job.scored, pairs=pairs, judges=judges, progress=progress)
    return replace(job, reference=reference, warnings=[*job.warnings, *([reference.why] if reference.why else [])])
