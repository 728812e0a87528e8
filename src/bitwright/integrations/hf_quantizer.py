"""The quantizer that `integrations.transformers.enable` puts into transformers' tables.

`from_pretrained` builds a model without values, lets the quantizer change it, loads what the model then has parameters
for, and lets the quantizer change it again:

    before   check the checkpoint; put placeholders where there are codes, so that transformers neither looks for their
             weights nor makes room for them
    after    put the linears and tables there, from the codes

As on the generic path (`runtime/generic.py`), fused experts and transposed linears become plain linears; transformers
has no names for those, so they are filled here as well.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.core_model_loading import WeightConverter
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from bitwright.checkpoints.checkpoint import Checkpoint
from bitwright.checkpoints.formats import read_checkpoint
from bitwright.checkpoints.quantization_config import parse_quantization_config
from bitwright.errors import BitwrightError, CheckpointError, InputError
from bitwright.families import Architecture, architecture_of
from bitwright.files.directory import CONFIG_FILE, ModelDirectory
from bitwright.kernels.linear import QuantEmbedding
from bitwright.models.build import refuse_foreign_class
from bitwright.models.experts import linearize
from bitwright.models.load import fill
from bitwright.models.names import ModelNames, model_names
from bitwright.models.sites import base_prefix
from bitwright.models.source_tensors import SourceTensors
from bitwright.models.tensor_files import TensorFiles
from bitwright.numerics.arrays import as_torch
from bitwright.runtime.generic import Linears, read_tables
from bitwright.runtime.swap import swap_linears, swap_one

_CPU = {"None", "cpu", "auto"}  # in a `device_map`


class BitwrightConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The `quantization_config` of a config.json, kept as it is."""

    dequantize = False  # whatever the file asks of plain readers

    def __init__(self, said: Mapping[str, Any]) -> None:
        self.said = dict(said)
        self.quant_method = self.said["quant_method"]

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **_: Any) -> "BitwrightConfig":
        """Of what a file says."""
        return cls(config_dict)

    def to_dict(self) -> dict[str, Any]:
        """What the file says."""
        return dict(self.said)


class BitwrightQuantizer(HfQuantizer):  # type: ignore[misc]
    """Loads one checkpoint, and writes it again."""

    requires_calibration = True
    quantization_config: BitwrightConfig
    _opened: "_Opened | None" = None

    def validate_environment(self, *args: Any, device_map: Any = None, **_: Any) -> None:
        """Raises:
        InputError: another device than the CPU.
        """
        places = device_map.values() if isinstance(device_map, dict) else [device_map]
        if not {str(place) for place in places} <= _CPU:
            raise InputError(
                f"device_map = {device_map!r}: Bitwright's linears run on the CPU. Leave it out, or call "
                "bitwright.integrations.transformers.disable() before loading"
            )

    def update_device_map(self, device_map: Any) -> Any:
        """Everything is on the CPU."""
        return None if device_map is None else {"": "cpu"}

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **_: Any
    ) -> None:
        if not checkpoint_files:
            raise InputError(
                "from_pretrained got a state_dict: Bitwright's linears are made from files. Give a directory alone"
            )
        directory = ModelDirectory(_folder(model, checkpoint_files))
        if not directory.is_flat:  # transformers has not looked into modules.json
            raise CheckpointError(f"{directory.path}: modules.json puts the model into {directory.transformer.path}")
        with torch.device("cpu"):  # around this everything is made without values
            self._opened = opened = _open(model, directory)
        for name in opened.aside:
            swap_one(model, name, _Awaited(model.get_submodule(name)))
        tied = getattr(model, "all_tied_weights_keys", {})
        for name in [name for name in tied if name.rpartition(".")[0] in opened.aside]:
            del tied[name]  # it has values of its own
        ignored = set(model._keys_to_ignore_on_load_unexpected or ())
        model._keys_to_ignore_on_load_unexpected = ignored | set(_patterns(opened))

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> None:
        opened = self._opened
        assert opened is not None
        for name, module in opened.aside.items():
            swap_one(model, name, module)
        tables = read_tables(opened.checkpoint, opened.names)
        swap_linears(model, Linears(opened.checkpoint, opened.names), {}, opened.architecture, tables=tables)
        fill(model, opened.source)
        for module in model.modules():
            if isinstance(module, QuantEmbedding):
                module.dtype = model.dtype
        model._weight_conversions = []  # to undo when it is saved: `get_state_dict_and_metadata` has the files' names

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        """Those that still have a target: experts are linears under the names that the files have."""
        return [
            conversion
            for conversion in weight_conversions
            if not (
                isinstance(conversion, WeightConverter)
                and any(".experts." in target for target in conversion.target_patterns)
                and self._opened is not None
                and self._opened.names.fused
            )
        ]

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `save_pretrained` writes: the codes as the files have them, everything else as the model has it, in the
        dtype of the files where that loses nothing.

        Raises:
            InputError: the model was unpickled.
        """
        opened = self._opened
        if opened is None:
            raise InputError(
                "this model was unpickled, so the files with its codes are not at hand; save the one that "
                "from_pretrained gave, or copy its directory"
            )
        ours, source, tensors = tuple(f"{name}." for name in opened.aside), opened.source, opened.checkpoint.tensors
        state = {}
        for name, tensor in model.state_dict().items():
            if not name.startswith(ours):  # what is tied has one name in the files
                state[source.file_name(name) if name in source else name] = _as_stored(tensor, source, name)
        return state | {name: as_torch(tensors[name]) for name in opened.stored}, {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "BitwrightQuantizer":
        """Itself, for a copy of the model: nobody changes what it holds of the files."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without the open files."""
        return self.__dict__ | {"_opened": None}

    def is_serializable(self) -> bool:
        """Yes."""
        return True

    @property
    def is_trainable(self) -> bool:
        """No gradient flows through codes."""
        return False


