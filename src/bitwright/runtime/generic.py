"""The generic path: a quantized checkpoint or a float model as a transformers module with our linears."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from bitwright.checkpoints.checkpoint import Checkpoint
from bitwright.checkpoints.formats import read_checkpoint
from bitwright.errors import CheckpointError, NumericsError
from bitwright.files.directory import ModelDirectory
from bitwright.files.names import name_in
from bitwright.files.sentences import read_sentences
from bitwright.generate.chat import ChatTemplates
from bitwright.kernels import dispatch
from bitwright.models.build import EmptyModel, build_empty, load_tokenizer, max_tokens
from bitwright.models.load import fill, fill_buffers, load_model
from bitwright.models.names import ModelNames, model_names
from bitwright.models.source_tensors import SourceTensors
from bitwright.models.tensor_files import TensorFiles, read_pickled
from bitwright.numerics.arrays import as_torch
from bitwright.numerics.linear import PendingLinear, QuantizedLinear
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec
from bitwright.runtime.generic_model import GenericModel, float_model
from bitwright.runtime.swap import set_compute, swap_linears


def load_generic(
    directory: ModelDirectory, *, compute: str = "auto", trust_remote_code: bool = False, why: str = ""
) -> GenericModel:
    """As `runtime.load.load` without the engine. why: the reason why the engine does not run it, for `backend`."""
    if not directory.is_quantized:
        return float_model(load_model(directory, trust_remote_code=trust_remote_code))
    opened = open_quantized(directory, trust_remote_code=trust_remote_code)
    empty, source = opened.empty, opened.source
    model, architecture = empty.model, empty.architecture
    swap_linears(model, opened.layers, {}, architecture, tables=opened.tables)
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    stored = {name: source.dtype(f"{name}.weight") for name in linears}
    half = {name: dtype for name, dtype in stored.items() if dtype in (torch.bfloat16, torch.float16)}
    fill(model, source)
    fill_buffers(model, source)
    swap_linears(model, {}, half, architecture)
    dtype = set_compute(model, compute)
    remarks = "".join(f", {remark}" for remark in opened.remarks)
    backend = f"kernels:{dispatch.active_isa()}, {str(dtype).removeprefix('torch.')}{remarks}{why and f' ({why})'}"
    sentences = read_sentences(directory, empty.task, read_pickled=read_pickled)
    tokenizer, _ = load_tokenizer(directory, trust_remote_code, sentences)
    limit = max_tokens(empty, tokenizer, sentences, directory.transformer.path)
    templates = ChatTemplates(directory) if sentences.chat is not None else None
    return GenericModel(
        model, tokenizer, empty.task, sentences, limit, backend, directory.path, templates=templates
    )  # fmt: skip


class OpenedQuantized(NamedTuple):
    """A quantized checkpoint beside the module that it belongs to, by the module's names.

    empty: the module, without values; what is quantized in it is to be replaced. layers, tables: the quantized linears
    and embedding tables. source: every other tensor, none of them read yet. remarks: as `Checkpoint` says.
    """

    empty: EmptyModel
    layers: "Linears"
    tables: dict[str, QTensor]
    source: SourceTensors
    remarks: tuple[str, ...] = ()


def open_quantized(directory: ModelDirectory, *, trust_remote_code: bool = False) -> OpenedQuantized:
    """Open a quantized checkpoint for a transformers module.

    Raises:
        ModelError, CheckpointError: as `runtime.load.load`.
    """
    checkpoint = read_checkpoint(directory)
    empty = build_empty(directory, trust_remote_code=trust_remote_code)
    model = empty.model
    if empty.task == "embedding" and not any("pooler." in name for name in checkpoint.others):
        _leave_out_pooler(model)
    names = model_names(model, empty.architecture)
    layers = Linears(checkpoint, names)
    tables = read_tables(checkpoint, names)
    source = _float_tensors(checkpoint, names, {*layers, *tables})
    return OpenedQuantized(empty, layers, tables, source, checkpoint.remarks)


class Linears(Mapping[str, QuantizedLinear]):
    """The quantized linears of a checkpoint in torch, by the module names of a model. Each is loaded and checked when
    asked for, and not kept.
    """

    def __init__(self, checkpoint: Checkpoint, names: ModelNames) -> None:
        """Raises:
        CheckpointError: a quantized module of the file is not in the model.
        """
        self._linears = checkpoint.linears
        self._on_disk = _on_disk(checkpoint, names.linears, checkpoint.linears, names)

    def __getitem__(self, name: str) -> QuantizedLinear:
        """Raises:
        KeyError: no such linear. CheckpointError: its values contradict one another.
        """
        return self.pending(name).load().torch()

    def pending(self, name: str) -> PendingLinear:
        """One that is not loaded yet, and gives numpy's arrays.

        Raises:
            KeyError: no such linear.
        """
        return self._linears[self._on_disk[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._on_disk)

    def __len__(self) -> int:
        return len(self._on_disk)

    def __contains__(self, name: object) -> bool:
        return name in self._on_disk


def read_tables(checkpoint: Checkpoint, names: ModelNames) -> dict[str, QTensor]:
    """The int8 tables of a checkpoint by the module names of a model, in torch.

    Raises:
        CheckpointError: one is not in the model, or its values contradict one another.
    """
    tables = {}
    for name, stored in _on_disk(checkpoint, names.embeddings, checkpoint.tables, names).items():
        codes_VH, scale_V = checkpoint.table(stored)
        try:
            tables[name] = QTensor(as_torch(codes_VH), as_torch(scale_V)[:, None], None, QuantSpec())
        except NumericsError as error:
            raise CheckpointError(f"{checkpoint.directory.path}: {stored}: {error}") from None
    return tables


def _on_disk(
    checkpoint: Checkpoint, modules: Collection[str], stored: Collection[str], names: ModelNames
) -> dict[str, str]:
    """Name in the model -> name on disk, for everything in `stored`."""
    found: dict[str, str] = {}
    for module in modules:
        renamed = names.renames.get(f"{module}.weight", f"{module}.weight").removesuffix(".weight")
        name = name_in(stored, renamed, names.prefix) or name_in(stored, module, names.prefix)
        if name is not None:
            found[module] = name
    if lost := set(stored) - set(found.values()):
        raise CheckpointError(
            f"{checkpoint.directory.path}: {min(lost)} is quantized in the file, but the model has no such module "
            f"({len(lost)} in all). Config and weights are of different models"
        )
    return found


def _leave_out_pooler(model: nn.Module) -> None:
    """Remove the pooler if the files have none: the source had none either, and pooling does not use it."""
    if hasattr(model, "pooler"):
        model.pooler = None  # type: ignore[assignment]


def _float_tensors(checkpoint: Checkpoint, names: ModelNames, quantized: Collection[str]) -> SourceTensors:
    """Every tensor of the model that is not quantized, or is dequantized, by the model's names. Nothing is read yet.

    Raises:
        CheckpointError: the files lack one.
        ModelError: one has another shape than config.json says.
    """
    codes = {f"{name}.weight" for name in quantized}
    shapes = {name: shape for name, shape in names.shapes.items() if name not in codes}
    made = {f"{name}.weight": pending for name, pending in checkpoint.dequantized.items()}
    source = replace(names, shapes=shapes).tensors_of(TensorFiles(checkpoint.directory, made))
    if source.missing:
        name = source.missing[0]
        raise CheckpointError(
            f"{checkpoint.directory.path}: config.json needs {name!r} {shapes[name]} and {len(source.missing) - 1} "
            "other tensors that the files lack. The download is incomplete, or config and weights are of different "
            "models"
        )
    return source
