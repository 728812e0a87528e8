"""Workers that die, workers with another model, and a parent that dies while they encode."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.bulk.embedding import Embedder, open_embedder
from bitwright.runtime import load

MARK = "BITWRIGHT_TEST_MARK"  # names a file: it is there when a worker has died
BACKEND = "BITWRIGHT_TEST_BACKEND"  # what the other model says of itself


def open_dying(embedder: Embedder) -> Callable[[Sequence[str]], Any]:
    """As `open_embedder`; but the first worker that has done a shard dies of the next one."""
    embed, done = open_embedder(embedder), []

    def embed_or_die(texts: Sequence[str]) -> Any:
        mark = Path(os.environ[MARK])
        if done and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(texts)
        return embed(texts)

    return embed_or_die


class Large:
    """A model that gives a large value for a text that is called so."""

    def __init__(self) -> None:
        self.backend = os.environ.get(BACKEND, "engine:test")

    def encode(self, texts: list[str], **options: Any) -> np.ndarray:
        return np.array([[1e6 if "large" in text else 1.0] for text in texts], np.float32)


def open_large(embedder: Embedder) -> Callable[[Sequence[str]], Any]:
    """As `open_embedder`, with another model."""
    load.load = lambda *_, **__: Large()  # type: ignore[assignment]
    return open_embedder(embedder)


def main() -> None:
    """`python -m tests.bulk.dying N ARGUMENTS`: the command line, which is killed when it has written N files."""
    from bitwright import cli
    from bitwright.bulk.vectors import Vectors

    sys.argv, files, add = ["bitwright", *sys.argv[2:]], int(sys.argv[1]), Vectors.add

    def add_or_die(self: Vectors, *shard: Any) -> None:
        if len(self.done) == files:
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, *shard)

    Vectors.add = add_or_die  # type: ignore[method-assign]
    cli.main()


if __name__ == "__main__":
    main()
