"""Studies a model or a result without quantizing: plan, sensitivity, comparison."""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bitwright.errors import InputError
from bitwright.families.tasks import TaskName
from bitwright.files.directory import config_file, source_bytes
from bitwright.files.opening import open_path
from bitwright.files.task import find_task
from bitwright.kernels.processors import default_threads
from bitwright.pipeline.decision import resolve_auto
from bitwright.pipeline.decoded import float_source
from bitwright.pipeline.gradients import fisher_rows, require_memory
from bitwright.pipeline.job import Job, open_job
from bitwright.pipeline.layer_errors import layers_by_error
from bitwright.pipeline.loss_weights import without_weights_that_do_not_fit
from bitwright.pipeline.parts import measure_parts
from bitwright.pipeline.request import Texts, make_texts, resolve_recipe
from bitwright.pipeline.resources import run_cost
from bitwright.pipeline.variants import quantize_model
from bitwright.progress import Progress, Quiet
from bitwright.recipe import Recipe
from bitwright.record import RECORD_FILE, Shape, as_data, read_record
from bitwright.runtime.bench import Schedule, run_bench
from bitwright.runtime.bench_load import LoadLimit
from bitwright.runtime.bench_tokens import REPORTED, TIMED, shapes_for
from bitwright.search.journal import Journal

BENCH_SHAPES = (Shape(1, 16), Shape(8, 128))
_DEFAULT_TEXTS = Texts()


