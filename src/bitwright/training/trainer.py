"""`train`: the loop that brings a model in training back to its teacher.

It keeps the best state that it saw on texts of its own that it does not train on, so that it ends no worse than it
began there. If it sees one that is far worse, the steps are too large: it goes back to the best and takes smaller ones.
What a run needs to go on is kept on disk now and then; a run that goes on ends in the same bytes.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bitwright.progress import Progress
from bitwright.training.batches import batch_of
from bitwright.training.callback import blend_at
from bitwright.training.prepare import fake_linears, set_blend
from bitwright.training.state import Look, State, load_state, save_state

_WARM_UP = 0.05  # of the steps, while the learning rate rises; then it falls as a cosine does
_CLIP = 1.0  # of the gradient's norm
_WORSE, _SLOWER = 2.0, 0.3  # times the best loss, from where on training goes back; and times the rate from then on


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to train.

    steps: of the optimizer. batch: texts of a step. rate: learning rate of the weights, in steps of their grids: coarse
    grids need large steps until a code changes, and bear them. other_rate: of biases and norms; gain_rate: of scales.
    looks: how often the texts that are kept apart are tried, evenly spread. after, ramp: shares of the steps before the
    grids, and while they take over (`callback.blend_at`). bf16: whether products are computed in bfloat16; weights,
    scales and the optimizer stay float32. short: whether texts are short (at most about 128 tokens), so that attention
    is quicker by plain products, with all its weights in memory, than in blocks. seed: of the order of the texts.
    save_seconds: between two states on disk.
    """

    steps: int
    batch: int = 32
    rate: float = 0.01
    other_rate: float = 3e-4
    gain_rate: float = 1e-3
    looks: int = 10
    after: float = 0.0
    ramp: float = 0.0
    bf16: bool = False
    short: bool = False
    seed: int = 0
    save_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Trained:
    """How a training went. curve: in the order of the steps, the start first. best: the step whose state was kept.
    stopped: why it ended early; "" if it did not."""

    curve: tuple[Look, ...]
    best: int
    stopped: str = ""

    @property
    def start_loss(self) -> float:
        """The loss before the first step."""
        return self.curve[0].loss

    @property
    def best_loss(self) -> float:
        """The loss of what was kept."""
        return next(look.loss for look in self.curve if look.step == self.best)


class Data(NamedTuple):
    """What to train on. lengths: of the texts, in tokens. loss: of the texts with these numbers, a scalar with
    gradient. kept_apart: batches of numbers, of texts that are tried only; disjoint from `train`. train: numbers of the
    others."""

    lengths: Sequence[int]
    loss: Callable[[Sequence[int]], Tensor]
    train: Sequence[int]
    kept_apart: Sequence[Sequence[int]]


def train(model: nn.Module, data: Data, settings: Settings, folder: Path | None, progress: Progress) -> Trained:
    """Train the parameters of `model` that require a gradient. Mutates it; it ends in the best state seen.

    folder: keeps the state of the run, and may hold that of an earlier one with the same settings.

    Raises:
        CheckpointError: the state of an earlier run is damaged, or cannot be written.
    """
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = _optimizer(model, wanted, settings)
    state = load_state(folder, wanted, optimizer) if folder is not None else None
    if state is None:
        look = Look(0, _tried(model, data), None)
        state = State(0, [look], {name: p.detach().clone() for name, p in wanted.items()}, 0, 0.0)
    else:
        progress.say(f"continuing the training at step {state.step} of {settings.steps}")
    lengths = [data.lengths[i] for i in data.train]
    due = _look_steps(settings)
    saved, stopped = time.monotonic(), ""
    for step in progress.track(range(state.step, settings.steps), "training"):
        blend = blend_at(step / settings.steps, settings.after, settings.ramp)
        on_grid = blend >= 1
        set_blend(model, blend)
        _set_rates(optimizer, step, settings, state.pace)
        chosen = [data.train[i] for i in batch_of(step, lengths, settings.batch, settings.seed)]
        loss = _one_step(list(wanted.values()), optimizer, data, chosen, settings)
        if not math.isfinite(loss):
            stopped = f"step {step + 1}: the loss is {loss}"
            break
        state.step, state.losses = step + 1, state.losses + loss
        if step + 1 in due:
            previous = state.curve[-1].step
            look = Look(step + 1, _tried(model, data), state.losses / (step + 1 - previous))
            state.curve.append(look)
            state.losses = 0.0
            best = min(earlier.loss for earlier in state.curve[:-1])
            if look.loss < best:
                state.best = look.step
                for name, parameter in wanted.items():
                    state.best_values[name].copy_(parameter.detach())
            elif look.loss > _WORSE * best and step + 1 < settings.steps and on_grid:
                progress.say(
                    f"step {step + 1}: the loss on the texts kept apart is {look.loss:.4g}, and {best:.4g} after step "
                    f"{state.best}; training returns to that step, at {_SLOWER:g} times the rate"
                )
                _put(wanted, state.best_values)
                optimizer.state.clear()
                state.pace, state.begun = state.pace * _SLOWER, step + 1
        if folder is not None and time.monotonic() - saved > settings.save_seconds:
            save_state(folder, state, wanted, optimizer)
            saved = time.monotonic()
    if folder is not None and not stopped:
        save_state(folder, state, wanted, optimizer)
    _put(wanted, state.best_values)
    set_blend(model, 1.0)
    return Trained(tuple(state.curve), state.best, stopped)


