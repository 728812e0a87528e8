"""Wraps a transformers forward, so that what it raises on a wrong config.json becomes an error of ours."""

from contextlib import AbstractContextManager
from pathlib import Path

from bitwright.errors import ModelError, foreign


def forward(path: str | Path, *, but: tuple[type[BaseException], ...] = ()) -> AbstractContextManager[None]:
    """Around a model's forward. path: the model's, for the message. but: exceptions that are none of transformers'.

    Raises:
        ModelError: for what transformers raises, a lack of memory excepted.
    """
    return foreign(f"{path}: transformers cannot run this model", ModelError, but=(MemoryError, *but))
