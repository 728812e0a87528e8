"""`load()`: a result of Bitwright as a SentenceTransformer, or a reranker or classifier as a CrossEncoder.

    from bitwright.integrations.sentence_transformers import load

    model = load("DIR")
    model.similarity(model.encode_query("a question"), model.encode_document(["a text", "another"]))

The whole pipeline (tokens, model, pooling, what follows it) is one module, behind which `bitwright.load(DIR)` runs; so
`encode` gives what `bitwright.load(DIR).encode` gives. Prompts, similarity and truncation are sentence-transformers'
own, set as the files of the model say.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.errors import InputError, LibraryError
from bitwright.runtime.load import load as load_model

if TYPE_CHECKING:
    from bitwright.families.tasks import TaskName


def load(
    directory: str | Path, *, threads: int | None = None, compute: str = "auto", task: "TaskName | None" = None,
    trust_remote_code: bool = False,
) -> Any:  # fmt: skip
    """A SentenceTransformer (embedding models and language models) or a CrossEncoder (rerankers, classifiers).

    It runs on the CPU, in the engine if that runs the model, and may be pickled, copied and used in a pool of
    processes. It cannot be trained or saved: copy the directory instead. `output_value="token_embeddings"` gives the
    outputs of the last block; the first time, the engine packs its weights once more for it.

    Args:
        As `bitwright.load` takes them. A language model without a task is one for embeddings here, as in
        sentence-transformers: it pools the last token unless its files say otherwise.

    Raises:
        LibraryError: sentence-transformers is not installed, or too old.
        InputError: a model for another task. And as `bitwright.load`.
    """
    try:
        from bitwright.integrations.engine_module import cross_encoder, sentence_transformer
    except ImportError as error:
        raise LibraryError(
            f"sentence-transformers 6 or newer is needed ({error}): pip install -U sentence-transformers"
        ) from error
    model = load_model(_path(directory), threads=threads, compute=compute, task=task or _task(directory),
                       trust_remote_code=trust_remote_code)  # fmt: skip
    if model.task == "embedding":
        return sentence_transformer(model)
    if model.task == "sequence-classification":
        return cross_encoder(model)
    raise InputError(
        f"{model.path}: the model's task is {model.task}; sentence-transformers has no class for it. Use bitwright.load"
    )


def _path(directory: str | Path) -> Path:
    """Where a model lies; a hub name is first resolved.

    Raises:
        ModelError: neither a directory nor a hub name.
    """
    path = Path(directory).expanduser()
    if path.is_dir():
        return path
    from bitwright.models.hub import fetch

    return fetch(directory)


def _task(directory: str | Path) -> "TaskName | None":
    """ "embedding" of a language model; of another, what its files say."""
    from bitwright.files.opening import open_path
    from bitwright.files.task import find_task

    return "embedding" if find_task(open_path(_path(directory))) == "text-generation" else None
