"""Reads the tensors of a model's files by the names and in the shapes of the model's parameters.

Files and model differ in five ways: the base model's prefix, names that a family changed over the years, the experts of
a layer stacked into one tensor, weights stored transposed (GPT-2), and a parameter that repeats another one and is left
out of the file.
"""

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import ModelError
from bitwright.files.names import name_in
from bitwright.models.tensor_files import TensorFiles

_EXPERT = re.compile(r"(?P<experts>.*\.experts)\.(?P<index>\d+)\.(?P<part>gate_proj|up_proj|down_proj)\.weight")

# Part of an expert -> the stacked tensor that holds it, and which of how many equal parts of an expert's rows it is.
_STACKED = {"gate_proj": ("gate_up_proj", 0, 2), "up_proj": ("gate_up_proj", 1, 2), "down_proj": ("down_proj", 0, 1)}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a parameter is: so many values of the file's tensor `name`, from flat position `start`, and their shape
    there, which is the parameter's, or its transpose."""

    name: str
    start: int
    shape: tuple[int, ...]
    transposed: bool


class SourceTensors(Mapping[str, Tensor]):
    """Parameter name -> tensor, read when asked for and not kept. Shapes and dtypes are known without reading.

    Attributes:
        files: the tensors by the files' own names.
        missing: parameters that the files lack.
        kept: names of the files' tensors that no parameter reads: further layers for predicting tokens, masks that
            models once stored, heads of another task.
        untied: parameters that the config says repeat another, while the files give both, with different values.
    """

    def __init__(
        self,
        files: TensorFiles,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        prefix: str = "",
        renames: Mapping[str, str] | None = None,
        transposed: Collection[str] = (),
        tied: Mapping[str, str] | None = None,
    ) -> None:
        """Find every parameter in the files; nothing is read but what has to be compared.

        Args:
            shapes: name -> shape of every parameter and stored buffer of the model.
            prefix: the base model's, "bert" or "model": a file may or may not carry it.
            renames: parameter -> its name in the files, where the family has one of its own.
            transposed: parameters whose tensors are stored as (K, N).
            tied: parameter -> the one that it repeats.

        Raises:
            ModelError: a tensor has another shape than its parameter.
        """
        self.files = files
        self._prefix = prefix
        self._places: dict[str, _Place] = {}
        for name, shape in shapes.items():
            place = self._stacked(name, shape) or self._single(
                name, shape, (renames or {}).get(name, name), transposed=name in transposed
            )
            if place is not None:
                self._places[name] = place
        self.untied = tuple(name for name, kept in (tied or {}).items() if self._differ(name, kept))
        for name, kept in (tied or {}).items():
            here = self._places.get(kept) or self._places.get(name)
            if here is not None and name not in self.untied:
                self._places[name] = self._places[kept] = here
        self.missing = tuple(name for name in shapes if name not in self._places)
        read = {place.name for place in self._places.values()}
        self.kept = tuple(name for name in files if name not in read)

    def _single(self, name: str, shape: tuple[int, ...], renamed: str, *, transposed: bool) -> _Place | None:
        found = next((f for f in (name_in(self.files, n, self._prefix) for n in (renamed, name)) if f), None)
        if found is None:
            return None
        stored = self.files.shape(found)
        if stored != (shape[::-1] if transposed else shape):
            raise ModelError(
                f"{self.files.file(found)}: {found} is {stored} in the weights, but config.json asks for "
                f"{shape[::-1] if transposed else shape}; config and weights are of different models"
            )
        return _Place(found, 0, stored, transposed)

    def _stacked(self, name: str, shape: tuple[int, ...]) -> _Place | None:
        """One expert's part of a tensor (E, rows of an expert, K), gate over up."""
        if (match := _EXPERT.fullmatch(name)) is None:
            return None
        stacked, part, parts = _STACKED[match["part"]]
        found = name_in(self.files, f"{match['experts']}.{stacked}", self._prefix)
        if found is None:
            return None
        stored, (rows, columns), index = self.files.shape(found), shape, int(match["index"])
        if len(stored) != 3 or index >= stored[0] or stored[1:] != (parts * rows, columns):
            raise ModelError(
                f"{self.files.file(found)}: {found} is {stored} in the weights, but config.json asks for (more than "
                f"{index}, {parts * rows}, {columns}): experts, rows of an expert, input features. Config and "
                "weights are of different models"
            )
        return _Place(found, (index * parts + part) * rows * columns, shape, transposed=False)

    def _differ(self, name: str, other: str) -> bool:
        """Whether the files give both parameters, and different values for them."""
        a, b = self._places.get(name), self._places.get(other)
        if a is None or b is None or a == b:
            return False
        both = (self.files.pieces(place.name, 0, math.prod(a.shape)) for place in (a, b))
        return not all(map(torch.equal, *both))

    def __getitem__(self, name: str) -> Tensor:
        """The tensor in the dtype of the file, contiguous.

        Raises:
            KeyError: the files lack it.
            CheckpointError: a dtype that torch lacks, or a file that has changed since it was opened.
        """
        place = self._places[name]
        tensor = self.files.values_at(place.name, place.start, place.shape)
        return tensor.t().contiguous() if place.transposed else tensor

    def pieces(self, name: str) -> Iterable[Tensor]:
        """The values of `tensors[name]` in consecutive tensors, of which one is in memory at a time where the file has
        them in this order."""
        place = self._places[name]
        return (self[name],) if place.transposed else self.files.pieces(place.name, place.start, math.prod(place.shape))

    def looked_up(self, name: str, check: Callable[[Tensor], None]) -> Tensor | None:
        """As `tensors[name]`, of which only what is looked at comes into memory: `TensorFiles.looked_up`."""
        place = self._places[name]
        whole = place.start == 0 and place.shape == self.files.shape(place.name) and not place.transposed
        return self.files.looked_up(place.name, check) if whole else None

    def first_rows(self, name: str, rows: int) -> Tensor:
        """The first rows of a matrix, as `tensors[name]` gives it; no more is read than has to be."""
        place = self._places[name]
        if place.transposed:
            return self[name][:rows]
        return self.files.values_at(place.name, place.start, (min(rows, place.shape[0]), *place.shape[1:]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter."""
        place = self._places[name]
        return place.shape[::-1] if place.transposed else place.shape

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a parameter in its file.

        Raises:
            CheckpointError: a dtype that torch lacks.
        """
        return self.files.dtype(self._places[name].name)

    def file_name(self, name: str) -> str:
        """Name of the files' tensor that holds a parameter: several may share one."""
        return self._places[name].name

    def where(self, name: str) -> str:
        """A parameter's file and its name there, for messages."""
        stored = self.file_name(name)
        return f"{self.files.file(stored)}: {stored}"
