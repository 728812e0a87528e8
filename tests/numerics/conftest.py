"""Property tests here are deterministic: the same examples on every machine, and no example database."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("numerics", derandomize=True, database=None, deadline=None, max_examples=60)
settings.load_profile("numerics")


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Tensors here are tiny; on a busy machine, waiting for a second thread costs more than all their arithmetic."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
