"""What a worker does: texts of one shard to vectors. The batches depend on the shard alone, and so do the bytes."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bitwright.errors import BitwrightError, InputError, NumericsError

if TYPE_CHECKING:
    from bitwright.families.tasks import TaskName
    from bitwright.runtime.model import Model


class Embedder(NamedTuple):
    """A model, and how it makes a vector from a text. model: a path, the same for every worker. prompt:
    is put before each text. truncate_dim: as in `encode`. dtype: "float32" or "float16".
    """

    model: str
    task: "TaskName | None" = None
    trust_remote_code: bool = False
    prompt: str = ""
    normalize: bool = False
    truncate_dim: int | None = None
    dtype: str = "float32"


class Embedded(NamedTuple):
    """Vectors (n, H). backend: what computed them, which the bytes depend on."""

    vectors: np.ndarray
    backend: str


class Refused(NamedTuple):
    """A text that gives no vector: the first of a shard, and why."""

    row: int
    why: str


def open_embedder(embedder: Embedder) -> Callable[[Sequence[str]], Embedded | Refused]:
    """Load the model, and return what makes vectors with it.

    Raises as `load`.
    """
    from bitwright.runtime.load import load

    model = load(embedder.model, task=embedder.task, trust_remote_code=embedder.trust_remote_code)
    if not on_engine(model.backend):
        import torch

        torch.set_num_threads(1)  # the order of torch's sums depends on it
    encode = partial(_encode, model, embedder)

    def embed(texts: Sequence[str]) -> Embedded | Refused:
        try:
            return Embedded(encode(texts), model.backend)
        except (InputError, NumericsError) as error:
            return _refused(encode, texts, error)

    return embed


def on_engine(backend: str) -> bool:
    """Whether Bitwright's engine computed it: then the number of threads changes no byte."""
    return backend.startswith("engine")


def _encode(model: "Model", embedder: Embedder, texts: Sequence[str]) -> np.ndarray:
    found: np.ndarray = model.encode(
        list(texts), prompt=embedder.prompt, normalize_embeddings=embedder.normalize, truncate_dim=embedder.truncate_dim
    )
    if embedder.dtype == "float32":
        return found
    with np.errstate(over="ignore"):
        short = found.astype(embedder.dtype)
    if not np.isfinite(short).all():
        raise NumericsError(
            f"a value of {np.abs(found).max():.3g} is too large for {embedder.dtype}; write float32, or normalize"
        )
    return short


def _refused(encode: Callable[[Sequence[str]], Any], texts: Sequence[str], error: BitwrightError) -> Refused:
    """The first text that is refused when it is alone.

    Raises:
        BitwrightError: `error`, if none is.
    """
    for i, text in enumerate(texts):
        try:
            encode([text])
        except (InputError, NumericsError) as found:
            return Refused(i, str(found))
    raise error
