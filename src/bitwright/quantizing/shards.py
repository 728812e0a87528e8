"""Keeps the result of each stage on disk. A file appears complete or not at all, and is read tensor by tensor.

A work directory holds `shard-00007.safetensors` for every stage that is done, and `inputs-00008.safetensors`: what the
next stage starts from. A run that is killed goes on from there, and loses the stage under way at most; what it computes
anew comes out the same to the bit.

Files are written and read tensor by tensor, so that neither takes memory. They are read by plain
file input, not through a map: tensors in a mapped file lie at any address, and sums over them may then be added up in
another order.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitwright.atomic import atomic_file
from bitwright.errors import CheckpointError
from bitwright.files.safetensors_writer import pending, write_safetensors
from bitwright.files.tensors import MappedTensors
from bitwright.models.tensor_files import read_values
from bitwright.numerics.linear import InputTransform, QuantizedLinear, StaticGrid
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.schemes import Scheme
from bitwright.record import LayerRow, as_data, from_data

_CHANGED = "changed/"
_LAYER = "layer/"
_NEW_BIAS, _OWN_BIAS = "bias", "own_bias"
_FACTS = "facts"  # a tensor of bytes: JSON


@dataclass(frozen=True, slots=True)
class Made:
    """The result of quantizing one stage.

    layers: the quantized linears by name. changed: float parameters that a fold changed, weights of quantized linears
    among them: they count where such a linear falls back to 16 bit. rebiased: quantized linears whose bias is another
    than the model's; it goes with the quantized weight. account: what the Record keeps of each linear.
    """

    layers: Mapping[str, QuantizedLinear]
    changed: Mapping[str, Tensor]
    rebiased: Collection[str]
    account: Sequence[LayerRow]


class Shards:
    """The shards in one directory, which they share with nothing else of the same names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._home: dict[str, KeptTensors] = {}  # key of a tensor -> its shard

    def write(self, index: int, made: Made) -> None:
        """Keep what stage `index` gave."""
        tensors = {f"{_CHANGED}{name}": value for name, value in made.changed.items()}
        for name, layer in made.layers.items():
            parts = _parts(layer, rebiased=name in made.rebiased)
            tensors |= {f"{_LAYER}{name}/{part}": value for part, value in parts.items()}
        keep_tensors(self._path(index), tensors, as_data(made.account))

    def account(self, count: int) -> list[LayerRow]:
        """What the Record keeps, of the first `count` stages.

        Raises:
            CheckpointError: a shard is damaged. So do all that read.
        """
        told = (KeptTensors.open(self._path(index)).facts() for index in range(count))
        return [from_data(LayerRow, row) for rows in told for row in rows]

    def index(self, count: int) -> None:
        """Look up what the first `count` stages hold; needed before `layer` and `changed`."""
        for number in range(count):
            file = KeptTensors.open(self._path(number))
            self._home |= dict.fromkeys(file.tensors, file)

    def layer(self, name: str, scheme: Scheme) -> QuantizedLinear:
        """One quantized linear, whose scheme the plan says."""
        prefix = f"{_LAYER}{name}/"
        file = self._home[f"{prefix}codes"]
        parts = {key.removeprefix(prefix): file.tensor(key) for key in file.tensors if key.startswith(prefix)}
        assert scheme.weight is not None
        weight = QTensor(
            parts["codes"], parts["scale"], parts.get("zero_point"), scheme.weight, parts.get("codebook"),
            parts.get("minimum"),
        )  # fmt: skip
        static = None
        if "input_scale" in parts:
            static = StaticGrid(float(parts["input_scale"]), int(parts["input_zero_point"]))
        scale_K, shift_K = parts.get("input_scale_K"), parts.get("input_shift_K")
        transform = None if scale_K is None and shift_K is None else InputTransform(scale_K, shift_K)
        return QuantizedLinear(weight, parts.get(_NEW_BIAS, parts.get(_OWN_BIAS)), scheme.input, static, transform)

    def bias(self, name: str) -> Tensor:
        """The bias of a quantized linear that `is_rebiased`."""
        key = f"{_LAYER}{name}/{_NEW_BIAS}"
        return self._home[key].tensor(key)

    def is_rebiased(self, name: str) -> bool:
        """Whether the bias of a quantized linear is another than the model's."""
        return self.has_part(name, _NEW_BIAS)

    def has_part(self, name: str, part: str) -> bool:
        """Whether a linear has e.g. an "input_scale_K"."""
        return f"{_LAYER}{name}/{part}" in self._home

    def changed_names(self) -> list[str]:
        """Names of the float parameters that were changed."""
        return [key.removeprefix(_CHANGED) for key in self._home if key.startswith(_CHANGED)]

    def changed(self, name: str) -> Tensor:
        """A changed float parameter."""
        return self._home[_CHANGED + name].tensor(_CHANGED + name)

    def save_inputs(self, index: int, inputs: Sequence[Any]) -> None:
        """Keep what stage `index` starts from, in place of what was kept before."""
        tensors: dict[str, Tensor] = {}
        structure = [_flatten(value, f"{number}", tensors) for number, value in enumerate(inputs)]
        keep_tensors(self._inputs_path(index), tensors, structure)
        for path in self._saved_inputs():
            if path != self._inputs_path(index):
                path.unlink()

    def resume(self) -> tuple[int, list[Any] | None]:
        """(stage to go on with, what it starts from): (0, None) if nothing was kept."""
        for path in reversed(self._saved_inputs()):
            index = int(path.stem.removeprefix("inputs-"))
            if all(self._path(done).is_file() for done in range(index)):
                for done in range(index):
                    KeptTensors.open(
                        self._path(done)
                    )  # what is damaged is better known now than after all other blocks
                file = KeptTensors.open(path)
                return index, [_restored(value, file) for value in file.facts()]
        return 0, None

    def _path(self, index: int) -> Path:
        return self.folder / f"shard-{index:05}.safetensors"

    def _inputs_path(self, index: int) -> Path:
        return self.folder / f"inputs-{index:05}.safetensors"

    def _saved_inputs(self) -> list[Path]:
        return sorted(self.folder.glob("inputs-*.safetensors"))


