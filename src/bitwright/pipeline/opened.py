"""Opens the model of a run: its files, architecture and plan, before any text is drawn."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from bitwright.errors import ModelError, RecipeError
from bitwright.families.tasks import TaskName
from bitwright.files.directory import ModelDirectory
from bitwright.models.load import LoadedModel, check_values, open_lazily
from bitwright.models.names import ModelNames, model_names
from bitwright.models.sites import LinearSite, find_embeddings, find_linears
from bitwright.pipeline.known_codes import KnownCodes
from bitwright.pipeline.preflight import check_targets
from bitwright.plan import Plan, fit_targets, make_plan, quantized_names, refusals, transformed_names
from bitwright.recipe import Recipe
from bitwright.runtime.changes import FloatModel
from bitwright.runtime.engine_model import not_on_engine
from bitwright.runtime.streamed import StreamedModel


class Resolved(NamedTuple):
    """A recipe resolved against a model. recipe: the recipe with its targets named. dropped: the default targets that
    the model cannot have, each with the reason.
    """

    plan: Plan
    recipe: Recipe
    dropped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """A float model, opened.

    loaded: without values: it runs block by block. names: of its modules and tensors, in
    memory and on disk. sites: the linears that the architecture row names. embeddings: its tables.
    dtype: of the linears' weights on disk. known: which of them are codes already.
    """

    loaded: LoadedModel
    names: ModelNames
    sites: list[LinearSite]
    embeddings: list[str]
    dtype: torch.dtype
    known: KnownCodes

    @property
    def streams(self) -> bool:
        """Whether the model is a language model: it sees windows of running text, and is never whole in memory."""
        return self.loaded.task == "text-generation"

    def resolve(self, recipe: Recipe) -> Resolved:
        """The plan that a recipe gives for this model.

        Raises:
            RecipeError, TargetError: as `make_plan`, and as `preflight.check_targets`.
        """
        model, architecture = self.loaded.model, self.loaded.architecture
        plan = make_plan(
            recipe, model, architecture, self.sites, self.embeddings, self._dtype_of, self.known,
            generates=self.streams,
        )  # fmt: skip
        transformed = transformed_names(plan, model, architecture, self.sites)
        check_targets(recipe.targets or (), self.loaded, plan, transformed)
        return Resolved(plan, *fit_targets(recipe, plan, model, architecture, self.sites))

    def loads(self, target: str, recipe: Recipe, plan: Plan) -> bool:
        """Whether a target can load what a plan makes."""
        model, architecture = self.loaded.model, self.loaded.architecture
        return not refusals([target], recipe, plan, model, architecture, self.sites)

    def _dtype_of(self, module: str) -> torch.dtype:
        weight = f"{module}.weight"
        return self.loaded.source.dtype(weight) if weight in self.loaded.source else self.dtype

    def runnable(self) -> FloatModel:
        """The float model, ready to run: block by block, unless an embedding mixes the outputs of all of them."""
        streamed = StreamedModel(self.loaded, self.loaded.max_tokens)
        return streamed if self.loaded.sentences.mix is None else streamed.generic


def open_model(
    name: str | Path | ModelDirectory, *, trust_remote_code: bool = False, task: TaskName | None = None
) -> Opened:
    """Open the model of a run without weights in memory, because it runs block by block.

    task: what the model is for, if the user says it.

    Raises:
        ModelError, CheckpointError: as `open_lazily`; NaN or infinity in an encoder's weights; a tokenizer whose code
            came with the model.
    """
    loaded = open_lazily(name, trust_remote_code=trust_remote_code, task=task, runnable=False)
    if loaded.task != "text-generation":
        check_values(loaded)
    _refuse_foreign_tokenizer(loaded)
    sites = find_linears(loaded.model, loaded.architecture)
    names = model_names(loaded.model, loaded.architecture)
    dtype = loaded.source.dtype(f"{sites[0].name}.weight")
    return Opened(
        loaded, names, sites, find_embeddings(loaded.model, loaded.architecture), dtype, KnownCodes(loaded.source)
    )


def check_attention(recipe: Recipe, plan: Plan, loaded: LoadedModel) -> None:
    """Refuse int8 attention that a recipe asks for if the engine does not run the result: nothing else follows it.

    Raises:
        RecipeError: says why it does not.
    """
    if "int8" not in (recipe.attention, *(rule.attention for rule in recipe.rules)):
        return
    # The float model, opened anew: what the engine reads of it is let go of again.
    why = not_on_engine(ModelDirectory(loaded.path, loaded.task))
    if not quantized_names(plan):
        why = "no linear is quantized, and the engine runs only quantized models"
    if why:
        raise RecipeError(f"{loaded.path}: attention: int8 needs Bitwright's engine, but {why}; use auto or float")


def _refuse_foreign_tokenizer(loaded: LoadedModel) -> None:
    """Refuse a tokenizer with code of its own: a result holds no code, so it would tokenize texts differently."""
    kind = type(loaded.tokenizer)
    if loaded.tokenizer is not None and not kind.__module__.startswith("transformers."):
        raise ModelError(
            f"{loaded.path}: the tokenizer {kind.__name__} has its own code "
            f"({kind.__module__.rpartition('.')[2]}.py), but a result holds no code. Remove auto_map from "
            "tokenizer_config.json if a transformers class makes the same tokens"
        )
