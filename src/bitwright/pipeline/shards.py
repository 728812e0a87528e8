"""What became of one stage of a model, on disk: a shard appears complete or not at all, and is read tensor by tensor.

A work directory holds `shard-00007.safetensors` for every stage that is done, and `inputs-00008.safetensors`: what the
next stage starts from. A run that was killed goes on from there; what it computes anew comes out the same to the bit.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from bitwright.checkpoints.stored import StoredLinear
from bitwright.errors import CheckpointError
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import Scheme

_CHANGED = "changed/"
_LAYER = "layer/"


@dataclass(frozen=True, slots=True)
class Made:
    """What quantizing one stage gave.

    layers: the quantized linears by name. changed: float parameters that a fold changed, weights of quantized linears
    among them: they count where such a linear falls back to 16 bit. biases: of quantized linears, where they differ
    from the model's; they go with the quantized weight. account: what the Record keeps of each linear.
    """

    layers: Mapping[str, StoredLinear]
    changed: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]
    account: Sequence[dict[str, Any]]


class Shards:
    """The shards in one directory, which they share with nothing else of the same names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._home: dict[str, Path] = {}  # key of a tensor -> its shard

    def write(self, index: int, made: Made) -> None:
        """Keep what stage `index` gave."""
        tensors = {f"{_CHANGED}{name}": value.contiguous() for name, value in made.changed.items()}
        for name, layer in made.layers.items():
            parts = _parts(layer) | ({"bias": made.biases[name]} if name in made.biases else {})
            tensors |= {f"{_LAYER}{name}/{part}": value.contiguous() for part, value in parts.items()}
        _write(self._path(index), tensors, {"account": json.dumps(list(made.account))})

    def account(self, count: int) -> list[dict[str, Any]]:
        """What the Record keeps, of the first `count` stages."""
        rows = []
        for index in range(count):
            with self._open(self._path(index)) as file:
                rows += json.loads(file.metadata()["account"])
        return rows

    def index(self, count: int) -> None:
        """Look up what the first `count` stages hold; needed before `layer` and `changed`."""
        for number in range(count):
            with self._open(self._path(number)) as file:
                self._home |= dict.fromkeys(file.keys(), self._path(number))

    def layer(self, name: str, scheme: Scheme) -> StoredLinear:
        """One quantized linear, whose scheme the plan says."""
        prefix = f"{_LAYER}{name}/"
        with self._open(self._home[f"{prefix}codes"]) as file:
            parts = {key.removeprefix(prefix): file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}  # noqa: SIM118
        assert scheme.weight is not None
        weight = QTensor(parts["codes"], parts["scale"], parts.get("zero_point"), scheme.weight, parts.get("codebook"))
        return StoredLinear(
            weight,
            scheme.input,
            parts.get("input_scale"),
            parts.get("input_zero_point"),
            parts.get("input_scale_K"),
            parts.get("input_shift_K"),
        )

    def bias(self, name: str) -> Tensor:
        """The bias of a quantized linear that `has_part(name, "bias")`."""
        key = f"{_LAYER}{name}/bias"
        with self._open(self._home[key]) as file:
            value: Tensor = file.get_tensor(key)
        return value

    def layer_names(self) -> frozenset[str]:
        """Names of the linears that the shards hold."""
        suffix = "/codes"
        return frozenset(
            key[len(_LAYER) : -len(suffix)] for key in self._home if key.startswith(_LAYER) and key.endswith(suffix)
        )

    def has_part(self, name: str, part: str) -> bool:
        """Whether a linear has e.g. an "input_scale_K"."""
        return f"{_LAYER}{name}/{part}" in self._home

    def changed_names(self) -> list[str]:
        """Names of the float parameters that were changed."""
        return [key.removeprefix(_CHANGED) for key in self._home if key.startswith(_CHANGED)]

    def changed(self, name: str) -> Tensor:
        """A changed float parameter."""
        with self._open(self._home[_CHANGED + name]) as file:
            value: Tensor = file.get_tensor(_CHANGED + name)
        return value

    def save_inputs(self, index: int, inputs: Sequence[Any]) -> None:
        """Keep what stage `index` starts from, in place of what was kept before."""
        tensors: dict[str, Tensor] = {}
        shapes = [_flatten(value, f"{number}", tensors) for number, value in enumerate(inputs)]
        _write(self._inputs_path(index), tensors, {"structure": json.dumps(shapes)}, sync=False)
        for path in self._saved_inputs():
            if path != self._inputs_path(index):
                path.unlink()

    def resume(self) -> tuple[int, list[Any] | None]:
        """(stage to go on with, what it starts from): (0, None) if nothing was kept."""
        for path in reversed(self._saved_inputs()):
            index = int(path.stem.removeprefix("inputs-"))
            if all(self._path(done).is_file() for done in range(index)):
                with self._open(path) as file:
                    structure = json.loads(file.metadata()["structure"])
                    return index, [_restore(shape, file) for shape in structure]
        return 0, None

    def _path(self, index: int) -> Path:
        return self.folder / f"shard-{index:05}.safetensors"

    def _inputs_path(self, index: int) -> Path:
        return self.folder / f"inputs-{index:05}.safetensors"

    def _saved_inputs(self) -> list[Path]:
        return sorted(self.folder.glob("inputs-*.safetensors"))

    @staticmethod
    def _open(path: Path) -> Any:
        try:
            return safetensors.safe_open(path, framework="pt")
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(
                f"{path}: what an earlier run kept is damaged ({error}); delete {path.parent} to start over"
            ) from None


def _parts(layer: StoredLinear) -> dict[str, Tensor]:
    weight = layer.qtensor
    parts = {
        "codes": weight.codes_NK,
        "scale": weight.scale_NG,
        "zero_point": weight.zero_point_NG,
        "codebook": weight.codebook,
        "input_scale": layer.input_scale,
        "input_zero_point": layer.input_zero_point,
        "input_scale_K": layer.input_scale_K,
        "input_shift_K": layer.input_shift_K,
    }
    return {name: value for name, value in parts.items() if value is not None}


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], *, sync: bool = True) -> None:
    """Through a temporary file, so that a reader sees all of it or nothing.

    sync: also through a loss of power; without it, through the death of this process.
    """
    temporary = path.with_name(f".{path.name}.part")
    safetensors.torch.save_file(tensors, temporary, metadata)
    if sync:
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
    temporary.replace(path)


def _flatten(value: Any, key: str, into: dict[str, Tensor]) -> Any:
    """Put the tensors of a block's output under keys of their own; its structure as plain data."""
    if isinstance(value, Tensor):
        into[key] = value.contiguous()
        return key
    if isinstance(value, tuple | list):
        return [_flatten(part, f"{key}.{number}", into) for number, part in enumerate(value)]
    if value is None:
        return None
    raise CheckpointError(f"a block put out a {type(value).__name__}; tensors and tuples of them can be kept")


def _restore(structure: Any, file: Any) -> Any:
    if isinstance(structure, list):
        return tuple(_restore(part, file) for part in structure)
    return None if structure is None else file.get_tensor(structure)
