"""`encode_files`: every text of a corpus to a vector, in many processes, with the same bytes however many there are.

    check    the model's task and prompt, every row of the corpus, the directory                 corpus.py, vectors.py
    encode   this process reads shards, workers compute, this process writes        embedding.py, bitwright/workers/
    finish   the manifest names all files

A shard is a fixed number of successive rows, and one task. What a worker does with it depends on nothing else.
"""

import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import bitwright
from bitwright.bulk.corpus import Corpus, Shard, Texts, ids_of, read_corpus
from bitwright.bulk.embedding import Embedded, Embedder, Refused, on_engine, open_embedder
from bitwright.bulk.vectors import Facts, Vectors, check_format, open_vectors
from bitwright.errors import DataError, ModelError
from bitwright.families.tasks import TaskName
from bitwright.files.directory import ModelDirectory, source_bytes, source_files
from bitwright.files.sentences import Sentences, read_sentences
from bitwright.files.task import find_task
from bitwright.kernels.processors import usable_processors
from bitwright.progress import Progress, Quiet
from bitwright.runtime.encoding import prompt_of
from bitwright.runtime.load import locate
from bitwright.runtime.resident import available_bytes
from bitwright.workers.tasks import run

_SHARD_ROWS = 4096
_PROCESS_BYTES = 512 << 20  # of a worker beside the model's weights, torch included
_NOT_READ = ("record.json", "report.html", "recipe.yaml", "README.md")  # of a model's files: they are about it


@dataclass(frozen=True, slots=True)
class How:
    """How vectors are made and written.

    prompt_name: of the prompt that is put before each text; by default the one that the model names. normalize: scale
    vectors to length 1. truncate_dim: keep so many values. dtype: "float32" or "float16". form: of the files, see
    `vectors.FORMATS`. shard_rows: rows of a file, and of a task.
    """

    prompt_name: str | None = None
    normalize: bool = False
    truncate_dim: int | None = None
    dtype: str = "float32"
    form: str = "parquet"
    shard_rows: int = _SHARD_ROWS


class Where(NamedTuple):
    """Where it is computed. workers: how many; by default one for each processor, or as many as memory holds. ray: the
    address of a cluster; None for processes of this machine.
    """

    workers: int | None = None
    ray: str | None = None


_AS_THE_MODEL_SAYS, _HERE = How(), Where()


class Encoded(NamedTuple):
    """What `encode_files` did. rows, files: of this run. manifest: of all of them."""

    path: Path
    rows: int
    files: int
    seconds: float
    manifest: dict[str, Any]