def preview(
    model: str | Path, *, recipe: Recipe | None = None, texts: Texts = _DEFAULT_TEXTS, sensitivity: bool = False,
    trust_remote_code: bool = False, task: TaskName | None = None, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The plan of `quantize` and what it would cost in time, memory and disk. Writes nothing.

    Returns:
        {"model", "plan": the Record's rows, "targets", "warnings": texts, "estimate": {"seconds", "memory_bytes",
        "disk_bytes", "source_bytes"}}.
        Time and memory are within a factor of two if no search for a fallback is needed (`resources.run_cost`).
    """
    progress = progress or Quiet()
    with float_source(model, None, progress) as source:
        job = open_job(source, recipe or Recipe(), texts, trust_remote_code=trust_remote_code, task=task)
        return _preview(resolve_auto(job, progress), sensitivity=sensitivity, progress=progress)


def _preview(job: Job, *, sensitivity: bool, progress: Progress) -> dict[str, Any]:
    progress.say("timing the float model")
    job = without_weights_that_do_not_fit(job)
    cost = run_cost(job, sensitivity=sensitivity, shapes=timed_shapes(job))
    after = sum(row.bytes_after for row in job.plan)
    return {
        "model": job.opened.loaded.name,
        "plan": job.plan,
        "targets": job.recipe.targets,
        "warnings": (*_where_a_search_begins(job), *job.warnings, *job.dropped),
        "estimate": {
            "seconds": cost.seconds,
            "memory_bytes": cost.memory_bytes,
            "disk_bytes": after,
            "source_bytes": source_bytes(job.opened.loaded.directory.origin),
        },
    }


def analyze(
    model: str | Path, *, recipe: Recipe | str | Path | None = None, data: str | Sequence[str] = (),
    evaluation: str | Path | None = None, kind: str | None = None, metric: str | None = None, samples: int = 1000,
    fisher: bool = False, journal: str | Path | None = None, trust_remote_code: bool = False,
    task: TaskName | None = None, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """How sensitive the linears of a model are to being quantized.

    Args:
        model: a model directory, or the name of a model on the hub.
        recipe: how linears are quantized for this; as `quantize` takes it.
        data: texts, as `quantize` takes them.
        evaluation: labelled data, as `quantize` takes them.
        kind: what `evaluation` holds.
        metric: your own metric, as "file.py:function".
        samples: how many texts are used where there are no labels.
        fisher: measure Fisher sensitivity too, which takes gradients and the whole model in memory.
        journal: a file that keeps the measurements, so that a stopped analysis goes on.
        trust_remote_code: run code that the model's repository brings.
        task: what the model is for, if its files leave that open.
        progress: what is told of the steps; by default nothing.

    Returns:
        A dict with "model" and, for a model that encodes texts, the `sensitivity` of its record: how far the outputs
            move when a part of it is quantized. "layers" says how each linear was quantized, largest output error
            first; it is there for a language model, and where the recipe looks at inputs. "fisher" has a row {name,
            block, role, fisher, diagonal} for each set of linears that share an input, largest first.

    Raises:
        InputError: a language model that is too large for `fisher`.
    """
    progress = progress or Quiet()
    texts = make_texts(data, evaluation, kind, metric, samples)
    with float_source(model, None, progress) as source:
        job = open_job(source, resolve_recipe(recipe), texts, trust_remote_code=trust_remote_code, task=task)
        return _analysis(resolve_auto(job, progress), fisher=fisher, journal=journal, progress=progress)


def _analysis(job: Job, *, fisher: bool, journal: str | Path | None, progress: Progress) -> dict[str, Any]:
    notes = _open_journal(journal, job)
    if fisher:
        require_memory(job)
    found: dict[str, Any] = {"model": job.opened.loaded.name}
    with TemporaryDirectory() as folder:
        quantized = quantize_model(job, Path(folder), progress)
        if job.opened.streams or any(row.error is not None for row in quantized.account):
            found["layers"] = as_data(layers_by_error(job, quantized, progress))
        if not job.opened.streams:
            found |= as_data(measure_parts(job, quantized, notes, progress))
        if fisher:
            found["fisher"] = fisher_rows(job, quantized, progress)
        return found


def bench(
    directory: str | Path, *, source: str | Path | None = None, shapes: Sequence[tuple[int, int]] = (),
    threads: int | None = None, rounds: int = 5, rivals: bool = True, max_load: float = 0.15,
    progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure a result against its float original, which is at `source` or where the record says.

    shapes: (batch, tokens); by default three, or for a language model prompts and answers of several sizes. max_load:
    cores that other programs may keep busy. Rounds in which they keep more do not count.
    """
    directory, progress = Path(directory), progress or Quiet()
    if source is None and (directory / RECORD_FILE).is_file():
        recorded = read_record(directory).model
        place = Path(recorded.source or "")  # as it was typed: may be relative
        source = place if recorded.source and place.is_dir() and config_file(place).is_file() else None
        if source and open_path(place).fingerprint != recorded.source_sha256:
            raise InputError(
                f"{source}: this is not the model that {directory} was made from; give the right one with --source"
            )
    limit = LoadLimit(max_load, min(rounds, LoadLimit().rounds))
    opened = open_path(directory)
    task = find_task(opened)
    timed = shapes_for(task, shapes, TIMED)
    return run_bench(
        directory, Schedule(timed, threads or default_threads(), rounds, limit=limit), rivals=rivals,
        source=None if source is None else open_path(Path(source), task),
        progress=progress,
    )  # fmt: skip


def timed_shapes(job: Job) -> Sequence[Shape]:
    """What is timed of a result, for its report. A prompt is as long as the model takes, at most."""
    if job.opened.loaded.task != "text-generation":
        return BENCH_SHAPES
    most = job.model.max_tokens
    return tuple(shape._replace(tokens=min(shape.tokens, most)) for shape in REPORTED)


def _where_a_search_begins(job: Job) -> list[str]:
    goal = job.recipe.budget.goal
    return (
        []
        if goal is None
        else [f"goal: {goal}: the search begins with this plan, and then gives some layers more bits"]
    )


def _open_journal(journal: str | Path | None, job: Job) -> Journal:
    """The journal at a path that the user chose, checked to be a journal or new."""
    path = None if journal is None else Path(journal)
    begins = path.read_bytes()[:11] if path is not None and path.is_file() else b""
    if begins not in (b"", b'{"context":'):
        raise InputError(
            f"{path}: this file is not a journal of measurements, so Bitwright does not write to it; choose another "
            "file"
        )
    if path is not None and not path.parent.is_dir():
        raise InputError(f"{path}: there is no directory {path.parent}; make it, or choose another file")
    return Journal(path, json.dumps(job.context()))
