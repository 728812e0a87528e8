"""What a checkpoint stores for one linear, and how a model's module names relate to the names in its files."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from bitwright.errors import CheckpointError, NumericsError
from bitwright.families import Architecture
from bitwright.models.experts import Experts
from bitwright.models.sites import file_name, find_embeddings, is_transposed
from bitwright.models.source_tensors import SourceTensors, name_in
from bitwright.models.tensor_files import TensorFiles
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec

__all__ = ["LazyLinear", "ModelNames", "StoredLinear", "model_names", "name_in", "ready", "require_name_in"]


@dataclass(frozen=True, slots=True)
class StoredLinear:
    """One quantized linear: its weight, and how its input is quantized. The bias is kept apart, in its own dtype.

    Where there is an input transform, the linear computes on x̂ = (x − input_shift_K) / input_scale_K, and that is what
    the input spec rounds: the weight and the bias have taken up the inverse.

    Conditions that hold (checked on construction):
      * input_spec is None for float inputs;
      * input_scale is float32 (1,), finite and positive, if the input is static, else None;
      * input_zero_point is int8 (1,) if the input is static and asymmetric, else None;
      * input_scale_K is float32 (K,), finite and positive, or None; input_shift_K is float32 (K,), finite, or None.
    """

    qtensor: QTensor
    input_spec: QuantSpec | None
    input_scale: Tensor | None = None
    input_zero_point: Tensor | None = None
    input_scale_K: Tensor | None = None
    input_shift_K: Tensor | None = None

    def __post_init__(self) -> None:
        spec = self.input_spec
        static = spec is not None and not spec.dynamic
        asymmetric = static and spec is not None and not spec.symmetric
        k = self.qtensor.shape[1]
        _check("input_scale", self.input_scale, spec, torch.float32, 1, wanted=static)
        _check("input_zero_point", self.input_zero_point, spec, torch.int8, 1, wanted=asymmetric)
        _check("input_scale_K", self.input_scale_K, spec, torch.float32, k)
        _check("input_shift_K", self.input_shift_K, spec, torch.float32, k)
        for name, scale in (("input_scale", self.input_scale), ("input_scale_K", self.input_scale_K)):
            if scale is not None and not bool((torch.isfinite(scale) & (scale > 0)).all()):
                raise NumericsError(f"{name} = {_extremes(scale)}: must be finite and positive")
        if self.input_shift_K is not None and not bool(torch.isfinite(self.input_shift_K).all()):
            raise NumericsError(f"input_shift_K = {_extremes(self.input_shift_K)}: must be finite")


@dataclass(frozen=True, slots=True)
class LazyLinear:
    """What is known of a `StoredLinear` before it is loaded. `load` gives it; nothing keeps what it gave.

    shape: (N, K). has_scale_K, has_shift_K: whether it has an input transform.
    """

    shape: tuple[int, int]
    weight_spec: QuantSpec
    input_spec: QuantSpec | None
    has_scale_K: bool
    has_shift_K: bool
    load: Callable[[], StoredLinear]


def ready(layer: StoredLinear) -> LazyLinear:
    """A layer that is in memory already."""
    return LazyLinear(
        layer.qtensor.shape,
        layer.qtensor.spec,
        layer.input_spec,
        layer.input_scale_K is not None,
        layer.input_shift_K is not None,
        lambda: layer,
    )


@dataclass(frozen=True, slots=True)
class ModelNames:
    """Names in a model as Bitwright holds it (its experts are linears), taken before anything in it is quantized.

    prefix: `base_model_prefix`, "bert" for the BERT family: a file may or may not carry it.
    linears: every nn.Linear. embeddings: the tables that turn ids into vectors.
    tied: parameters that only repeat another one, as `name -> the name that is kept`.
    shapes: of every parameter and stored buffer.
    renames: parameter -> its name in the files, where the family has one of its own.
    transposed: parameters that the files store as (K, N).
    fused: linears that are none in the model as transformers builds it: experts, and those stored transposed.
    """

    prefix: str
    linears: tuple[str, ...]
    embeddings: tuple[str, ...]
    tied: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    renames: Mapping[str, str] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    fused: frozenset[str] = frozenset()

    def tensors_of(self, files: TensorFiles) -> SourceTensors:
        """The float tensors in `files`, by the model's names.

        Raises:
            ModelError: a tensor has another shape than the model's.
        """
        return SourceTensors(
            files, self.shapes, prefix=self.prefix, renames=self.renames, transposed=self.transposed, tied=self.tied
        )


def model_names(model: nn.Module, architecture: Architecture) -> ModelNames:
    """The names that a checkpoint of `model` needs. The row says which names a family's files have of their own, and
    what they store transposed."""
    modules = dict(model.named_modules())
    linears = tuple(name for name, module in modules.items() if isinstance(module, nn.Linear))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    renames = {name: file_name(architecture, name) for name in shapes}
    transposed = frozenset(name for name in shapes if is_transposed(architecture, name))
    experts = tuple(f"{name}." for name, module in modules.items() if isinstance(module, Experts))
    return ModelNames(
        prefix=str(getattr(model, "base_model_prefix", "")),
        linears=linears,
        embeddings=tuple(find_embeddings(model, architecture)),
        tied={str(name): str(kept) for name, kept in tied.items()},
        shapes=shapes,
        renames={name: renamed for name, renamed in renames.items() if renamed != name},
        transposed=transposed,
        fused=frozenset(n for n in linears if n.startswith(experts) or f"{n}.weight" in transposed),
    )


def require_name_in(names: Collection[str], name: str, prefix: str, where: str) -> str:
    """`name_in`, for a name that must be there.

    Raises:
        CheckpointError: it is not; the message gives the nearest name.
    """
    found = name_in(names, name, prefix)
    if found is None:
        near = get_close_matches(name, names, n=1, cutoff=0.0)
        raise CheckpointError(
            f"{where}: holds no {name!r}, with or without the prefix {prefix!r}"
            + (f"; the nearest of its {len(names)} names is {near[0]!r}" if near else "; it is empty")
        )
    return found


def _check(
    name: str,
    value: Tensor | None,
    spec: QuantSpec | None,
    dtype: torch.dtype,
    size: int,
    *,
    wanted: bool | None = None,
) -> None:
    """Refuse a tensor that is there or not against what is `wanted`, or that has another dtype or shape."""
    if wanted is not None and (value is not None) != wanted:
        how = "float inputs" if spec is None else f"dynamic = {spec.dynamic}, symmetric = {spec.symmetric}"
        raise NumericsError(f"{how} but {name} is {'absent' if value is None else 'given'}")
    if value is not None and (value.dtype != dtype or tuple(value.shape) != (size,)):
        raise NumericsError(f"{name} must be {dtype} of shape ({size},), got {value.dtype} {tuple(value.shape)}")


def _extremes(values: Tensor) -> str:
    return f"{float(values.min())} … {float(values.max())}" if values.numel() > 1 else f"{float(values)}"
