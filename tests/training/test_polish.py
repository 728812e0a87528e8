"""Training finds the least loss, keeps the best, stops at what is not finite, and goes on where it was killed."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from bitwright.progress import Quiet
from bitwright.training.lessons import Lesson
from bitwright.training.losses import embedding_loss, logit_loss
from bitwright.training.polish import Schedule, train

SCHEDULE = Schedule(items=12, batch=1, epochs=4, rate=0.05)


class Toy:
    """Items are points; the loss is the squared distance of a parameter from them."""

    def __init__(self) -> None:
        self.value = nn.Parameter(torch.zeros(3))
        generator = torch.Generator().manual_seed(0)
        self.points = torch.tensor([0.5, -0.3, 0.2]) + 0.1 * torch.randn(20, 3, generator=generator)

    def loss_of(self, item: int) -> torch.Tensor:
        return (self.value - self.points[item]).square().sum()

    def train(self, path: Path, *, backward: Callable[[Sequence[int]], float] | None = None) -> list[float]:
        lesson = Lesson(self.loss_of, 12, 8)
        trained = train(
            {"a": self.value}, {"a": 1.0}, backward or lesson.backward, lesson.held_out_loss, SCHEDULE, path, Quiet()
        )
        self.best, self.stopped = trained.best, trained.stopped
        return [point.held_out for point in trained.points]


def test_the_loss_goes_down_and_the_best_is_kept(tmp_path: Path) -> None:
    toy = Toy()
    losses = toy.train(tmp_path / "state")
    assert min(losses) < 0.3 * losses[0]
    assert Lesson(toy.loss_of, 12, 8).held_out_loss() == pytest.approx(min(losses))
    assert len(losses) == 1 + SCHEDULE.epochs * SCHEDULE.measured


def test_every_epoch_has_each_item_once() -> None:
    schedule = Schedule(items=10, batch=3, epochs=2, rate=0.1)
    steps = [schedule.batch_of(step) for step in range(schedule.steps)]
    assert schedule.steps == 8
    assert sorted(item for step in steps[:4] for item in step) == list(range(10))
    assert steps[:4] != steps[4:]
    assert sum(schedule.measures_after(step) for step in range(8)) == 4
    assert schedule.measures_after(7)


class _Killed(Exception):
    pass


@pytest.mark.parametrize("at", [1, 13, 30, 48])
def test_a_killed_run_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    monkeypatch.setattr("bitwright.training.polish._SAVED_AFTER", 0.0)
    whole = Toy()
    losses = whole.train(tmp_path / "whole")
    cut = Toy()
    lesson, count = Lesson(cut.loss_of, 12, 8), 0

    def until(batch: Sequence[int]) -> float:
        nonlocal count
        count += 1
        if count == at:
            raise _Killed
        return lesson.backward(batch)

    with pytest.raises(_Killed):
        cut.train(tmp_path / "cut", backward=until)
    again = Toy()
    assert again.train(tmp_path / "cut") == losses
    assert torch.equal(again.value, whole.value)
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_best(tmp_path: Path) -> None:
    toy = Toy()
    lesson, count = Lesson(toy.loss_of, 12, 8), 0

    def breaking(batch: Sequence[int]) -> float:
        nonlocal count
        count += 1
        return lesson.backward(batch) if count < 20 else math.nan

    losses = toy.train(tmp_path / "state", backward=breaking)
    assert "step 20" in toy.stopped
    assert toy.best == 18
    assert lesson.held_out_loss() == pytest.approx(min(losses))


def test_gradients_that_are_not_finite_stop_too(tmp_path: Path) -> None:
    toy = Toy()

    def breaking(batch: Sequence[int]) -> float:
        toy.value.grad = torch.full((3,), math.inf)
        return 1.0

    toy.train(tmp_path / "state", backward=breaking)
    assert (toy.best, float(toy.value.detach().abs().max())) == (0, 0.0)
    assert "step 1" in toy.stopped


def test_what_gains_nothing_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """Training towards the wrong side: each measurement is worse, and the last of four in a row ends it."""
    toy = Toy()
    lesson = Lesson(lambda item: -toy.loss_of(item), 12, 8)
    toy.train(tmp_path / "state", backward=lesson.backward)
    assert (toy.best, float(toy.value.detach().abs().max())) == (0, 0.0)
    assert "no gain" in toy.stopped


def test_a_step_s_gradient_is_the_mean_over_its_items() -> None:
    toy = Toy()
    loss = Lesson(toy.loss_of, 12, 8).backward([1, 4, 5])
    assert toy.value.grad is not None
    torch.testing.assert_close(toy.value.grad, -2 * toy.points[[1, 4, 5]].mean(0))
    assert loss == pytest.approx(float(toy.points[[1, 4, 5]].square().sum(1).mean()))


def test_embeddings_of_the_same_directions_have_no_loss() -> None:
    teacher_BH = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    assert float(embedding_loss(3 * teacher_BH, teacher_BH)) == pytest.approx(0, abs=1e-6)
    assert float(embedding_loss(teacher_BH.roll(1, dims=0), teacher_BH)) > 0.5
    turned = teacher_BH @ torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))[0]
    cosines = torch.cosine_similarity(turned, teacher_BH)
    assert float(embedding_loss(turned, teacher_BH)) == pytest.approx(1 - float(cosines.mean()), abs=1e-5)


def test_a_single_text_has_no_pairs() -> None:
    assert float(embedding_loss(torch.ones(1, 4), torch.ones(1, 4))) == pytest.approx(0, abs=1e-6)


def test_logits_are_compared_as_distributions() -> None:
    teacher_BC = torch.tensor([[1.0, 2.0, 3.0]])
    assert float(logit_loss(teacher_BC + 5, teacher_BC)) == pytest.approx(0, abs=1e-6)
    assert float(logit_loss(teacher_BC.flip(1), teacher_BC)) > 0.5
