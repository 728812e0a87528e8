"""Small language models, random or trained a little; models with a bad unit; and one way to quantize a model twice: in
memory, and to a directory."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from bitwright.checkpoints.stored import model_names
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bitwright.calibration.data import BUILTIN, Source
from bitwright.calibration.stream import Stage, stream_stages
from bitwright.calibration.windows import running_text, token_windows
from bitwright.checkpoints.write import QuantizedParts, write_checkpoint
from bitwright.models.architectures import LinearSite, find_embeddings, find_linears
from bitwright.models.build import LoadedModel
from bitwright.models.load import materialise, open_lazily
from bitwright.models.rescale import find_inputs
from bitwright.plan import Plan, half_names, make_plan, quantized_names
from bitwright.progress import Quiet
from bitwright.quantizing.blocks import Task, quantize_stage
from bitwright.quantizing.layers import Quantized, quantize_linears
from bitwright.quantizing.shards import Made
from bitwright.recipe import Recipe, make_recipe

Batches = Sequence[Mapping[str, Tensor]]

_STEPS, _BATCH, _WINDOW, _CHARACTERS = 60, 16, 48, 1 << 18

_SIZE = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "initializer_range": 0.2,
}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_hidden_layers": 1}

# Family -> what its small config has beyond _SIZE.
_FAMILIES: dict[str, dict[str, Any]] = {
    "glm4_moe": _EXPERTS
    | {"n_routed_experts": 4, "first_k_dense_replace": 0, "n_shared_experts": 1, "n_group": 2, "topk_group": 1},
    "gpt2": {"n_inner": 64},
    "llama": {},
    "mixtral": _EXPERTS,
}


@pytest.fixture(scope="session")
def prose(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> str:
    """A file of running text."""
    path = tmp_path_factory.mktemp("prose") / "prose.txt"
    path.write_text(" ".join(texts), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> Callable[..., Path]:
    """`tiny_decoder(family, **config)`: directory of a small random language model with a tokenizer, written once. 2
    blocks (1 with experts), hidden 32, vocabulary 200, at most 64 tokens.
    """
    made: dict[str, Path] = {}

    def make(family: str = "llama", **config: Any) -> Path:
        import transformers

        key = repr((family, sorted(config.items())))
        if key not in made:
            made[key] = tmp_path_factory.mktemp(family)
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(0)
                model = transformers.AutoModelForCausalLM.from_config(
                    transformers.AutoConfig.for_model(family, **(_SIZE | _FAMILIES[family] | config))
                )
                for parameter in model.parameters():
                    parameter += 0.05 * torch.randn_like(parameter)
            model.save_pretrained(made[key])
            for file in tiny_model("bert").glob("tokenizer*"):
                shutil.copy(file, made[key])
        return made[key]

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

    def task(self) -> Task:
        rows = {row.name: row for row in self.plan if row.name in quantized_names(self.plan)}
        inputs = find_inputs(self.model, self.loaded.architecture, self.sites)
        return Task(rows, inputs, self.recipe, torch.bfloat16)

    def stages(self, batches: Batches, *, fast: bool = True) -> Any:
        return stream_stages(self.model, self.loaded.architecture, self.sites, batches, fast=fast)

    def quantize(self, batches: Batches, *, fast: bool = True) -> list[Made]:
        """Every stage, in memory: afterwards the model computes with the rounded weights."""
        task = self.task()
        return [quantize_stage(self.model, stage, task) for stage in self.stages(batches, fast=fast)]

    def to_directory(self, batches: Batches, folder: Path) -> tuple[Quantized, Path]:
        """The same by way of shards, and the checkpoint that is written from them."""
        quantized = quantize_linears(self.loaded, self.plan, self.recipe, batches, folder, torch.bfloat16, Quiet())
        parts = QuantizedParts(
            {name: quantized.layers[name] for name in quantized_names(self.plan)},
            half_names(self.plan),
            changed=quantized.changed_for(self.plan),
        )
        names = model_names(self.model, self.loaded.architecture)
        write_checkpoint(self.loaded.path, folder / "out", parts, names, model_card="")
        return quantized, folder / "out"

    def round_the_rest(self) -> None:
        """Bring what a checkpoint keeps in 16 bit (heads, embeddings) to its numbers there."""
        with torch.no_grad():
            for name in {*half_names(self.plan), *find_embeddings(self.model)}:
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
        plan = make_plan(recipe, loaded.model, loaded.architecture, sites, find_embeddings(loaded.model), 4)
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


@pytest.fixture(scope="session")
def trained_decoder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> Path:
    """Directory of a llama of 3 blocks (hidden 64, 4 heads, 200 words), trained for a few seconds on English prose."""
    import transformers

    path, tokenizer = tmp_path_factory.mktemp("trained"), tiny_model("bert")
    config = transformers.LlamaConfig(
        vocab_size=200, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=128, max_position_embeddings=64, pad_token_id=0, bos_token_id=2, eos_token_id=3,
        tie_word_embeddings=False,
    )  # fmt: skip
    text = running_text(Source(BUILTIN))[:_CHARACTERS]
    windows = torch.tensor(token_windows(transformers.AutoTokenizer.from_pretrained(tokenizer), text, _WINDOW, BUILTIN))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(_STEPS):
            ids = windows[torch.randint(len(windows), (_BATCH,))]
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
    torch.set_num_threads(threads)
    model.eval().save_pretrained(path)
    for file in tokenizer.glob("tokenizer*"):
        shutil.copy(file, path)
    return path


@pytest.fixture(scope="session")
def planted() -> Callable[..., Path]:
    """`planted(source, to, norm, readers, features, factor)`: a copy of a model, the same function, in which a norm
    puts out less of some features and its readers weigh them more: the steps that those weights need are far too coarse
    for the others of their groups.
    """

    def make(source: Path, to: Path, norm: str, readers: Sequence[str], features: Sequence[int], factor: float) -> Path:
        shutil.copytree(source, to)
        tensors = load_file(to / "model.safetensors")
        columns = list(features)
        for name in (f"{norm}.weight", f"{norm}.bias"):
            if name in tensors:
                tensors[name][columns] /= factor
        for reader in readers:
            tensors[f"{reader}.weight"][:, columns] *= factor
        save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
        return to

    return make
