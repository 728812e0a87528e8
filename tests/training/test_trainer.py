"""The loop: it learns, stops at NaN, keeps the best, and goes on after a kill in the same bytes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bitwright.errors import CheckpointError
from bitwright.numerics.schemes import SCHEMES
from bitwright.progress import Quiet
from bitwright.training.batches import batch_of
from bitwright.training.callback import blend_at
from bitwright.training.fake import FakeLinear, rounded_start
from bitwright.training.state import STATE_FILE
from bitwright.training.trainer import Data, Settings, Trained, steps_in, train

SETTINGS = Settings(steps=24, batch=8, rate=0.05, other_rate=1e-3, looks=4, save_seconds=0.0)
X = torch.randn(72, 32, generator=torch.Generator().manual_seed(0))


def model_in_training(scheme: str = "w2a16_g32") -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 8))
    for name in ("0", "2"):
        linear, spec = model.get_submodule(name), SCHEMES[scheme].weight
        assert isinstance(linear, nn.Linear)
        assert spec is not None
        model.set_submodule(name, FakeLinear(linear, rounded_start(linear, spec, None)))
    return model


def data_of(model: nn.Module, spoil: Callable[[Tensor], Tensor] = lambda loss: loss) -> Data:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 8)).requires_grad_(False)

    def loss(chosen: Sequence[int]) -> Tensor:
        rows = X[list(chosen)]
        return spoil(functional.mse_loss(model(rows), teacher(rows)))

    return Data([1 + i % 7 for i in range(72)], loss, range(64), [range(64, 72)])


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


class Killed(BaseException):
    """Nothing may catch it."""


class Killing(Quiet):
    """Ends the process's work before a step."""

    def __init__(self, before: int) -> None:
        self.before = before

    def track(self, items: Sequence[Any], what: str) -> Iterator[Any]:
        for item in items:
            if item == self.before:
                raise Killed
            yield item


def run(folder: Path | None = None, settings: Settings = SETTINGS, **options: Any) -> tuple[Trained, dict[str, Tensor]]:
    model = model_in_training()
    found = train(model, data_of(model, **options), settings, folder, Quiet())
    return found, values(model)


def test_it_learns_and_ends_in_the_best_state() -> None:
    model = model_in_training()
    found = train(model, data_of(model), SETTINGS, None, Quiet())
    assert [look.step for look in found.curve] == [0, 6, 12, 18, 24]
    assert found.best_loss < 0.7 * found.start_loss
    assert found.best_loss == min(look.loss for look in found.curve)
    loss = float(data_of(model).loss(range(64, 72)).detach())
    assert loss == pytest.approx(found.best_loss, rel=1e-6)


def test_steps_that_are_too_large_are_taken_back_and_made_smaller() -> None:
    wild = replace(SETTINGS, steps=48, looks=8, rate=20.0, other_rate=3e-2)
    found, _ = run(settings=wild)
    losses = [look.loss for look in found.curve]
    assert losses[1] > 2 * losses[0], "the first steps were far too large"
    assert found.best > 0
    assert found.best_loss < losses[0]


@pytest.mark.parametrize("at", [7, 14])
def test_a_run_that_went_back_is_killed_and_goes_on_in_the_same_bytes(tmp_path: Path, at: int) -> None:
    wild = replace(SETTINGS, rate=20.0)
    want, wanted = run(settings=wild)
    assert any(look.loss > 2 * want.start_loss for look in want.curve[1:-1])
    model = model_in_training()
    with pytest.raises(Killed):
        train(model, data_of(model), wild, tmp_path, Killing(at))
    found, got = run(tmp_path, wild)
    assert found == want
    assert all(torch.equal(got[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("at", [1, 7, 23])
def test_a_run_that_was_killed_goes_on_in_the_same_bytes(tmp_path: Path, at: int) -> None:
    want, wanted = run()
    model = model_in_training()
    with pytest.raises(Killed):
        train(model, data_of(model), SETTINGS, tmp_path, Killing(at))
    assert (tmp_path / STATE_FILE).exists()
    torch.manual_seed(123)
    found, got = run(tmp_path)
    assert found == want
    assert all(torch.equal(got[name], value) for name, value in wanted.items())
    again, same = run(tmp_path)  # it is done: nothing is trained twice
    assert again == want
    assert all(torch.equal(same[name], value) for name, value in wanted.items())


def test_a_damaged_state_is_an_error(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / STATE_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"damaged.*to start over"):
        run(tmp_path)


def test_nan_stops_and_the_best_so_far_stays() -> None:
    steps = 0

    def spoil(loss: Tensor) -> Tensor:
        nonlocal steps
        steps += loss.requires_grad
        return loss * float("nan") if steps > 14 and loss.requires_grad else loss

    found, got = run(spoil=spoil)
    assert found.stopped == "step 15: the loss is nan"
    assert found.best in (6, 12)
    assert all(bool(value.isfinite().all()) for value in got.values())


def test_it_is_never_worse_than_it_began() -> None:
    model = model_in_training()
    before = values(model)
    found = train(model, data_of(model), replace(SETTINGS, rate=30.0, gain_rate=5.0), None, Quiet())
    assert found.best == 0
    assert all(torch.equal(before[name], value) for name, value in values(model).items())


def test_minutes_become_steps_and_leave_the_model_as_it_was() -> None:
    model = model_in_training()
    before = values(model)
    assert steps_in(model, data_of(model), SETTINGS, 1e-9) == 1
    assert steps_in(model, data_of(model), SETTINGS, 0.1) > 10
    assert all(torch.equal(before[name], value) for name, value in values(model).items())


def test_every_text_comes_once_in_a_round() -> None:
    lengths = [1 + i * 7 % 13 for i in range(50)]
    first = [batch_of(step, lengths, 8, 0) for step in range(6)]
    assert all(len(batch) == 8 for batch in first)
    assert len({i for batch in first for i in batch}) == 48
    assert first == [batch_of(step, lengths, 8, 0) for step in range(6)]
    assert first != [batch_of(step, lengths, 8, 0) for step in range(6, 12)]
    assert first != [batch_of(step, lengths, 8, 1) for step in range(6)]


def test_the_grids_take_over_after_a_delay() -> None:
    assert [blend_at(x / 10, 0.2, 0.4) for x in (0, 1, 2, 4, 6, 9)] == pytest.approx([0, 0, 0, 0.5, 1, 1])
    assert [blend_at(x / 10, 0.0, 0.0) for x in (0, 5)] == [1, 1]


def test_a_delayed_run_is_judged_on_the_grids() -> None:
    found, _ = run(settings=replace(SETTINGS, after=0.3, ramp=0.3))
    assert found.curve[0] == run()[0].curve[0]
    assert found.best_loss < found.start_loss
