"""Names of a model's parameters, and how they relate to the names in its files."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from bitwright.families import Architecture
from bitwright.models.experts import Experts
from bitwright.models.sites import file_name, find_embeddings, is_transposed
from bitwright.models.source_tensors import SourceTensors
from bitwright.models.tensor_files import TensorFiles


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
    class_name: of the model.
    """

    prefix: str
    linears: tuple[str, ...]
    embeddings: tuple[str, ...]
    tied: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    renames: Mapping[str, str] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    fused: frozenset[str] = frozenset()
    class_name: str = ""

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
        class_name=type(model).__name__,
    )