def steps_in(model: nn.Module, data: Data, settings: Settings, minutes: float) -> int:
    """How many steps fit into a time, at the speed of a few that are tried and undone here; at least one."""
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in wanted.items()}
    optimizer, lengths = _optimizer(model, wanted, settings), [data.lengths[i] for i in data.train]
    taken = []
    for step in range(4):
        begun = time.perf_counter()
        chosen = [data.train[i] for i in batch_of(step, lengths, settings.batch, settings.seed)]
        _one_step(list(wanted.values()), optimizer, data, chosen, settings)
        taken.append(time.perf_counter() - begun)
    begun = time.perf_counter()
    _tried(model, data)
    trying = (time.perf_counter() - begun) * (settings.looks + 1)
    _put(wanted, before)
    for parameter in wanted.values():
        parameter.grad = None
    return max(1, int((60 * minutes - trying) / (sum(taken[1:]) / len(taken[1:]))))


def _one_step(
    parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, data: Data, chosen: Sequence[int], how: Settings
) -> float:
    """One step of the optimizer; none if the loss is not finite. Returns the loss."""
    with sdpa_kernel(SDPBackend.MATH) if how.short else nullcontext():
        with torch.autocast("cpu", torch.bfloat16, enabled=how.bf16):
            loss = data.loss(chosen)
        found = float(loss.detach())
        optimizer.zero_grad(set_to_none=True)
        if math.isfinite(found):
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
            optimizer.step()
    return found


@torch.no_grad()
def _tried(model: nn.Module, data: Data) -> float:
    """The mean loss on the texts that are kept apart, on the grids, in float32 around them."""
    set_blend(model, 1.0)
    losses = [float(data.loss(batch)) * len(batch) for batch in data.kept_apart]
    return sum(losses) / sum(map(len, data.kept_apart))


@torch.no_grad()
def _put(wanted: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, parameter in wanted.items():
        parameter.copy_(values[name])


def _optimizer(model: nn.Module, wanted: dict[str, nn.Parameter], settings: Settings) -> torch.optim.AdamW:
    """AdamW without decay: scales and weights each with their own rate."""
    on_grids = {id(fake.weight): float(fake.stored_scale().mean()) for _, fake in fake_linears(model)}
    groups: list[dict[str, Any]] = [{"params": [], "peak": settings.other_rate}]
    groups.append({"params": [], "peak": settings.gain_rate})
    for name, parameter in wanted.items():
        if id(parameter) in on_grids:
            groups.append({"params": [parameter], "peak": settings.rate * on_grids[id(parameter)]})
        else:
            groups[name.endswith("_gain")]["params"].append(parameter)
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, weight_decay=0.0)


def _set_rates(optimizer: torch.optim.Optimizer, step: int, settings: Settings, pace: float) -> None:
    rising = max(1, round(_WARM_UP * settings.steps))
    done = (step + 1 - rising) / max(1, settings.steps - rising)
    share = (step + 1) / rising if step < rising else (1 + math.cos(math.pi * done)) / 2
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share * pace


def _look_steps(settings: Settings) -> set[int]:
    looks = min(settings.looks, settings.steps)
    return {round(settings.steps * (number + 1) / looks) for number in range(looks)}