class _Opened(NamedTuple):
    """A checkpoint, fitted to a model.

    names: of the model, before anything was put aside. source: its float tensors. aside: modules of the model that we
    fill, by name. stored: names of their tensors in the files.
    """

    checkpoint: Checkpoint
    architecture: Architecture
    names: ModelNames
    source: SourceTensors
    aside: dict[str, nn.Module]
    stored: tuple[str, ...]


class _Awaited(nn.Module):
    """Takes the place of a module until that has values. Its tensors are no parameters, so that nothing is loaded; they
    are there because some models initialize the modules in a module, and count as loaded, so that nothing is done.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for key, parameter in module._parameters.items():
            tensor: Any = None if parameter is None else parameter.detach()
            if tensor is not None:
                tensor._is_hf_initialized = True
            setattr(self, key, tensor)


def _folder(model: Any, files: list[str]) -> Path:
    """Where the files lie, of which transformers has made sure only that they exist.

    Raises:
        CheckpointError: one is outside the directory that was named.
    """
    named = Path(str(model.config.name_or_path))
    for file in files:
        if named.is_dir() and not Path(file).parent.resolve().is_relative_to(named.resolve()):
            raise CheckpointError(f"{named}: the index of the weights names {file}, which is outside the directory")
    return Path(files[0]).parent


def _open(model: Any, directory: ModelDirectory) -> _Opened:
    """Check a checkpoint against a model without values; its fused experts and transposed linears become plain linears.

    Raises:
        CheckpointError: its parts contradict one another or the model, or the files lack a tensor of the base model.
        ModelError: a family without a row, or a class that is not transformers' own; a tensor of another shape than the
            model's.
    """
    architecture = architecture_of(model.config.model_type)
    refuse_foreign_class(model, directory.path)
    directory.check_counts()
    checkpoint = read_checkpoint(directory)
    linearize(model, architecture)
    names = model_names(model, architecture)
    checkpoint = _without_heads(checkpoint, names)
    quantized = {*Linears(checkpoint, names), *read_tables(checkpoint, names)}
    codes = {f"{name}.weight" for name in quantized}
    shapes = {name: shape for name, shape in names.shapes.items() if name not in codes}
    files = TensorFiles(directory)
    source = replace(names, shapes=shapes).tensors_of(files)
    base = base_prefix(model)
    # Heads are not looked at: one that the files lack is new, and to be trained, as transformers says.
    lost = [n for n in source.missing if n.startswith(base) and not n.removeprefix(base).startswith("pooler.")]
    if lost:
        raise CheckpointError(
            f"{directory.path}: config.json needs {lost[0]!r} {shapes[lost[0]]} and {len(lost) - 1} other tensors that "
            "the files lack. The download is incomplete, or config and weights are of different models"
        )
    ours = dict.fromkeys([*quantized, *names.fused])
    plain = {f"{name}.{key}": shapes[f"{name}.{key}"] for name in ours for key in ("weight", "bias")
             if f"{name}.{key}" in shapes}  # fmt: skip
    read = replace(names, shapes=plain, tied={}).tensors_of(files)
    stored = set(checkpoint.tensors.keys()) - checkpoint.others | (set(files) - set(read.kept))
    aside = {name: model.get_submodule(name) for name in ours}
    return _Opened(checkpoint, architecture, names, source, aside, tuple(sorted(stored)))


def _without_heads(checkpoint: Checkpoint, names: ModelNames) -> Checkpoint:
    """Leave out quantized heads if the model is a base model: transformers passes over them, too."""
    inside = f"{names.prefix}."
    if not any(name.startswith(inside) for name in checkpoint.linears) or any(
        name.startswith(inside) for name in names.linears
    ):
        return checkpoint
    linears = {name: linear for name, linear in checkpoint.linears.items() if name.startswith(inside)}
    return checkpoint._replace(linears=linears)


def _patterns(opened: _Opened) -> Iterator[str]:
    """What matches the names of tensors that transformers meets in the files and has no parameters for: as they stand
    there, as it renames them, and as it would merge experts.
    """
    stored = [name.rpartition(".") for name in opened.stored]
    suffixes = "|".join(sorted({re.escape(suffix) for _, _, suffix in stored}))
    inside = f"{opened.names.prefix}."
    for module in {module.removeprefix(inside) for module in (*(module for module, _, _ in stored), *opened.aside)}:
        yield rf"(^|\.){re.escape(module)}\.({suffixes})$"
    for name in opened.names.fused:
        stem, experts, _ = name.removeprefix(inside).rpartition(".experts.")
        if experts:
            yield rf"(^|\.){re.escape(stem + experts)}"


def _as_stored(tensor: Tensor, source: SourceTensors, name: str) -> Tensor:
    if name not in source or not tensor.is_floating_point():
        return tensor
    stored = tensor.to(source.dtype(name))
    return stored if torch.equal(stored.to(tensor.dtype), tensor) else tensor


# What looks at a `quantization_config` alone, before a model is built. Other formats are looked at with their files.
_CHECKS: dict[str, Callable[[Any, str], object]] = {
    "compressed-tensors": partial(parse_quantization_config, portable=True),
    "bitwright": partial(parse_quantization_config, portable=False),
}


def rows_for(method: str, config: Any, quantizer: Any) -> tuple[Any, Any]:
    """The rows of transformers' two tables for a `quant_method`, in place of `config` and `quantizer`, which may be
    None: classes, or what is called as they are.
    """
    return _ConfigRow(method, config), _quantizer_row(quantizer)


class _ConfigRow(NamedTuple):
    """Makes the config of a checkpoint: ours if we read it, else transformers' own, if it has one."""

    method: str
    otherwise: Any

    def from_dict(self, config_dict: dict[str, Any], **options: Any) -> Any:
        """Raises:
        CheckpointError: a config that nobody here reads.
        """
        check = _CHECKS.get(self.method)
        try:
            if check is not None:
                check(config_dict, f"{CONFIG_FILE}: quantization_config")
        except BitwrightError as error:
            if self.otherwise is None:
                raise
            warnings.warn(f"left to transformers' own {self.method}: {error}", stacklevel=2)
            return self.otherwise.from_dict(config_dict, **options)
        return BitwrightConfig.from_dict(config_dict)


def _quantizer_row(otherwise: Any) -> Callable[..., Any]:
    def make(config: Any, **options: Any) -> Any:
        ours = isinstance(config, BitwrightConfig) or otherwise is None
        return (BitwrightQuantizer if ours else otherwise)(config, **options)

    return make
