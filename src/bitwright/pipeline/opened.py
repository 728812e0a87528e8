"""The model of a run, opened: what its files and its architecture say, before any text is drawn."""

from dataclasses import dataclass
from pathlib import Path

import torch

from bitwright.families.tasks import TaskName
from bitwright.models.load import LoadedModel, materialise, open_lazily
from bitwright.models.names import ModelNames, model_names
from bitwright.models.sites import LinearSite, find_embeddings, find_linears
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
        return StreamedModel(self.loaded, self.loaded.max_tokens) if self.streams else float_model(self.loaded)


def open_model(name: str | Path, *, trust_remote_code: bool = False, task: TaskName | None = None) -> Opened:
    """Open the model of a run: whole, or without values if it is a language model, since those run block by block.

    task: what the model is for, if the user says it.

    Raises:
        ModelError, CheckpointError: as `load_model` and `open_lazily`.
    """
    loaded = open_lazily(name, trust_remote_code=trust_remote_code, task=task, runnable=False)
    if loaded.task != "text-generation":
        materialise(loaded, "")
    sites = find_linears(loaded.model, loaded.architecture)
    names = model_names(loaded.model, loaded.architecture)
    dtype = loaded.source.dtype(f"{sites[0].name}.weight")
    return Opened(loaded, names, sites, find_embeddings(loaded.model, loaded.architecture), dtype)
