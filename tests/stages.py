"""What the tests of stages and of the pipeline share: small language models, and one way to quantize a model twice: in
memory, and to a directory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitwright.calibration.stream import Stage, stream_stages
from bitwright.checkpoints.write import QuantizedParts, write_checkpoint
from bitwright.models.load import LoadedModel, materialise, open_lazily
from bitwright.models.names import model_names
from bitwright.models.rescale import find_inputs
from bitwright.models.sites import LinearSite, find_embeddings, find_linears
from bitwright.plan import Plan, half_names, make_plan, quantized_names
from bitwright.progress import Quiet
from bitwright.quantizing.layers import Quantized, quantize_linears
from bitwright.quantizing.shards import Made
from bitwright.quantizing.stages import quantize_stage
from bitwright.quantizing.work import StagePlan
from bitwright.recipe import Recipe, make_recipe

Batches = Sequence[Mapping[str, Tensor]]


@pytest.fixture(scope="session")
def prose(once: Callable[..., Path], texts: list[str]) -> str:
    """A file of running text."""

    def write(path: Path) -> None:
        path.mkdir()
        (path / "prose.txt").write_text(" ".join(texts), encoding="utf-8")

    return str(once("prose", write) / "prose.txt")


@pytest.fixture(scope="session")
def tiny_decoder(tiny_model: Callable[..., Path]) -> Callable[..., Path]:
    """`tiny_decoder(family, **config)`: directory of a small random language model with a tokenizer, written once. 2
    blocks (1 with experts in each), hidden 32, vocabulary 200, at most 64 tokens.
    """
    size = {"head_dim": 8, "intermediate_size": 64}
    experts = {"num_hidden_layers": 1, "moe_intermediate_size": 32}
    own = {"mixtral": experts, "glm4_moe": experts | {"n_shared_experts": 1, "first_k_dense_replace": 0}}

    def make(family: str = "llama", **config: Any) -> Path:
        return tiny_model(family, **size | own.get(family, {}) | config)

    return make


@pytest.fixture(scope="session")
def batches() -> list[dict[str, Tensor]]:
    """Three calibration batches of 4 × 24 tokens."""
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(5, 200, (4, 24), generator=generator)} for _ in range(3)]


@dataclass
class Opened:
    """A model whole in memory, and its plan. rows: of the linears that are quantized."""

    loaded: LoadedModel
    plan: Plan
    recipe: Recipe
    sites: list[LinearSite]

    @property
    def model(self) -> nn.Module:
        return self.loaded.model

    def stage_plan(self) -> StagePlan:
        rows = {row.name: row for row in self.plan if row.name in quantized_names(self.plan)}
        inputs = find_inputs(self.model, self.loaded.architecture, self.sites)
        return StagePlan(rows, inputs, self.recipe)

    def stages(self, batches: Batches, *, fast: bool = True) -> Any:
        originals = self.recipe.options.mismatch > 0
        return stream_stages(
            self.model, self.loaded.architecture, self.sites, batches, fast=fast, originals=originals
        )  # fmt: skip

    def quantize(self, batches: Batches, *, fast: bool = True) -> list[Made]:
        """Every stage, in memory: afterwards the model computes with the rounded weights."""
        plan = self.stage_plan()
        return [quantize_stage(self.model, stage, plan) for stage in self.stages(batches, fast=fast)]

    def to_directory(self, batches: Batches, folder: Path) -> tuple[Quantized, Path]:
        """The same by way of shards, and the checkpoint that is written from them."""
        quantized = quantize_linears(self.loaded, self.plan, self.recipe, batches, folder, Quiet())
        parts = QuantizedParts(
            {name: quantized.layers[name] for name in quantized_names(self.plan)},
            half_names(self.plan),
            changed=quantized.changed_for(self.plan),
        )
        names = model_names(self.model, self.loaded.architecture)
        write_checkpoint(self.loaded.directory, folder / "out", parts, names, model_card="")
        return quantized, folder / "out"

    def round_the_rest(self) -> None:
        """Bring what a checkpoint keeps in 16 bit (heads, embeddings) to its numbers there."""
        with torch.no_grad():
            for name in {*half_names(self.plan), *find_embeddings(self.model, self.loaded.architecture)}:
                weight = self.model.get_parameter(f"{name}.weight")
                weight.copy_(weight.to(torch.bfloat16))


@pytest.fixture
def opened() -> Callable[..., Opened]:
    """`opened(path, **recipe)`: a model whole in memory, and its plan, for our own runtime."""

    def make(path: Path, **settings: Any) -> Opened:
        recipe = make_recipe({"targets": ["bitwright"]} | settings)
        loaded = open_lazily(path)
        materialise(loaded, "")
        sites = find_linears(loaded.model, loaded.architecture)
        tables = find_embeddings(loaded.model, loaded.architecture)
        plan = make_plan(recipe, loaded.model, loaded.architecture, sites, tables, lambda name: torch.float32)
        chosen = [site for site in sites if site.name in quantized_names(plan)]
        return Opened(loaded, plan, recipe, chosen)

    return make


@pytest.fixture
def inputs_of() -> Callable[[Stage, str], Tensor]:
    """`inputs_of(stage, name)`: all that one linear of a stage reads, (M, K), as its modules are now."""

    def read(stage: Stage, name: str) -> Tensor:
        site = next(site for site in stage.sites if site.name == name)
        keep: Callable[[Tensor | None, Tensor], Tensor] = lambda seen, x: (  # noqa: E731
            x.clone() if seen is None else torch.cat((seen, x))
        )
        return stage.observe([site], keep)[name]

    return read
