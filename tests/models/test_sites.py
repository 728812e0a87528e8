"""The table and the models agree: nothing missed, nothing misnamed, every entry true of its family."""

import re
from fnmatch import fnmatchcase
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import Tensor, nn

import tests.families
from bitwright.errors import ModelError
from bitwright.families import FAMILIES, Architecture, architecture_of
from bitwright.families.decoders import DECODERS
from bitwright.families.encoders import ENCODERS
from bitwright.models.experts import linearize
from bitwright.models.load import load_model
from bitwright.models.sites import base_prefix, find_blocks, find_embeddings, find_linears, find_routers

TASKS = ("embedding", "sequence-classification", "token-classification", "question-answering")
VARIANTS = [(family, {}, task) for family in ENCODERS for task in TASKS] + [
    ("albert", {"num_hidden_layers": 5, "num_hidden_groups": 2, "inner_group_num": 2}, "embedding"),
    ("deberta-v2", {"share_att_key": False}, "embedding"),
    ("deberta-v2", {"relative_attention": False, "pos_att_type": []}, "embedding"),
    ("electra", {"embedding_size": 32}, "embedding"),
    *((family, {}, "text-generation") for family in DECODERS),
    *((family, {}, "embedding") for family in DECODERS),
    *((family, {}, "sequence-classification") for family in ("gemma3", "gpt2", "llama", "opt")),
    ("deepseek_v3", {"q_lora_rank": None}, "text-generation"),
    ("gpt2", {"add_cross_attention": True}, "text-generation"),
    ("opt", {"word_embed_proj_dim": 16, "do_layer_norm_before": False}, "text-generation"),
]


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda p: "-".join([p[0], *p[1], p[2]]))
def loaded(request, tiny_model, tiny_decoder) -> SimpleNamespace:
    """A model, its row and its task, that tests read but do not change."""
    family, config, task = request.param
    if family in ENCODERS:
        model = load_model(tiny_model(family, task, **config)).model
    else:
        model = tiny_decoder(family, task, **config).float()
        linearize(model, architecture_of(family))
    return SimpleNamespace(model=model, architecture=architecture_of(family), task=task)


