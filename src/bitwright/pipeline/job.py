"""What every job begins with: the model, its plan, and the texts and the metric that decide."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from bitwright.calibration.data import LEAST_CALIBRATION_TEXTS, mix, parse_sources, require_texts
from bitwright.checkpoints.stored import ModelNames, model_names, require_name_in
from bitwright.errors import DataError, InputError
from bitwright.evaluate import Task, label_free_task, load_custom, load_task, shared_texts, split
from bitwright.kernels import cpu, native
from bitwright.models.architectures import LinearSite, find_embeddings, find_linears
from bitwright.models.load import LoadedModel, fingerprint, load_model, source_files
from bitwright.models.tensor_files import TensorFiles
from bitwright.numerics.spec import SCHEMES
from bitwright.pipeline.request import Texts
from bitwright.plan import Plan, make_plan
from bitwright.recipe import Recipe
from bitwright.runtime.environment import version_of
from bitwright.runtime.model import Model, float_model

T = TypeVar("T")

BUILTIN_DATA = ("builtin",)
_MAX_PROBE = 200  # texts whose outputs sensitivity compares
_LARGE_FILE = 64 << 20  # bytes; larger files of a model are weights, which have a digest of their own


@dataclass(frozen=True, slots=True)
class Job:
    """A model with all that is decided before anything is measured.

    sites: the linears that the architecture row names. calibration: texts for static ranges, on neither side of the
    split. probe: texts whose outputs sensitivity compares; from the tuning side. source_dtype: of the weights on disk.
    evaluation_sha256: of the labels, or of the user's metric. warnings: what a reader of the result should know.
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
    evaluation_sha256: str
    trust_remote_code: bool
    warnings: list[str]
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
        """A digest of everything that measurements depend on: every file of the model, the recipe, the texts and what
        they are scored against, the kernels and the threads that run them, versions.
        """
        digest = hashlib.sha256()
        parts: list[Any] = [self.source_sha256, self.recipe.model_dump(mode="json", exclude={"budget"})]
        parts += [self.tuning.name, self.tuning.texts, self.probe, self.calibration, self.evaluation_sha256]
        parts += [cpu.active_isa(), torch.get_num_threads(), *map(version_of, ("bitwright", "torch", "transformers"))]
        digest.update(json.dumps(parts).encode("utf-8", "surrogatepass"))
        small = [file for file in source_files(self.loaded.path) if file.stat().st_size < _LARGE_FILE]
        kernels = Path(str(native.load().__file__))
        for file in (*sorted(small), kernels):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
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
            f"texts cannot be encoded without a tokenizer; {loaded.tokenizer_problem or f'{loaded.path} has none'}"
        )
    labelled = _labelled_task(texts, loaded)
    pool, calibration = _draw_texts(texts, recipe, labelled, needs_calibration=_needs_calibration(plan))
    task = labelled or agreement_task(loaded, pool)
    tuning, held_out = split(task, seed=recipe.seed)
    probe = (tuning.texts or tuple(pool))[:_MAX_PROBE]
    job = Job(
        loaded, model, model_names(loaded.model), sites, embeddings, recipe, plan, tuning, held_out, calibration, probe,
        source_dtype, fingerprint(loaded.path), _evaluation_sha256(texts), trust_remote_code, _doubts(tuning, held_out),
    )  # fmt: skip
    job.timings_s["load"] = round(time.perf_counter() - start, 3)
    return job


def agreement_task(loaded: LoadedModel, texts: Sequence[str], name: str = "label-free") -> Task:
    """Agreement with the float model on `texts`, in the way that fits what the model puts out."""
    return label_free_task(
        texts,
        logits=loaded.task != "embedding",
        multi_label=getattr(loaded.config, "problem_type", None) == "multi_label_classification",
        n_labels=loaded.config.num_labels,
        name=name,
    )


def _needs_calibration(plan: Plan) -> bool:
    inputs = (SCHEMES[row.scheme].input for row in plan if row.role != "embedding")
    return any(spec is not None and not spec.dynamic for spec in inputs)


def _draw_texts(
    texts: Texts, recipe: Recipe, labelled: Task | None, *, needs_calibration: bool
) -> tuple[list[str], list[str]]:
    """(texts for the label-free metric or the probe, texts for calibration): disjoint, and none that is scored.

    Raises:
        DataError: fewer calibration texts than make sense.
    """
    n_pool = texts.samples if labelled is None else 0 if labelled.texts else _MAX_PROBE
    n_calibration = recipe.calibration.samples if needs_calibration else 0
    if n_pool + n_calibration == 0:
        return [], []
    scored = set(labelled.texts) if labelled else set()
    wanted = n_pool + n_calibration
    drawn = mix(parse_sources(texts.data or BUILTIN_DATA), wanted + len(scored), seed=recipe.seed)
    drawn = [text for text in drawn if text not in scored][:wanted]
    if len(drawn) < wanted:  # both get their share of what there is
        n_calibration = len(drawn) * n_calibration // wanted
    if needs_calibration:
        require_texts(drawn[:n_calibration], LEAST_CALIBRATION_TEXTS, "static ranges")
    return drawn[n_calibration:], drawn[:n_calibration]


def _labelled_task(texts: Texts, loaded: LoadedModel) -> Task | None:
    """The metric that the user gave, if any."""
    if texts.metric is not None:
        if texts.evaluation is not None:
            raise InputError("--metric and --eval both say what decides; give one of them")
        return load_custom(texts.metric)
    if texts.evaluation is None:
        return None
    labels = getattr(loaded.config, "id2label", None) or {}
    task = load_task(texts.evaluation, texts.kind, label_names=[labels[i] for i in sorted(labels)])
    wanted = {"embedding": "embeddings", "sequence-classification": "logits"}.get(loaded.task)
    if task.kind.outputs != wanted:
        raise DataError(
            f"{texts.evaluation}: {task.kind.name} scores {task.kind.outputs}, and this is a {loaded.task} model"
        )
    return task


def _doubts(tuning: Task, held_out: Task) -> list[str]:
    """What a reader of the verdict should know of the split."""
    if shared := len(shared_texts(tuning, held_out)):
        return [f"{shared} texts occur in the tuning and in the held-out data: they tie too many examples together"]
    return []


def _evaluation_sha256(texts: Texts) -> str:
    """A digest of the files that hold the labels, or the code of the user's metric."""
    digest = hashlib.sha256(str(texts.kind).encode())
    place = texts.evaluation or (texts.metric or "").rpartition(":")[0]
    path = Path(place)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files if place else []:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _dtype_on_disk(loaded: LoadedModel, site: LinearSite) -> torch.dtype:
    """The dtype of the linear weights as the source stores them."""
    files = TensorFiles(loaded.path)
    prefix = str(getattr(loaded.model, "base_model_prefix", ""))
    return files.dtype(require_name_in(files, f"{site.name}.weight", prefix, str(loaded.path)))
