"""Polishing: the floats of a quantized model are trained, while its codes stay.

Adam (Kingma and Ba 2014, 1412.6980) with a warm-up and a cosine to nothing. From time to time the loss is measured on
text that is not trained on, and the best values so far are kept: the result is never worse there than the beginning.
All that the next step depends on is in one file, so a run that was killed goes on, and ends in the same bytes.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.progress import Progress
from bitwright.quantizing.shards import KeptTensors, keep_tensors
from bitwright.record import PolishPoint

_FIRST, _SECOND, _TINY = 0.9, 0.99, 1e-12  # Adam's decays, and what keeps its root from 0
_WARM_UP = 0.05  # of all steps
_SAVED_AFTER = 30.0  # seconds at most that a kill costs, and one step
_PATIENCE = 4  # measurements in a row without a gain, after which training ends


@dataclass(frozen=True, slots=True)
class Schedule:
    """items: that are trained on, in a seeded order that is new in every epoch. batch: items of a step. epochs:
    passes over them. rate: the largest step of a parameter whose unit is 1. measured: times in an epoch that the loss
    is measured.
    """

    items: int
    batch: int
    epochs: int
    rate: float
    seed: int = 0
    measured: int = 2

    @property
    def steps(self) -> int:
        """Of all epochs."""
        return self.epochs * math.ceil(self.items / self.batch)

    def batch_of(self, step: int) -> list[int]:
        """The items of one step."""
        epoch, place = divmod(step, math.ceil(self.items / self.batch))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.items, generator=generator).tolist()
        return list(order[place * self.batch : (place + 1) * self.batch])

    def rate_of(self, step: int) -> float:
        """The size of one step."""
        warm_up = max(1, round(_WARM_UP * self.steps))
        return self.rate * min(1.0, (step + 1) / warm_up) * (0.5 + 0.5 * math.cos(math.pi * step / self.steps))

    def measures_after(self, step: int) -> bool:
        """Whether the loss is measured after a step: evenly, and after the last."""
        done = step + 1
        return done == self.steps or done * self.measured * self.epochs // self.steps > (
            step * self.measured * self.epochs // self.steps
        )


@dataclass(frozen=True, slots=True)
class Trained:
    """What training gave. points: the losses, the first before any step. best: the step whose values were kept, 0 if
    none was better than the beginning. stopped: why it ended early, or "".
    """

    points: tuple[PolishPoint, ...]
    best: int
    stopped: str


@dataclass(slots=True)
class _State:
    """All that the next step depends on. Tensors by the name of their parameter."""

    step: int
    values: dict[str, Tensor]
    first: dict[str, Tensor]
    second: dict[str, Tensor]
    best: dict[str, Tensor]
    points: list[PolishPoint]
    since: list[float]
    stopped: str = ""

    @property
    def best_point(self) -> PolishPoint:
        return min(self.points, key=lambda point: point.held_out)


def train(
    parameters: Mapping[str, nn.Parameter],
    units: Mapping[str, float],
    backward: Callable[[Sequence[int]], float],
    held_out: Callable[[], float],
    schedule: Schedule,
    path: Path,
    progress: Progress,
) -> Trained:
    """Train `parameters`, and leave them with the values of the least loss on held-out text. Mutates them.

    Args:
        units: by parameter, what a relative step of 1 is of it.
        backward: adds the gradients of the mean loss over some items, and returns that loss.
        held_out: the loss on items that are not trained on.
        path: of the file that a killed run goes on from.

    Raises:
        CheckpointError: the file cannot be written, or is damaged.
    """
    state = _resumed(parameters, path)
    if state is None:
        loss = held_out()
        values = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        zeros = {name: torch.zeros_like(value) for name, value in values.items()}
        state = _State(0, values, dict(zeros), dict(zeros), dict(values), [PolishPoint(0, None, loss)], [])
        if not math.isfinite(loss):
            state.stopped = "the loss is not finite before the first step"
    else:
        progress.say(f"continuing to polish after step {state.step} of {schedule.steps}")
    saved = time.monotonic()
    for step in progress.track(range(state.step, schedule.steps), "polishing"):
        if state.stopped:
            break
        _advance(state, step, parameters, units, backward, schedule)
        if not state.stopped and schedule.measures_after(step):
            _measure(state, held_out)
        if state.stopped or time.monotonic() - saved > _SAVED_AFTER or state.step == schedule.steps:
            _save(state, path)
            saved = time.monotonic()
    _put(parameters, state.best)
    return Trained(tuple(state.points), state.best_point.step, state.stopped)


def _advance(
    state: _State,
    step: int,
    parameters: Mapping[str, nn.Parameter],
    units: Mapping[str, float],
    backward: Callable[[Sequence[int]], float],
    schedule: Schedule,
) -> None:
    """One step of Adam. A loss or a gradient that is not finite stops, and changes nothing."""
    for parameter in parameters.values():
        parameter.grad = None
    loss = backward(schedule.batch_of(step))
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    if not math.isfinite(loss) or not all(bool(g.isfinite().all()) for g in gradients.values()):
        state.stopped = f"the loss or a gradient was not finite at step {step + 1}"
        return
    state.since.append(loss)
    state.step = step + 1
    rate = schedule.rate_of(step)
    bias_1, bias_2 = 1 - _FIRST**state.step, 1 - _SECOND**state.step
    with torch.no_grad():
        for name, gradient in gradients.items():
            first, second = state.first[name], state.second[name]
            state.first[name] = first = first * _FIRST + gradient * (1 - _FIRST)
            state.second[name] = second = second * _SECOND + gradient.square() * (1 - _SECOND)
            moved = (first / bias_1) / ((second / bias_2).sqrt() + _TINY)
            state.values[name] = state.values[name] - rate * units[name] * moved
    _put(parameters, state.values)


def _measure(state: _State, held_out: Callable[[], float]) -> None:
    """Note the loss on held-out text, keep the values if it is the least so far, and stop if none was for long."""
    loss, best = held_out(), state.best_point
    state.points.append(PolishPoint(state.step, sum(state.since) / len(state.since), loss))
    state.since = []
    if not math.isfinite(loss):
        state.stopped = f"the held-out loss was not finite after step {state.step}"
        state.points.pop()
    elif loss < best.held_out:
        state.best = dict(state.values)
    elif len(state.points) - 1 - state.points.index(best) >= _PATIENCE:
        state.stopped = f"no gain on held-out text since step {best.step}"


def _put(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


def _save(state: _State, path: Path) -> None:
    kinds = {"values": state.values, "first": state.first, "second": state.second, "best": state.best}
    tensors = {f"{kind}/{name}": value for kind, found in kinds.items() for name, value in found.items()}
    points = [[point.step, point.train, point.held_out] for point in state.points]
    facts: dict[str, Any] = {"step": state.step, "points": points, "since": state.since, "stopped": state.stopped}
    keep_tensors(path, tensors, facts)


def _resumed(parameters: Mapping[str, nn.Parameter], path: Path) -> _State | None:
    """The state that an earlier run left; its values are put into the parameters."""
    if not path.is_file():
        return None
    kept = KeptTensors.open(path)
    facts = kept.facts()
    by_kind: dict[str, dict[str, Tensor]] = {"values": {}, "first": {}, "second": {}, "best": {}}
    for key in kept.names():
        kind, _, name = key.partition("/")
        by_kind[kind][name] = kept.tensor(key)
    _put(parameters, by_kind["values"])
    points = [PolishPoint(*point) for point in facts["points"]]
    return _State(facts["step"], **by_kind, points=points, since=facts["since"], stopped=facts["stopped"])
