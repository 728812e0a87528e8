"""A fork after OpenMP was used: parent and children compute on, with as many threads, and the same bytes."""

import threading
from collections.abc import Iterator

import pytest
import torch

from bitwright.kernels import torch_threads
from tests.forks import ended_well, in_child


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch_threads.settle()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_torch_computes_in_a_child() -> None:
    x = torch.rand(400, 400, generator=torch.Generator().manual_seed(0))

    def work() -> torch.Tensor:
        return (x @ x).exp()

    want, children = work(), []

    def same() -> bool:
        return torch.get_num_threads() == 2 and torch.equal(work(), want)

    def fork_once() -> None:
        work()  # this thread's pool
        children.append(in_child(same))

    fork_once()
    fork_once()
    thread = threading.Thread(target=fork_once)
    thread.start()
    thread.join()
    children.append(in_child(lambda: ended_well(in_child(same, 20)), 40))  # a child of a child
    assert [ended_well(child) for child in children] == [True] * 4
    assert torch.equal(work(), want)
