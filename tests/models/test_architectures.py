"""The table and the models agree: nothing missed, nothing misnamed, every entry true of its family."""

import re
from fnmatch import fnmatchcase
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from bitwright.errors import ModelError
from bitwright.models.architectures import (
    ARCHITECTURES,
    architecture_of,
    base_prefix,
    find_blocks,
    find_embeddings,
    find_linears,
)
from bitwright.models.load import LoadedModel, Task, load_model

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS = get_args(Task)
VARIANTS = [(family, {}, task) for family in ARCHITECTURES for task in TASKS] + [
    ("albert", {"num_hidden_layers": 5, "num_hidden_groups": 2, "inner_group_num": 2}, "embedding"),
    ("deberta-v2", {"share_att_key": False}, "embedding"),
    ("deberta-v2", {"relative_attention": False, "pos_att_type": []}, "embedding"),
    ("electra", {"embedding_size": 32}, "embedding"),
]


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda p: "-".join([p[0], *p[1], p[2]]))
def loaded(request, tiny_model) -> LoadedModel:
    """A model that tests read but do not change."""
    family, config, task = request.param
    return load_model(tiny_model(family, task, **config))


def batch(loaded: LoadedModel, n: int = 3) -> dict[str, Tensor]:
    ids = torch.randint(5, 200, (n, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    ids[mask == 0] = loaded.config.pad_token_id
    return {"input_ids": ids, "attention_mask": mask}


def outputs(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([value.flatten() for value in model(**inputs).values() if isinstance(value, Tensor)])


def test_every_row_has_a_tiny_model(families):
    assert families == sorted(ARCHITECTURES)


def test_every_linear_is_found_or_left_out(loaded):
    prefix = base_prefix(loaded.model)
    found = {site.name for site in find_linears(loaded.model, loaded.architecture)}
    linears = {name for name, module in loaded.model.named_modules() if isinstance(module, nn.Linear)}
    left_out = {n for n in linears for pattern in loaded.architecture.left_out if fnmatchcase(n, prefix + pattern)}
    assert found | left_out == linears
    assert not found & left_out


def inputs_of_linears(loaded: LoadedModel) -> list[tuple[str, Tensor]]:
    """(name of a site, its input) for each call of one forward, in order."""
    calls: list[tuple[str, Tensor]] = []
    hooks = [
        loaded.model.get_submodule(site.name).register_forward_pre_hook(
            lambda _, args, name=site.name: calls.append((name, args[0].clone()))
        )
        for site in find_linears(loaded.model, loaded.architecture)
    ]
    outputs(loaded.model, batch(loaded))
    for hook in hooks:
        hook.remove()
    return calls


def test_sites_are_in_forward_order_and_run_as_often_as_they_say(loaded):
    sites = find_linears(loaded.model, loaded.architecture)
    calls = [name for name, _ in inputs_of_linears(loaded)]
    assert list(dict.fromkeys(calls)) == [site.name for site in sites]
    assert {site.name: site.calls for site in sites} == {name: calls.count(name) for name in calls}


def test_linears_of_one_unit_and_equal_calls_read_the_same_tensors(loaded):
    seen: dict[str, list[Tensor]] = {}
    for name, x in inputs_of_linears(loaded):
        seen.setdefault(name, []).append(x)
    first: dict[tuple[str, int], str] = {}
    for site in find_linears(loaded.model, loaded.architecture):
        leader = first.setdefault((site.unit, site.calls), site.name)
        assert all(torch.equal(a, b) for a, b in zip(seen[leader], seen[site.name], strict=True))


def test_heads_come_last_and_have_no_block(loaded):
    sites = find_linears(loaded.model, loaded.architecture)
    blocks = [site.block for site in sites if site.block is not None]
    assert blocks == sorted(blocks)
    assert all((site.role == "head") == (site.block is None) for site in sites)
    assert [site.block for site in sites[len(blocks) :]] == [None] * (len(sites) - len(blocks))
    assert len(sites) > len(blocks) or loaded.task == "embedding"


def test_embeddings_are_all_tables_but_relative_positions(loaded):
    tables = {name for name, module in loaded.model.named_modules() if isinstance(module, nn.Embedding)}
    relative = {name for name in tables if re.search(r"rel_embeddings|relative_attention_bias", name)}
    assert set(find_embeddings(loaded.model)) == tables - relative


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_activation_alone_consumes_its_linear(tiny_model, family):
    """Replacing "linear, then activation" by "linear with activation, then identity" changes nothing (float64)."""
    loaded = load_model(tiny_model(family), dtype=torch.float64)
    inputs = batch(loaded)
    before = outputs(loaded.model, inputs)
    for block, _ in find_blocks(loaded.model, loaded.architecture):
        for linear, activation in loaded.architecture.activations.items():
            fused = nn.Sequential(*(loaded.model.get_submodule(f"{block}.{path}") for path in (linear, activation)))
            loaded.model.set_submodule(f"{block}.{linear}", fused)
            loaded.model.set_submodule(f"{block}.{activation}", nn.Identity())
    assert torch.allclose(outputs(loaded.model, inputs), before, rtol=0, atol=1e-9)
    assert loaded.architecture.activations or family == "modernbert"


def test_forward_runs_and_is_finite(loaded):
    assert bool(torch.isfinite(outputs(loaded.model, batch(loaded))).all())


def test_missing_path_is_named(tiny_model):
    loaded = load_model(tiny_model("bert", "token-classification"))
    loaded.model.set_submodule("bert.encoder.layer.1.output.dense", nn.Identity())
    with pytest.raises(ModelError, match=r"bert\.encoder\.layer\.1\.output\.dense: a Identity where .* a linear"):
        find_linears(loaded.model, loaded.architecture)
    with pytest.raises(ModelError, match=r"bert\.layers: nothing where .* a list of blocks"):
        find_linears(loaded.model, architecture_of("modernbert"))


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_a_model_without_blocks_is_refused(tiny_model, family):
    loaded = load_model(tiny_model(family, num_hidden_layers=0))
    with pytest.raises(ModelError, match=r"layers?: no blocks, so there are no linears"):
        find_linears(loaded.model, loaded.architecture)


def test_unknown_model_type_names_the_nearest_and_where_to_add_it():
    with pytest.raises(ModelError, match=r"'robert' .*did you mean 'roberta'.*architectures\.py"):
        architecture_of("robert")
    with pytest.raises(ModelError, match="known: albert, bert"):
        architecture_of("gpt2")


def test_names_carry_the_prefix_of_the_model_as_loaded(tiny_model):
    loaded = load_model(tiny_model("bert", "sequence-classification"))
    sites = find_linears(loaded.model, loaded.architecture)
    assert (sites[0].name, sites[0].unit) == (
        "bert.encoder.layer.0.attention.self.query",
        "bert.encoder.layer.0.qkv",
    )
    assert [site.name for site in sites[-2:]] == ["bert.pooler.dense", "classifier"]
