"""What the float model said is kept as it was, window by window, and compared as a distribution."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bitwright.errors import CheckpointError
from bitwright.training.teacher import cache_top_logits, teacher_bytes, top_kl

V, T = 50, 6
WINDOWS = [tuple(range(start, start + T)) for start in range(20)]


def logits(window: Sequence[int]) -> Tensor:
    return 3 * torch.randn(T, V, generator=torch.Generator().manual_seed(window[0]))


def all_logits(windows: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    return map(logits, windows)


def test_keeps_the_most_likely_tokens(tmp_path: Path) -> None:
    teacher = cache_top_logits(tmp_path / "t", WINDOWS, 8, all_logits)
    assert (tmp_path / "t").stat().st_size == teacher_bytes(len(WINDOWS), T, 8)
    for number in (0, 7, 19):
        ids, log_p = teacher.of(number)
        want = logits(WINDOWS[number]).log_softmax(dim=-1)
        assert torch.equal(log_p, want.gather(1, ids))
        assert torch.equal(ids[:, 0], want.argmax(dim=-1))


def test_goes_on_behind_the_last_whole_window(tmp_path: Path) -> None:
    whole = cache_top_logits(tmp_path / "whole", WINDOWS, 8, all_logits)
    cut = (tmp_path / "whole").read_bytes()[: teacher_bytes(17, T, 8) + 5]
    (tmp_path / "cut").write_bytes(cut)
    asked: list[int] = []

    def noted(windows: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        asked.extend(window[0] for window in windows)
        return all_logits(windows)

    again = cache_top_logits(tmp_path / "cut", WINDOWS, 8, noted)
    assert asked == [17, 18, 19]
    assert (again.entries == whole.entries).all()


def test_says_that_a_file_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        cache_top_logits(tmp_path, WINDOWS, 8, all_logits)


def test_the_divergence_is_torch_s_if_all_tokens_are_kept() -> None:
    ours, theirs = logits([1]), logits([2]).log_softmax(dim=-1)
    log_p, ids = theirs.topk(V, dim=-1)
    want = functional.kl_div(ours.log_softmax(dim=-1), theirs, reduction="batchmean", log_target=True)
    assert float(top_kl(ours, ids, log_p)) == pytest.approx(float(want), rel=1e-4)


def test_the_divergence_of_few_tokens_is_a_lower_bound() -> None:
    ours, theirs = logits([1]), logits([2]).log_softmax(dim=-1)
    whole = functional.kl_div(ours.log_softmax(dim=-1), theirs, reduction="batchmean", log_target=True)
    found = [float(top_kl(ours, *reversed(theirs.topk(top, dim=-1)))) for top in (1, 5, 20, 40)]
    assert found == sorted(found)
    assert found[0] > 0
    assert found[-1] <= float(whole) * 1.0001


def test_the_divergence_of_equals_is_nothing() -> None:
    theirs = logits([2])
    log_p, ids = theirs.log_softmax(dim=-1).topk(5, dim=-1)
    assert float(top_kl(theirs, ids, log_p)) == pytest.approx(0.0, abs=1e-6)
