"""What every job begins with: the model, its plan, and the texts and the metric that decide."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from bitwright.calibration.data import LEAST_CALIBRATION_TEXTS, mix, parse_sources, require_texts
from bitwright.calibration.windows import Window, mix_windows
from bitwright.checkpoints.stored import ModelNames, model_names, require_name_in
from bitwright.errors import DataError, InputError
from bitwright.evaluate import Task, label_free_task, load_custom, load_task, shared_texts, split
from bitwright.evaluate.kinds import Items
from bitwright.evaluate.language import WINDOW, WINDOWS, LanguageModel, language_task
from bitwright.families.tasks import task_of
from bitwright.kernels import dispatch, native
from bitwright.models.hub import fetch
from bitwright.models.lazy import open_lazily
from bitwright.models.load import (
    LoadedModel,
    fingerprint,
    load_model,
    max_tokens,
    read_config,
    source_files,
)
from bitwright.models.sites import LinearSite, find_embeddings, find_linears
from bitwright.models.tensor_files import TensorFiles
from bitwright.pipeline.request import Texts
from bitwright.plan import Plan, make_plan
from bitwright.quantizing.layers import needs_inputs
from bitwright.recipe import Recipe
from bitwright.runtime.environment import version_of
from bitwright.runtime.model import Model, float_model
from bitwright.runtime.streamed import StreamedModel
from bitwright.search.decide import Decision

T = TypeVar("T")
AnyModel = Model | StreamedModel

BUILTIN_DATA = ("builtin",)
_MAX_WINDOWS = 64  # of a language model, tuning and held-out together
_MAX_PROBE = 200  # texts whose outputs sensitivity compares
_LARGE_FILE = 64 << 20  # bytes; larger files of a model are weights, which have a digest of their own


@dataclass(frozen=True, slots=True)
class Job:
    """A model with all that is decided before anything is measured.

    loaded: whole; of a language model, which runs block by block, without values. sites: the linears that the
    architecture row names. calibration: texts, or windows of token ids, that methods look at, on neither side of the
    split. probe: texts whose outputs sensitivity compares; from the tuning side. source_dtype: of the weights on disk.
    evaluation_sha256: of the labels, or of the user's metric. warnings: what a reader of the result should know.
    decision: what `method: auto` became, and why; None where the recipe names every method.
    """

    loaded: LoadedModel
    model: AnyModel
    names: ModelNames
    sites: list[LinearSite]
    embeddings: list[str]
    recipe: Recipe
    plan: Plan
    tuning: Task
    held_out: Task
    calibration: Items
    probe: Items
    source_dtype: torch.dtype
    source_sha256: str
    evaluation_sha256: str
    trust_remote_code: bool
    warnings: list[str]
    timings_s: dict[str, float] = field(default_factory=dict)
    decision: Decision | None = None

    @property
    def streams(self) -> bool:
        """Whether the model is a language model: such run block by block, and see windows of running text."""
        return self.loaded.task == "text-generation"

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Note how long a step took."""
        start = time.perf_counter()
        yield
        self.timings_s[step] = round(self.timings_s.get(step, 0.0) + time.perf_counter() - start, 3)

    def plan_for(self, recipe: Recipe) -> Plan:
        """The plan that another recipe makes of the same model."""
        width = self.source_dtype.itemsize
        loaded = self.loaded
        return make_plan(recipe, loaded.model, loaded.architecture, self.sites, self.embeddings, width)

    def context(self) -> dict[str, str]:
        """Digests of everything that measurements depend on, by what it is."""
        texts = [self.tuning.name, self.tuning.texts, self.probe, self.calibration, self.evaluation_sha256]
        machine = [
            dispatch.active_isa(),
            torch.get_num_threads(),
            *map(version_of, ("bitwright", "torch", "transformers")),
        ]
        small = [file for file in source_files(self.loaded.path) if file.stat().st_size < _LARGE_FILE]
        kernels = Path(str(native.load().__file__))
        files = [(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in (*sorted(small), kernels)]
        return {
            "model": _digest([self.source_sha256, files[:-1]]),
            "recipe": _digest(self.recipe.model_dump(mode="json", exclude={"budget"})),
            "texts": _digest(texts),
            "machine or release": _digest([machine, files[-1]]),
        }


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode("utf-8", "surrogatepass")).hexdigest()