def batch(model: nn.Module, n: int = 3) -> dict[str, Tensor]:
    ids = torch.randint(5, 200, (n, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    ids[mask == 0] = model.config.get_text_config().pad_token_id
    return {"input_ids": ids, "attention_mask": mask}


def forward(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found = model(**batch(model))
    return torch.cat([value.flatten() for value in found.values() if isinstance(value, Tensor)])


def test_every_row_has_a_tiny_model():
    assert {*tests.families.ENCODERS, *tests.families.DECODERS} == FAMILIES.keys()


@pytest.mark.parametrize("family", DECODERS)
def test_heads_of_decoders_are_where_the_row_says(tiny_decoder, family):
    """Also of tasks for which no other test makes a model; not every family has a class for each."""
    config = type(transformers.AutoConfig.for_model(family))
    classes = {
        "text-generation": transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
        "sequence-classification": transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        "token-classification": transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
        "question-answering": transformers.MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    }
    for task, path in FAMILIES[family].head.outputs.items():
        if config in classes[task]:
            assert isinstance(tiny_decoder(family, task).get_submodule(path), nn.Linear)


def is_left_out(row: Architecture, path: str) -> bool:
    """Whether a row says that a linear of the base model stays float."""
    return path == row.embeddings.projection or any(fnmatchcase(path, pattern) for pattern in row.left_out)


def test_every_linear_is_found_or_left_out(loaded):
    prefix = base_prefix(loaded.model)
    found = {site.name for site in find_linears(loaded.model, loaded.architecture)}
    linears = {name for name, module in loaded.model.named_modules() if isinstance(module, nn.Linear)}
    left_out = {name for name in linears if is_left_out(loaded.architecture, name.removeprefix(prefix))}
    assert (found | left_out) - set(find_routers(loaded.model, loaded.architecture)) == linears
    assert not found & left_out


def test_every_matrix_in_a_block_is_a_linear_a_router_or_left_out(loaded):
    """Also those that are no module's of their own, such as fused experts."""
    prefix = base_prefix(loaded.model)
    known = {site.name for site in find_linears(loaded.model, loaded.architecture)}
    known.update(find_routers(loaded.model, loaded.architecture))
    for block, _ in find_blocks(loaded.model, loaded.architecture):
        for name, parameter in loaded.model.get_submodule(block).named_parameters(block):
            module = name.rpartition(".")[0]
            left_out = is_left_out(loaded.architecture, module.removeprefix(prefix))
            assert parameter.ndim == 1 or module in known or left_out


def inputs_of_linears(loaded: SimpleNamespace) -> list[tuple[str, Tensor]]:
    """(name of a site, its input) for each call of one forward, in order."""
    calls: list[tuple[str, Tensor]] = []
    hooks = [
        loaded.model.get_submodule(site.name).register_forward_pre_hook(
            lambda _, args, name=site.name: calls.append((name, args[0].clone()))
        )
        for site in find_linears(loaded.model, loaded.architecture)
    ]
    forward(loaded.model)
    for hook in hooks:
        hook.remove()
    return calls


def test_sites_are_in_forward_order_and_run_as_often_as_they_say(loaded):
    sites = find_linears(loaded.model, loaded.architecture)
    calls = [name for name, _ in inputs_of_linears(loaded)]
    idle = {site.name for site in sites if site.role == "expert"} - set(calls)  # experts that no token was sent to
    assert list(dict.fromkeys(calls)) == [site.name for site in sites if site.name not in idle]
    assert all(calls.count(site.name) == (0 if site.name in idle else site.calls) for site in sites)


def test_linears_of_one_input_and_equal_calls_read_the_same_tensors(loaded):
    seen: dict[str, list[Tensor]] = {}
    for name, x in inputs_of_linears(loaded):
        seen.setdefault(name, []).append(x)
    first: dict[tuple[str, int], str] = {}
    for site in find_linears(loaded.model, loaded.architecture):
        leader = first.setdefault((site.input, site.calls), site.name)
        assert all(torch.equal(a, b) for a, b in zip(seen.get(leader, []), seen.get(site.name, []), strict=True))
        assert site.input == site.unit or site.role == "expert"


def test_the_experts_of_a_block_are_one_unit_and_never_the_router(loaded):
    sites = find_linears(loaded.model, loaded.architecture)
    routers = find_routers(loaded.model, loaded.architecture)
    assert len(routers) == len({site.unit for site in sites if site.role == "expert"})
    assert all(site.unit == f"{router.rpartition('.mlp')[0]}.expert" for site, router in (
        (site, router) for site in sites for router in routers
        if site.name.startswith(f"{router.rpartition('.')[0]}.experts.")
    ))  # fmt: skip
    assert not {site.name for site in sites} & set(routers)


def test_heads_come_last_and_have_no_block(loaded):
    sites = find_linears(loaded.model, loaded.architecture)
    blocks = [site.block for site in sites if site.block is not None]
    assert blocks == sorted(blocks)
    assert all((site.role == "head") == (site.block is None) for site in sites)
    assert [site.block for site in sites[len(blocks) :]] == [None] * (len(sites) - len(blocks))
    assert len(sites) > len(blocks) or loaded.task == "embedding"


def test_embeddings_are_all_tables_but_relative_positions(loaded):
    tables = {name for name, module in loaded.model.named_modules() if isinstance(module, nn.Embedding)}
    others = {name for name in tables if re.search(r"rel_embeddings|relative_attention_bias|vision_tower", name)}
    assert set(find_embeddings(loaded.model, loaded.architecture)) == tables - others


@pytest.mark.parametrize("family", [family for family, row in FAMILIES.items() if row.activations])
def test_activation_alone_consumes_its_linear(model_of, outputs, family):
    """Replacing "linear, then activation" by "linear with activation, then identity" changes nothing (float64)."""
    row = architecture_of(family)
    model = model_of(family)
    before = outputs(model)
    for block, _ in find_blocks(model, row):
        for linear, activation in row.activations.items():
            fused = nn.Sequential(*(model.get_submodule(f"{block}.{path}") for path in (linear, activation)))
            model.set_submodule(f"{block}.{linear}", fused)
            model.set_submodule(f"{block}.{activation}", nn.Identity())
    torch.testing.assert_close(outputs(model), before, rtol=0.0, atol=1e-9)


def test_forward_runs_and_is_finite(loaded):
    assert bool(torch.isfinite(forward(loaded.model)).all())


def test_missing_path_is_named(tiny_model):
    loaded = load_model(tiny_model("bert", "token-classification"))
    loaded.model.set_submodule("bert.encoder.layer.1.output.dense", nn.Identity())
    with pytest.raises(
        ModelError, match=r"bert\.encoder\.layer\.1\.output\.dense: .* a linear here, but the model has a Identity"
    ):
        find_linears(loaded.model, loaded.architecture)
    with pytest.raises(ModelError, match=r"bert\.layers: .* a list of blocks here, but the model has nothing"):
        find_linears(loaded.model, architecture_of("modernbert"))


def test_a_block_with_neither_alternative_is_refused(tiny_decoder):
    model, row = tiny_decoder("qwen3_moe"), architecture_of("qwen3_moe")
    linearize(model, row)
    model.set_submodule("model.layers.0.mlp", nn.Identity())
    with pytest.raises(
        ModelError, match=r"model\.layers\.0\.mlp\.experts: a list of experts is needed here, but the model has nothing"
    ):
        find_linears(model, row)


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_a_model_without_blocks_is_refused(tiny_model, family):
    loaded = load_model(tiny_model(family, num_hidden_layers=0))
    with pytest.raises(ModelError, match=r"layers?: the model has no blocks, so there are no linears"):
        find_linears(loaded.model, loaded.architecture)


def test_names_carry_the_prefix_of_the_model_as_loaded(tiny_model):
    loaded = load_model(tiny_model("bert", "sequence-classification"))
    sites = find_linears(loaded.model, loaded.architecture)
    assert (sites[0].name, sites[0].unit) == (
        "bert.encoder.layer.0.attention.self.query",
        "bert.encoder.layer.0.qkv",
    )
    assert [site.name for site in sites[-2:]] == ["bert.pooler.dense", "classifier"]
