"""What a checkpoint stores for one linear, and how a model's module names relate to the names in its files."""

from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from bitwright.errors import CheckpointError, NumericsError
from bitwright.models.architectures import find_embeddings
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec


@dataclass(frozen=True, slots=True)
class StoredLinear:
    """One quantized linear: its weight, and how its input is quantized. The bias is kept apart, in its own dtype.

    Conditions that hold (checked on construction):
      * input_scale is float32 (1,), finite and positive, if the input is static, else None;
      * input_zero_point is int8 (1,) if the input is static and asymmetric, else None.
    """

    qtensor: QTensor
    input_spec: QuantSpec
    input_scale: Tensor | None = None
    input_zero_point: Tensor | None = None

    def __post_init__(self) -> None:
        spec, scale, zero = self.input_spec, self.input_scale, self.input_zero_point
        if (scale is None) != spec.dynamic:
            raise NumericsError(f"dynamic = {spec.dynamic} but input_scale is {'absent' if scale is None else 'given'}")
        if scale is not None and (scale.dtype != torch.float32 or tuple(scale.shape) != (1,)):
            raise NumericsError(f"input_scale must be float32 of shape (1,), got {scale.dtype} {tuple(scale.shape)}")
        if scale is not None and not (bool(torch.isfinite(scale)) and float(scale) > 0):
            raise NumericsError(f"input_scale = {float(scale)}: must be finite and positive")
        if (zero is not None) != (not spec.dynamic and not spec.symmetric):
            raise NumericsError(
                f"dynamic = {spec.dynamic}, symmetric = {spec.symmetric} but input_zero_point is "
                f"{'absent' if zero is None else 'given'}"
            )
        if zero is not None and (zero.dtype != torch.int8 or tuple(zero.shape) != (1,)):
            raise NumericsError(f"input_zero_point must be int8 of shape (1,), got {zero.dtype} {tuple(zero.shape)}")


@dataclass(frozen=True, slots=True)
class ModelNames:
    """Module names of a model as transformers builds it, taken before anything in it is replaced.

    prefix: `base_model_prefix`, "bert" for the BERT family: a file may or may not carry it.
    linears: every nn.Linear. embeddings: the tables that turn ids into vectors.
    tied: parameters that only repeat another one, as `name -> the name that is kept`.
    """

    prefix: str
    linears: tuple[str, ...]
    embeddings: tuple[str, ...]
    tied: dict[str, str]


def model_names(model: nn.Module) -> ModelNames:
    """The names that a checkpoint of `model` needs."""
    modules = dict(model.named_modules())
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return ModelNames(
        prefix=str(getattr(model, "base_model_prefix", "")),
        linears=tuple(name for name, module in modules.items() if isinstance(module, nn.Linear)),
        embeddings=tuple(find_embeddings(model)),
        tied={str(name): str(kept) for name, kept in tied.items()},
    )


def name_in(names: Collection[str], name: str, prefix: str) -> str | None:
    """`name` as `names` spell it: as it is, with the base model's prefix, or without it. None if it is not there.

    A head on top of the base model adds the prefix ("bert.encoder…"), the base model alone has none ("encoder…");
    either may be loaded from the other's file.
    """
    if name in names:
        return name
    other = name.removeprefix(f"{prefix}.") if name.startswith(f"{prefix}.") else f"{prefix}.{name}"
    return other if prefix and other in names else None


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
