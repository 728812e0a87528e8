"""The sentence-transformers modules that follow pooling: Dense, LayerNorm, Normalize, Dropout. numpy, no torch.

They read one vector per text, so they take next to no time, and stay in float32.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitwright.errors import EngineError, ModelError, brief
from bitwright.files.folder import Folder
from bitwright.files.modules import AFTER_POOLING, Module, check_on_pooled, module_config
from bitwright.files.pooling import unit
from bitwright.files.tensors import MappedTensors
from bitwright.numerics.arrays import Bf16

WEIGHTS, PICKLED = "model.safetensors", "pytorch_model.bin"

ReadPickled = Callable[[Path], Mapping[str, np.ndarray]]  # of a file of tensors that only torch reads

_erf = np.vectorize(math.erf, otypes=[np.float32])

# torch's activations without arguments, by the name of the class.
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Identity": lambda x: x,
    "Tanh": lambda x: np.asarray(np.tanh(x)),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "ReLU": lambda x: np.maximum(x, 0),
    "GELU": lambda x: x * np.float32(0.5) * (1 + _erf(x / np.float32(math.sqrt(2)))),
    "SiLU": lambda x: x / (1 + np.exp(-x)),
    "LeakyReLU": lambda x: np.where(x > 0, x, x * np.float32(0.01)),
    "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
}


class Dense(NamedTuple):
    """activation(x Wᵀ + b), plus x or x Rᵀ if there is a residual.

    weight_NK, bias_N: float32. activation: one of `ACTIVATIONS`. residual_NK: R; None with `residual`: x itself.
    """

    weight_NK: np.ndarray
    bias_N: np.ndarray | None
    activation: str
    residual: bool = False
    residual_NK: np.ndarray | None = None

    @property
    def width(self) -> int | None:
        """The number of values that it puts out."""
        return len(self.weight_NK)

    def __call__(self, x_BK: np.ndarray) -> np.ndarray:
        y_BN: np.ndarray = x_BK @ self.weight_NK.T
        y_BN = ACTIVATIONS[self.activation](y_BN if self.bias_N is None else y_BN + self.bias_N)
        if self.residual:
            y_BN = y_BN + (x_BK if self.residual_NK is None else x_BK @ self.residual_NK.T)
        return y_BN


class LayerNorm(NamedTuple):
    """Each vector gets mean 0 and variance 1, then weight w and bias b. float32 (H,)."""

    weight_H: np.ndarray
    bias_H: np.ndarray

    @property
    def width(self) -> int | None:
        """None: as wide as what comes in."""
        return None

    def __call__(self, x_BH: np.ndarray) -> np.ndarray:
        centred = x_BH - x_BH.mean(axis=-1, keepdims=True)
        scale = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + np.float32(1e-5))
        normed: np.ndarray = centred / scale * self.weight_H + self.bias_H
        return normed


class Normalize(NamedTuple):
    """Scale each vector to length 1."""

    @property
    def width(self) -> int | None:
        """None: as wide as what comes in."""
        return None

    def __call__(self, x_BH: np.ndarray) -> np.ndarray:
        return unit(x_BH)


Step = Dense | LayerNorm | Normalize


def steps_of(
    package: Folder, modules: Sequence[Module], width: int | None, read_pickled: ReadPickled | None
) -> tuple[list[Step], list[str]]:
    """The steps of the modules after pooling, and the unknown keys of their files. Dropout does nothing here.

    width: of the pooled vector, where it is known. read_pickled: reads weights that are no safetensors.

    Raises:
        ModelError: a module without a row here, or files that do not say what they should.
        EngineError: weights that only torch reads, and nothing that does.
    """
    steps: list[Step] = []
    told: list[str] = []
    for module in modules:
        known, make = _MODULES[module.kind]
        config, unknown = module_config(package, module, known)
        told += unknown
        check_on_pooled(package, module, config)
        if make is None:
            continue
        step, width = make(_Files(package, module, config, read_pickled), width)
        steps.append(step)
    return steps, told


class _Files(NamedTuple):
    """The files of one module."""

    package: Folder
    module: Module
    config: Mapping[str, Any]
    read_pickled: ReadPickled | None

    @property
    def where(self) -> Path:
        return self.package / self.module.folder

    def weights(self) -> dict[str, np.ndarray]:
        """float32, by name."""
        return weights_of(self.package, self.module, self.read_pickled)

    def take(self, tensors: dict[str, np.ndarray], name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """The tensor of this name, checked for this shape; None in the shape stands for any size."""
        found = tensors.pop(name, None)
        if found is None:
            raise ModelError(f"{self.where}: the weights lack {name}; download the model again")
        if len(found.shape) != len(shape) or any(n not in (None, m) for n, m in zip(shape, found.shape, strict=True)):
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise ModelError(f"{self.where}: {name} has the shape {list(found.shape)}; ({wanted}) is expected")
        if not np.isfinite(found).all():
            raise ModelError(f"{self.where}: {name} holds NaN or infinite values")
        return found

    def nothing_left(self, tensors: dict[str, np.ndarray]) -> None:
        if tensors:
            names = ", ".join(sorted(tensors)[:3])
            raise ModelError(
                f"{self.where}: the weights hold {names}, but the module has no place for them; its config.json and "
                "weights do not belong together"
            )


def weights_of(package: Folder, module: Module, read_pickled: ReadPickled | None) -> dict[str, np.ndarray]:
    """The weights in a module's folder by name, float32.

    Raises:
        ModelError: there are none. CheckpointError: damaged. EngineError: only torch reads them, and `read_pickled` is
            None.
    """
    folder = package / module.folder
    if os.path.isfile(folder / WEIGHTS):  # also of a name that no file can have
        mapped = MappedTensors([folder / WEIGHTS])
        stored = {name: mapped[name] for name in mapped}
        return {
            name: value.widen() if isinstance(value, Bf16) else np.array(value, np.float32)
            for name, value in stored.items()
        }
    if not os.path.isfile(folder / PICKLED):
        raise ModelError(
            f"{folder}: there is neither {WEIGHTS} nor {PICKLED}; the download is incomplete, download the model again"
        )
    if read_pickled is None:
        raise EngineError(f"{folder / PICKLED}: only torch reads this file")
    return {name: np.asarray(value, np.float32) for name, value in read_pickled(folder / PICKLED).items()}


def _dense(files: _Files, width: int | None) -> tuple[Step, int | None]:
    tensors, residual = files.weights(), bool(files.config.get("use_residual", False))
    weight_NK = files.take(tensors, "linear.weight", (None, width))
    n, k = weight_NK.shape
    bias_N = files.take(tensors, "linear.bias", (n,)) if files.config.get("bias", True) else None
    residual_NK = files.take(tensors, "residual.weight", (n, k)) if residual and n != k else None
    files.nothing_left(tensors)
    where = f"{files.where / 'config.json'}: activation_function"
    activation = activation_name(files.config.get("activation_function", "torch.nn.modules.activation.Tanh"), where)
    return Dense(weight_NK, bias_N, activation, residual, residual_NK), n


def _layer_norm(files: _Files, width: int | None) -> tuple[Step, int | None]:
    tensors = files.weights()
    weight_H = files.take(tensors, "norm.weight", (width,))
    bias_H = files.take(tensors, "norm.bias", weight_H.shape)
    files.nothing_left(tensors)
    return LayerNorm(weight_H, bias_H), len(weight_H)


def _normalize(files: _Files, width: int | None) -> tuple[Step, int | None]:
    return Normalize(), width


def activation_name(path: object, where: str) -> str:
    """The name in `ACTIVATIONS` of the torch class at this path.

    Raises:
        ModelError: it is none of them; the library would run it, and other people's code is not replaced.
    """
    name = path.rpartition(".")[2] if isinstance(path, str) and path.startswith("torch.nn.") else ""
    if name not in ACTIVATIONS:
        raise ModelError(f"{where} is {brief(path)}; Bitwright knows these of torch: {', '.join(ACTIVATIONS)}")
    return name


_Make = Callable[[_Files, int | None], tuple[Step, int | None]]

# Kind of module -> keys of its config.json, and what makes a step of its files.
_MODULES: dict[str, tuple[tuple[str, ...], _Make | None]] = {
    "Dense": (
        ("in_features", "out_features", "bias", "activation_function", "use_residual", "module_input_name",
         "module_output_name"),
        _dense,
    ),
    "LayerNorm": (("dimension",), _layer_norm),
    "Normalize": (("module_input_name", "module_output_name"), _normalize),
    "Dropout": (("dropout",), None),
}  # fmt: skip
assert tuple(_MODULES) == AFTER_POOLING