@dataclass(frozen=True, slots=True, eq=False)
class KeptTensors:
    """One file that `keep_tensors` wrote, its header checked."""

    path: Path
    tensors: MappedTensors

    @classmethod
    def open(cls, path: Path) -> "KeptTensors":
        """Raises:
        CheckpointError: the file is damaged. So do all methods.
        """
        with _reading(path):
            return cls(path, MappedTensors([path]))

    def names(self) -> list[str]:
        """The keys of all tensors."""
        return [key for key in self.tensors if key != _FACTS]

    def tensor(self, key: str) -> Tensor:
        """The whole tensor, in memory of its own."""
        with _reading(self.path):
            return read_values(self.tensors, key, 0, self.tensors.shape(key))

    def facts(self) -> Any:
        """The values that are not tensors."""
        told = self.tensor(_FACTS)
        with _reading(self.path):
            return json.loads(told.numpy().tobytes())


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn every failure of a damaged file into one error that says what to do."""
    try:
        yield
    except (OSError, ValueError, KeyError, CheckpointError) as error:
        found = str(error).removeprefix(f"{path}: ").partition("; ")[0]
        raise CheckpointError(
            f"{path}: this file of an earlier run is damaged ({found}); delete {path.parent} to start over"
        ) from None


def _parts(layer: QuantizedLinear, *, rebiased: bool) -> dict[str, Tensor]:
    weight, static, transform = layer.weight, layer.static, layer.transform
    parts = {
        "codes": weight.codes_NK,
        "scale": weight.scale_NG,
        "zero_point": weight.zero_point_NG,
        "codebook": weight.codebook,
        "minimum": weight.minimum_NG,
        _NEW_BIAS if rebiased else _OWN_BIAS: layer.bias_N,
        "input_scale": None if static is None else torch.tensor(static.scale),
        "input_zero_point": None if static is None else torch.tensor(static.zero_point, dtype=torch.int8),
        "input_scale_K": None if transform is None else transform.scale_K,
        "input_shift_K": None if transform is None else transform.shift_K,
    }
    return {name: value for name, value in parts.items() if value is not None}


def keep_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Any) -> None:
    """Write tensors and plain data through a temporary file, so that a reader sees all of it or nothing, also after a
    loss of power.

    Raises:
        CheckpointError: the disk is full, or writing fails otherwise.
    """
    told = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
    kept = {key: pending(value) for key, value in tensors.items()} | {_FACTS: pending(told)}
    try:
        with atomic_file(path) as temporary:
            write_safetensors(temporary, kept)
    except OSError as error:
        raise CheckpointError(
            f"{path}: this file cannot be written ({error.strerror}). The work so far is kept; free some space, and "
            "run the same command again to continue"
        ) from None


def _flatten(value: Any, key: str, into: dict[str, Tensor]) -> Any:
    """Put the tensors of a block's output under keys of their own; its structure as plain data."""
    if isinstance(value, Tensor):
        into[key] = value
        return key
    if isinstance(value, tuple | list):
        return [_flatten(part, f"{key}.{number}", into) for number, part in enumerate(value)]
    if value is None:
        return None
    raise CheckpointError(f"a block gave a {type(value).__name__}, but only tensors and tuples of tensors can be kept")


def _restored(structure: Any, file: KeptTensors) -> Any:
    if isinstance(structure, list):
        return tuple(_restored(part, file) for part in structure)
    return None if structure is None else file.tensor(structure)
