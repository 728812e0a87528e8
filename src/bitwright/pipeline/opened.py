"""The model of a run, opened: what its files and its architecture say, before any text is drawn."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bitwright.checkpoints.stored import ModelNames, model_names, require_name_in
from bitwright.models.architectures import LinearSite, find_embeddings, find_linears
from bitwright.models.hub import fetch
from bitwright.models.lazy import open_lazily
from bitwright.models.load import LoadedModel, load_model, max_tokens, read_config, task_of_classes
from bitwright.models.tensor_files import TensorFiles
from bitwright.numerics.spec import stored_dtype
from bitwright.plan import Plan, make_plan
from bitwright.recipe import Recipe
from bitwright.runtime.changes import FloatModel
from bitwright.runtime.generic_model import float_model
from bitwright.runtime.streamed import StreamedModel


@dataclass(frozen=True, slots=True)
class Opened:
    """A float model, opened.

    loaded: whole; of a language model, which runs block by block, without values. names: of its modules and tensors, in
    memory and on disk. sites: the linears that the architecture row names. embeddings: its tables.
    dtype: of the linears' weights on disk.
    """

    loaded: LoadedModel
    names: ModelNames
    sites: list[LinearSite]
    embeddings: list[str]
    dtype: torch.dtype

    @property
    def streams(self) -> bool:
        """Whether the model is a language model: such run block by block, and see windows of running text."""
        return self.loaded.task == "text-generation"

    @property
    def half_dtype(self) -> torch.dtype:
        """What "16 bit" is for this model."""
        half: torch.dtype = getattr(torch, stored_dtype(str(self.dtype).removeprefix("torch.")))
        return half

    def plan(self, recipe: Recipe) -> Plan:
        """What a recipe makes of the model.

        Raises:
            RecipeError, TargetError: as `make_plan`.
        """
        loaded = self.loaded
        return make_plan(recipe, loaded.model, loaded.architecture, self.sites, self.embeddings, self.dtype.itemsize)

    def runnable(self) -> FloatModel:
        """The float model, ready to run."""
        return StreamedModel(self.loaded, max_tokens(self.loaded)) if self.streams else float_model(self.loaded)


def open_model(name: str | Path, *, trust_remote_code: bool = False) -> Opened:
    """Open the model of a run: whole, or without values if it is a language model, since those run block by block.

    Raises:
        ModelError, CheckpointError: as `load_model` and `open_lazily`.
    """
    path = fetch(name)
    if task_of_classes(read_config(path).get("architectures"), str(path)) == "text-generation":
        loaded = open_lazily(path, trust_remote_code=trust_remote_code, runnable=False)
    else:
        loaded = load_model(path, trust_remote_code=trust_remote_code)
    sites = find_linears(loaded.model, loaded.architecture)
    loaded = replace(loaded, name=str(name), files=loaded.files or TensorFiles(path))
    names = model_names(loaded.model, loaded.architecture)
    return Opened(loaded, names, sites, find_embeddings(loaded.model), _dtype_on_disk(loaded, sites[0]))


def _dtype_on_disk(loaded: LoadedModel, site: LinearSite) -> torch.dtype:
    """The dtype of the linear weights as the source stores them."""
    weight = f"{site.name}.weight"
    if loaded.source is not None:
        return loaded.source.dtype(weight)
    assert loaded.files is not None
    prefix = str(getattr(loaded.model, "base_model_prefix", ""))
    return loaded.files.dtype(require_name_in(loaded.files, weight, prefix, str(loaded.path)))
