"""The state of a training on disk: values, moments of the optimizer, random state, the best so far, and the curve.

One safetensors file that appears complete or not at all; nothing in it is unpickled.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bitwright.atomic import atomic_file
from bitwright.errors import CheckpointError
from bitwright.files.safetensors_writer import pending, write_safetensors
from bitwright.files.tensors import MappedTensors
from bitwright.models.tensor_files import read_values

STATE_FILE = "training.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Look(NamedTuple):
    """What was seen after some steps. loss: on the texts kept apart. train_loss: mean since the look before; None at
    the start."""

    step: int
    loss: float
    train_loss: float | None


@dataclass(slots=True)
class State:
    """A training under way.

    step: that were taken. curve: looks so far. best_values: of the parameters at the step `best`. losses: sum of the
    training losses since the last look. pace: the share of the learning rate that is left after steps back to the best;
    begun: the step after which the optimizer began anew.
    """

    step: int
    curve: list[Look]
    best_values: dict[str, Tensor]
    best: int
    losses: float
    pace: float = 1.0
    begun: int = 0


def save_state(folder: Path, state: State, wanted: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Keep what the run needs to go on from here.

    Raises:
        CheckpointError: the disk is full, or writing fails otherwise.
    """
    tensors: dict[str, Tensor] = {"random": torch.get_rng_state()}
    for name, parameter in wanted.items():
        tensors[f"value/{name}"] = parameter.detach()
        tensors[f"best/{name}"] = state.best_values[name]
        tensors |= {
            f"{part}/{name}": optimizer.state[parameter][part] for part in _MOMENTS if optimizer.state[parameter]
        }
    facts = {
        "step": state.step,
        "best": state.best,
        "losses": state.losses,
        "pace": state.pace,
        "begun": state.begun,
        "curve": [list(look) for look in state.curve],
    }
    tensors["facts"] = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
    try:
        with atomic_file(folder / STATE_FILE) as temporary:
            write_safetensors(temporary, {name: pending(value) for name, value in tensors.items()})
    except OSError as error:
        raise CheckpointError(
            f"{folder / STATE_FILE}: this file cannot be written ({error.strerror}); free some space, and run the same "
            "command again to continue"
        ) from None


def load_state(folder: Path, wanted: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> State | None:
    """Go on from what an earlier run kept: fills parameters, optimizer and random state. None if it kept nothing.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return None
    try:
        tensors = MappedTensors([path])
        values = {key: read_values(tensors, key, 0, tensors.shape(key)) for key in tensors}
        facts: dict[str, Any] = json.loads(values["facts"].numpy().tobytes())
        taken = torch.tensor(float(facts["step"] - facts["begun"]))
        with torch.no_grad():
            for name, parameter in wanted.items():
                parameter.copy_(values[f"value/{name}"])
                if f"exp_avg/{name}" in values:
                    moments = {part: values[f"{part}/{name}"] for part in _MOMENTS}
                    optimizer.state[parameter] = {"step": taken.clone(), **moments}
        torch.set_rng_state(values["random"])
        best = {name: values[f"best/{name}"].clone() for name in wanted}
        curve = [Look(*row) for row in facts["curve"]]
        return State(facts["step"], curve, best, facts["best"], facts["losses"], facts["pace"], facts["begun"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, CheckpointError) as error:
        raise CheckpointError(
            f"{path}: this file of an earlier run is damaged ({error}); delete {folder} to start over"
        ) from None
