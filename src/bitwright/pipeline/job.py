"""What every job begins with: the model, its plan, and the texts and the metric that decide."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from bitwright.calibration.data import mix, parse_sources
from bitwright.checkpoints.stored import ModelNames, model_names, require_name_in
from bitwright.checkpoints.tensor_files import TensorFiles
from bitwright.errors import DataError, InputError
from bitwright.evaluate import Task, label_free_task, load_custom, load_task, split
from bitwright.kernels import cpu
from bitwright.models.architectures import LinearSite, find_embeddings, find_linears
from bitwright.models.load import LoadedModel, fingerprint, load_model
from bitwright.numerics.spec import SCHEMES
from bitwright.plan import Plan, make_plan
from bitwright.recipe import Recipe
from bitwright.runtime.environment import version_of
from bitwright.runtime.model import Model, float_model

T = TypeVar("T")

BUILTIN_DATA = ("builtin",)
_MAX_PROBE = 200  # texts whose outputs sensitivity compares


class Progress(Protocol):
    """Tells a person how far the work is."""

    def track(self, items: Sequence[T], what: str) -> Iterator[T]:
        """Yield the items while showing how many are done."""

    def say(self, text: str) -> None:
        """One remark."""


class Quiet:
    """Tells nobody."""

    def track(self, items: Sequence[T], what: str) -> Iterator[T]:
        """Yield the items."""
        return iter(items)

    def say(self, text: str) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Where texts and the metric come from.

    data: sources for the label-free metric and for calibration, as `--data` takes them; () means built-in prose.
    evaluation: labelled data; metric: "file.py:function". With neither, agreement with the float model decides.
    samples: texts for the label-free metric, tuning and held-out together.
    """

    data: tuple[str, ...] = ()
    evaluation: str | None = None
    kind: str | None = None
    metric: str | None = None
    samples: int = 1000


@dataclass(frozen=True, slots=True)
class Job:
    """A model with all that is decided before anything is measured.

    sites: the linears that the architecture row names. calibration: texts for static ranges, on neither side of the
    split.
    probe: texts whose outputs sensitivity compares; from the tuning side. source_dtype: of the weights on disk.
    """

    loaded: LoadedModel
    model: Model
    names: ModelNames
    sites: list[LinearSite]
    embeddings: list[str]
    recipe: Recipe
    plan: Plan
    tuning: Task
    held_out: Task
    calibration: list[str]
    probe: tuple[str, ...]
    source_dtype: torch.dtype
    source_sha256: str
    trust_remote_code: bool = False
    warnings: list[str] = field(default_factory=list)
    timings_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Note how long a step took."""
        start = time.perf_counter()
        yield
        self.timings_s[step] = round(self.timings_s.get(step, 0.0) + time.perf_counter() - start, 3)

    def plan_for(self, recipe: Recipe) -> Plan:
        """The plan that another recipe makes of the same model."""
        width = self.source_dtype.itemsize
        return make_plan(recipe, self.loaded.model, self.sites, self.embeddings, width)

    def context(self) -> str:
        """A digest of everything that measurements depend on: model, recipe, texts, machine's arithmetic, versions."""
        digest = hashlib.sha256()
        parts: list[Any] = [
            self.source_sha256,
            self.recipe.model_dump(mode="json", exclude={"budget"}),
            self.tuning.name,
        ]
        parts += [self.tuning.texts, self.probe, self.calibration, cpu.active_isa(), torch.get_num_threads()]
        parts += [version_of(package) for package in ("bitwright", "torch", "transformers")]
        digest.update(json.dumps(parts).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def open_job(name: str | Path, recipe: Recipe, texts: Texts, *, trust_remote_code: bool = False) -> Job:
    """Load the model, resolve the recipe, and draw the texts. Nothing is written.

    Raises:
        BitwrightError: of any kind; whatever can be known to fail later fails here.
    """
    start = time.perf_counter()
    loaded = load_model(name, trust_remote_code=trust_remote_code)
    sites = find_linears(loaded.model, loaded.architecture)
    source_dtype = _dtype_on_disk(loaded, sites[0])
    embeddings = find_embeddings(loaded.model)
    plan = make_plan(recipe, loaded.model, sites, embeddings, source_dtype.itemsize)
    model = float_model(loaded)
    if loaded.tokenizer is None:
        raise InputError(
            f"{loaded.path}: there is no tokenizer, so texts cannot be encoded; add its files to the directory"
        )
    pool, calibration = _draw_texts(texts, recipe, needs_calibration=_needs_calibration(plan))
    task = _task(texts, loaded, pool)
    tuning, held_out = split(task, seed=recipe.seed)
    probe = (tuning.texts or tuple(pool))[:_MAX_PROBE]
    job = Job(
        loaded, model, model_names(loaded.model), sites, embeddings, recipe, plan, tuning, held_out, calibration, probe,
        source_dtype, fingerprint(loaded.path), trust_remote_code,
    )  # fmt: skip
    job.timings_s["load"] = round(time.perf_counter() - start, 3)
    return job


def _needs_calibration(plan: Plan) -> bool:
    inputs = (SCHEMES[row.scheme].input for row in plan if row.role != "embedding")
    return any(spec is not None and not spec.dynamic for spec in inputs)


def _draw_texts(texts: Texts, recipe: Recipe, *, needs_calibration: bool) -> tuple[list[str], list[str]]:
    """(texts for the label-free metric and the probe, texts for calibration): disjoint."""
    n_calibration = recipe.calibration.samples if needs_calibration else 0
    drawn = mix(parse_sources(texts.data or BUILTIN_DATA), texts.samples + n_calibration, seed=recipe.seed)
    wanted = texts.samples + n_calibration
    if n_calibration and len(drawn) < wanted:  # share what there is
        n_calibration = max(1, len(drawn) * n_calibration // wanted)
    return drawn[n_calibration:], drawn[:n_calibration]


def _task(texts: Texts, loaded: LoadedModel, pool: list[str]) -> Task:
    """The metric that decides."""
    if texts.metric is not None:
        if texts.evaluation is not None:
            raise InputError("--metric and --eval both say what decides; give one of them")
        return load_custom(texts.metric)
    if texts.evaluation is not None:
        labels = getattr(loaded.config, "id2label", None) or {}
        task = load_task(texts.evaluation, texts.kind, label_names=[labels[i] for i in sorted(labels)])
        wanted = {"embedding": "embeddings", "sequence-classification": "logits"}.get(loaded.task)
        if task.kind.outputs != wanted:
            raise DataError(
                f"{texts.evaluation}: {task.kind.name} scores {task.kind.outputs}, and this is a {loaded.task} model"
            )
        return task
    return label_free_task(pool, logits=loaded.task != "embedding")


def _dtype_on_disk(loaded: LoadedModel, site: LinearSite) -> torch.dtype:
    """The dtype of the linear weights as the source stores them."""
    files = TensorFiles(loaded.path)
    prefix = str(getattr(loaded.model, "base_model_prefix", ""))
    return files.dtype(require_name_in(files, f"{site.name}.weight", prefix, str(loaded.path)))