def open_job(name: str | Path, recipe: Recipe, texts: Texts, *, trust_remote_code: bool = False) -> Job:
    """Load the model, resolve the recipe, and draw the texts. Nothing is written.

    Raises:
        BitwrightError: of any kind; whatever can be known to fail later fails here.
    """
    start = time.perf_counter()
    loaded = _open(name, trust_remote_code=trust_remote_code)
    names = model_names(loaded.model, loaded.architecture)
    sites = find_linears(loaded.model, loaded.architecture)
    source_dtype = _dtype_on_disk(loaded, sites[0])
    embeddings = find_embeddings(loaded.model, loaded.architecture)
    plan = make_plan(recipe, loaded.model, loaded.architecture, sites, embeddings, source_dtype.itemsize)
    if loaded.tokenizer is None:
        raise InputError(
            f"texts cannot be encoded without a tokenizer; {loaded.tokenizer_problem or f'{loaded.path} has none'}"
        )
    calibrates = any(needs_inputs(row, recipe) for row in plan)
    model: AnyModel
    calibration: Items
    pool: list[str] = []
    if loaded.task == "text-generation":
        model = StreamedModel(loaded, max_tokens(loaded), trust_remote_code=trust_remote_code)
        task, windows = _draw_windows(texts, recipe, model, needs_calibration=calibrates)
        calibration = tuple(windows)
    else:
        model = float_model(loaded)
        labelled = _labelled_task(texts, loaded)
        pool, drawn = _draw_texts(texts, recipe, labelled, needs_calibration=calibrates)
        task, calibration = labelled or agreement_task(loaded, pool), tuple(drawn)
    tuning, held_out = split(task, seed=recipe.seed)
    probe: Items = tuning.texts[:_MAX_PROBE] or tuple(pool[:_MAX_PROBE])
    job = Job(
        loaded, model, names, sites, embeddings, recipe, plan, tuning, held_out, calibration, probe,
        source_dtype, fingerprint(loaded.path), _evaluation_sha256(texts), trust_remote_code, _doubts(tuning, held_out),
    )  # fmt: skip
    job.timings_s["load"] = round(time.perf_counter() - start, 3)
    return job


def as_texts(items: Items) -> list[str]:
    """The items of a model that reads texts."""
    return [item for item in items if isinstance(item, str)]


def agreement_task(loaded: LoadedModel, texts: Sequence[str], name: str = "label-free") -> Task:
    """Agreement with the float model on `texts`, in the way that fits what the model puts out."""
    return label_free_task(
        texts,
        logits=loaded.task != "embedding",
        multi_label=getattr(loaded.config, "problem_type", None) == "multi_label_classification",
        n_labels=loaded.config.num_labels,
        name=name,
    )


def _open(name: str | Path, *, trust_remote_code: bool) -> LoadedModel:
    """The model: whole, or without values if it is a language model, since those run block by block."""
    path = fetch(name)
    if task_of(read_config(path).get("architectures"), str(path)) == "text-generation":
        return replace(open_lazily(path, trust_remote_code=trust_remote_code, runnable=False), name=str(name))
    return load_model(name, trust_remote_code=trust_remote_code)


def _draw_windows(
    texts: Texts, recipe: Recipe, model: StreamedModel, *, needs_calibration: bool
) -> tuple[Task, list[Window]]:
    """(perplexity on windows of text, windows for calibration): disjoint.

    Raises:
        DataError: a text shorter than a window, or fewer calibration windows than make sense.
    """
    if texts.metric is not None:
        raise InputError(
            "--metric is for models that encode texts; a language model is judged by perplexity: give --eval"
        )
    length = min(recipe.calibration.max_tokens, model.max_tokens)
    n_calibration = recipe.calibration.samples if needs_calibration else 0
    n_scored = 0 if texts.evaluation else min(texts.samples, _MAX_WINDOWS)
    sources, wanted = parse_sources(texts.data or BUILTIN_DATA), n_calibration + n_scored
    drawn = mix_windows(model.tokenizer, sources, wanted, length, seed=recipe.seed) if wanted else []
    if len(drawn) < wanted:  # both get their share of what there is
        n_calibration = len(drawn) * n_calibration // wanted
    if needs_calibration and n_calibration < LEAST_CALIBRATION_TEXTS:
        raise DataError(
            f"{n_calibration} windows of {length} tokens for calibration; at least {LEAST_CALIBRATION_TEXTS} are "
            "needed: give more text with --data, or a smaller calibration.max_tokens in the recipe"
        )
    if texts.evaluation:
        window = min(WINDOW, model.max_tokens)
        task = language_task(texts.evaluation, model.tokenizer, window=window, windows=WINDOWS)
    else:
        names = " and ".join(source.name for source in sources)
        protocol = f"{names}, {len(drawn) - n_calibration} windows of {length} tokens drawn at random, no BOS"
        task = Task(names, tuple(drawn[n_calibration:]), LanguageModel(protocol))
    return task, drawn[:n_calibration]


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
    """A digest of the files that hold the labels or the text, or the code of the user's metric."""
    digest = hashlib.sha256(str(texts.kind).encode())
    if place := texts.evaluation or (texts.metric or "").rpartition(":")[0]:
        path = Path(place)
        if not path.exists():  # a name, as of the built-in prose
            digest.update(place.encode())
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _dtype_on_disk(loaded: LoadedModel, site: LinearSite) -> torch.dtype:
    """The dtype of the linear weights as the source stores them."""
    if loaded.source is not None:
        return loaded.source.dtype(f"{site.name}.weight")
    files = TensorFiles(loaded.path)
    prefix = str(getattr(loaded.model, "base_model_prefix", ""))
    return files.dtype(require_name_in(files, f"{site.name}.weight", prefix, str(loaded.path)))
