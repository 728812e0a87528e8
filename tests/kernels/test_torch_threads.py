"""Torch's threads: lowered once to the processors that there are; a user's own setting stays."""

import pytest
import torch

from bitwright.kernels import torch_threads


def test_threads_are_lowered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.setattr(torch_threads, "usable_processors", lambda: 2)
        for given, want in ((5, 2), (2, 2), (1, 1)):
            torch_threads.settle.cache_clear()
            torch.set_num_threads(given)
            torch_threads.settle()
            assert torch.get_num_threads() == want
        torch.set_num_threads(3)
        torch_threads.settle()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