def encode_files(
    model: str | Path, texts: Texts, out: Path, how: How = _AS_THE_MODEL_SAYS, where: Where = _HERE, *,
    task: TaskName | None = None, trust_remote_code: bool = False, progress: Progress | None = None,
) -> Encoded:  # fmt: skip
    """Write a vector for each text of a corpus into `out`; go on there, if an earlier run with the same arguments was
    stopped.

    Bytes do not depend on the number of workers, nor on where an earlier run was stopped. Of a model on the engine they
    are those of `load(model).encode(...)` on the texts of each shard.

    Args:
        model: for embeddings: a directory, a GGUF file, or a name on the hub. Nodes of a Ray cluster have it in the
            same place.
        task, trust_remote_code: as in `load`.

    Raises:
        ModelError: a model for something else. DataError: as `read_corpus`; a text that gives no vector.
        InputError: as `check_format`, `open_vectors` and `tasks.run`; an unknown prompt.
        CheckpointError: the disk is full. WorkerError: as `tasks.run`. And what `load` raises.
    """
    progress = progress or Quiet()
    check_format(how.form, ids=texts.id_column is not None)
    progress.say(f"checking {model}")
    opened = locate(model, task)
    prompt = prompt_of(_embedding_files(opened), None, how.prompt_name)
    embedder = Embedder(str(opened.path), task, trust_remote_code, prompt, how.normalize, how.truncate_dim, how.dtype)
    digest = _digest(opened)
    progress.say("reading the texts")
    corpus = read_corpus(texts, out)
    if corpus.ignored:
        warnings.warn(f"files with other endings, which are not read: {corpus.ignored}", stacklevel=2)
    with open_vectors(out, _facts(digest, corpus, embedder, how), how.form) as vectors:
        if lost := vectors.forget_lost():
            warnings.warn(f"finished files that are gone or cut short: {len(lost)}; they are made again", stacklevel=2)
        count = -(-len(corpus) // how.shard_rows)
        missing = [index for index in range(count) if vectors.name(index) not in vectors.done]
        begun, rows = time.monotonic(), 0
        if missing:
            where = _workers(opened, where, len(missing))
            tasks = corpus.shards(how.shard_rows, frozenset(missing))
            results = run(tasks, partial(open_embedder, embedder), workers=where.workers, ray=where.ray)
            rows = len(corpus) - sum(facts["rows"] for facts in vectors.done.values())
            with closing(results):
                idle = min(usable_processors(), len(missing)) - (where.workers or len(missing))
                _write(results, vectors, progress.track(range(rows), "texts to vectors"), max(0, idle))
        return Encoded(out, rows, len(missing), time.monotonic() - begun, vectors.finish(_origin(corpus, embedder)))


def _write(
    results: Iterator[tuple[Shard, Embedded | Refused]], vectors: Vectors, shown: Iterator[int], idle: int
) -> None:
    """Write what comes. shown: is advanced by one for each row. idle: processors that more workers could use."""
    next(shown)  # it begins
    for shard, found in results:
        if isinstance(found, Refused):
            row = shard.rows[found.row]
            raise DataError(f"{row.file}, line {row.line}: this text gives no vector: {found.why}")
        vectors.check_backend(found.backend)
        if idle and not on_engine(found.backend):
            warnings.warn(
                f"{found.backend}: each worker uses one thread, so that the bytes do not depend on their number; with "
                f"{idle} more, all processors would work",
                stacklevel=3,
            )
            idle = 0
        vectors.add(shard.number, found.vectors, ids_of(shard))
        deque(islice(shown, len(shard.rows)), maxlen=0)
    deque(shown, maxlen=0)


def _embedding_files(opened: ModelDirectory) -> Sentences:
    """What the side files of an embedding model say.

    Raises:
        ModelError: a model for something else.
    """
    found = find_task(opened)
    if found == "embedding":
        return read_sentences(opened, found, read_pickled=_read_pickled)
    advice = (
        "; or say --task embedding, and it is pooled as sentence-transformers does without other files"
        if found == "text-generation"
        else ""
    )
    raise ModelError(
        f"{opened.path}: this model is for {found}, and has no pooling that makes one vector of a text. Give an "
        f"embedding model{advice}"
    )


def _read_pickled(file: Path) -> dict[str, Any]:
    from bitwright.models.tensor_files import read_pickled  # imports torch

    return read_pickled(file)


def _facts(digest: str, corpus: Corpus, embedder: Embedder, how: How) -> Facts:
    """What the bytes depend on, but for what computes them, which the first worker tells."""
    return {
        "model": {"digest": digest},
        "texts": {"rows": len(corpus), "digest": corpus.digest, "id_column": corpus.id_column},
        "vectors": {
            "prompt": embedder.prompt, "normalize": how.normalize, "truncate_dim": how.truncate_dim, "dtype": how.dtype,
            "format": how.form, "rows_per_file": how.shard_rows,
        },
        "bitwright": bitwright.__version__,
    }  # fmt: skip


def _origin(corpus: Corpus, embedder: Embedder) -> Facts:
    """Where model and texts were, for people: the same ones may be found elsewhere by the next run."""
    files = [{"name": s.name, "rows": n} for s, n in zip(corpus.sources, corpus.rows, strict=True)]
    return {"origin": {"model": embedder.model, "files": files}}


def _digest(opened: ModelDirectory) -> str:
    """SHA-256 over every file of the model but those that only tell of it, and those of other runtimes."""
    digest = sha256(opened.fingerprint.encode())
    if opened.path.is_dir():
        for file in source_files(opened.path):
            name = file.relative_to(opened.path)
            if name.parts[0] not in (*_NOT_READ, "onnx", "openvino") and file not in opened.weight_files:
                digest.update(f"{name}\0{opened.digest(file)}\0".encode())
    return digest.hexdigest()


def _workers(opened: ModelDirectory, where: Where, tasks: int) -> Where:
    """As many workers as asked for, or as there are processors and memory; never more than tasks."""
    if where.ray is not None or where.workers is not None:
        return where._replace(workers=None if where.workers is None else min(where.workers, tasks))
    weights = source_bytes(opened.path) if opened.path.is_dir() else opened.path.stat().st_size
    fit = available_bytes() // (_PROCESS_BYTES + 2 * weights)
    usable = usable_processors()
    if fit < min(usable, tasks):
        warnings.warn(
            f"memory holds the model {max(1, fit)} times, so there are fewer workers than the {usable} processors; "
            "each uses several",
            stacklevel=3,
        )
    return where._replace(workers=max(1, min(usable, tasks, fit)))
