"""A scaled input changes no output, in any family: folded where it folds, applied by hand where it does not."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from bitwright.errors import ModelError, NumericsError
from bitwright.families import architecture_of
from bitwright.models.experts import linearize
from bitwright.models.rescale import SharedInput, find_inputs, fold, legal_scale, scale_readers
from bitwright.models.sites import find_blocks, find_linears, find_routers

POST_NORM = {"qkv", "intermediate.dense", "output.dense"}

# (family, config beyond the small one's, what no producer takes the scale of, by its end, whether any takes a shift)
CASES = [
    ("albert", {}, {"qkv", "ffn", "ffn_output"}),
    ("albert", {"num_hidden_layers": 5, "num_hidden_groups": 2, "inner_group_num": 2}, {"qkv", "ffn", "ffn_output"}),
    ("bert", {}, POST_NORM),
    ("bert", {"hidden_act": "relu"}, {"qkv", "intermediate.dense"}),
    ("deberta-v2", {}, POST_NORM),
    ("deberta-v2", {"share_att_key": False}, POST_NORM),
    ("distilbert", {}, {"qkv", "ffn.lin1", "ffn.lin2"}),
    ("electra", {}, POST_NORM),
    ("ernie", {}, POST_NORM),
    ("modernbert", {}, {"layers.0.attn.Wqkv"}),
    ("modernbert", {"norm_bias": True, "attention_bias": True, "mlp_bias": True}, {"layers.0.attn.Wqkv"}),
    ("mpnet", {}, POST_NORM),
    ("roberta", {}, POST_NORM),
    ("xlm-roberta", {}, POST_NORM),
    ("deepseek_v3", {}, set()),
    ("deepseek_v3", {"q_lora_rank": None, "attention_bias": True}, set()),
    ("gemma3", {}, set()),
    ("gemma3_text", {}, set()),
    ("glm4", {}, set()),
    ("glm4_moe", {}, set()),
    ("gpt2", {}, {"mlp.c_proj"}),
    ("gpt2", {"activation_function": "relu"}, set()),
    ("lfm2", {}, set()),
    ("lfm2", {"conv_bias": True}, set()),
    ("llama", {}, set()),
    ("llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}, set()),
    ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}, set()),
    ("mistral", {}, set()),
    ("mixtral", {}, set()),
    ("opt", {}, set()),
    ("opt", {"activation_function": "gelu"}, {"fc2"}),
    ("opt", {"enable_bias": False}, set()),
    ("opt", {"layer_norm_elementwise_affine": False}, {"qkv", "fc1"}),
    ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}, {"qkv", "fc1"}),
    ("phi3", {}, set()),
    ("phi3", {"num_key_value_heads": 4}, set()),
    ("qwen2", {}, set()),
    ("qwen3", {}, set()),
    ("qwen3_moe", {}, set()),
]  # fmt: skip


def inputs_of(model: nn.Module, family: str) -> list[SharedInput]:
    linearize(model, architecture_of(family))
    return find_inputs(model, architecture_of(family), find_linears(model, architecture_of(family)))


def random_change(model: nn.Module, shared: SharedInput, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """A legal scale in [0.5, 2] and, where there is room for one, a shift."""
    k = model.get_submodule(shared.readers[0]).weight.shape[-1]
    scale_K = legal_scale(shared, 0.5 + 1.5 * torch.rand(k, generator=generator, dtype=torch.float64))
    shift_K = torch.randn(k, generator=generator, dtype=torch.float64) if shared.shiftable else None
    return scale_K, shift_K


def apply(_: nn.Module, args: tuple[Tensor, ...], *, scale_K: Tensor, shift_K: Tensor | None) -> tuple[Tensor]:
    return ((args[0] - (0 if shift_K is None else shift_K)) / scale_K,)


@pytest.mark.parametrize(("family", "config", "unfoldable"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_outputs_stay_when_every_input_is_rescaled(model_of, outputs, family, config, unfoldable):
    model = model_of(family, **config)
    linearize(model, architecture_of(family))
    before = outputs(model)
    generator = torch.Generator().manual_seed(2)
    inputs = inputs_of(model, family)
    for shared in inputs:
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        scale_K, shift_K = random_change(model, shared, generator)
        if shared.producer:
            changed = fold(model, shared, scale_K, shift_K)
        else:
            changed = scale_readers(model, shared, scale_K, shift_K)
            for name in shared.sites:
                hook = partial(apply, scale_K=scale_K, shift_K=shift_K)
                model.get_submodule(name).register_forward_pre_hook(hook)
        assert set(changed) == {n for n, t in model.state_dict().items() if not torch.equal(t, weights[n])}
        assert len(set(changed)) == len(changed)
    torch.testing.assert_close(outputs(model), before, rtol=0.0, atol=1e-9)

    left = [shared.unit for shared in inputs if shared.producer is None and shared.block is not None]
    assert all(any(unit.endswith(end) for end in unfoldable) for unit in left)
    assert all(any(unit.endswith(end) for unit in left) for end in unfoldable)


def test_shifts_fold_where_norm_and_readers_have_biases(model_of):
    def shiftable(family: str, **config: object) -> list[str]:
        model = model_of(family, **config)
        first = find_blocks(model, architecture_of(family))[1][0] + "."
        return [
            s.unit.removeprefix(first) for s in inputs_of(model, family) if s.shiftable and s.unit.startswith(first)
        ]

    assert shiftable("gpt2") == ["attn.c_attn", "mlp.c_fc", "mlp.c_proj"]  # the last as an input transform
    assert shiftable("opt") == ["qkv", "fc1"]
    assert shiftable("bert") == ["qkv", "intermediate.dense", "output.dense"]
    assert shiftable("llama", attention_bias=True, mlp_bias=True) == []  # its norms have none
    assert shiftable("lfm2", full_attn_idxs=[0], conv_bias=True) == []  # a convolution's is inside its gate
    assert shiftable("opt", enable_bias=False) == []
    assert shiftable("modernbert", norm_bias=True, attention_bias=True, mlp_bias=True) == ["attn.Wqkv", "mlp.Wi"]


@pytest.mark.parametrize("family", ["llama", "deepseek_v3", "bert"])
def test_inputs_partition_the_sites_in_forward_order(model_of, family):
    model = model_of(family)
    inputs = inputs_of(model, family)
    sites = find_linears(model, architecture_of(family))
    names = [name for shared in inputs for name in shared.sites]
    assert sorted(names) == sorted(site.name for site in sites)
    assert len({shared.unit for shared in inputs}) == len(inputs)
    order = {site.name: i for i, site in enumerate(sites)}
    firsts = [order[shared.sites[0]] for shared in inputs]
    assert firsts == sorted(firsts)


def test_router_experts_and_shared_experts_read_one_tensor(model_of):
    model = model_of("deepseek_v3")
    inputs = inputs_of(model, "deepseek_v3")
    routers = find_routers(model, architecture_of("deepseek_v3"))
    shared = next(s for s in inputs if s.readers[0] in routers)
    assert shared.producer is not None
    assert shared.producer.name == "model.layers.1.post_attention_layernorm"
    assert set(shared.readers) - set(shared.sites) == set(routers) == {"model.layers.1.mlp.gate"}
    assert len(shared.sites) == 2 * 4 + 2


def test_only_inputs_of_the_given_sites_are_found_and_all_readers_follow(model_of):
    model, row = model_of("llama"), architecture_of("llama")
    value = [site for site in find_linears(model, row) if site.name.endswith("0.self_attn.v_proj")]
    (shared,) = find_inputs(model, row, value)
    assert shared.sites == ("model.layers.0.self_attn.v_proj",)
    assert len(shared.readers) == 3
    changed = fold(model, shared, torch.full((32,), 2.0))
    assert [name.rpartition("layers.0.")[2] for name in changed] == [
        "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight", "input_layernorm.weight",
    ]  # fmt: skip


def test_a_head_tied_to_the_embedding_is_scaled_without_it(model_of):
    model = model_of("llama", tie_word_embeddings=True)
    embedding, head = model.get_submodule("model.embed_tokens"), model.get_submodule("lm_head")
    assert head.weight is embedding.weight
    before = embedding.weight.clone()
    shared = inputs_of(model, "llama")[-1]
    assert shared.sites == ("lm_head",)
    assert scale_readers(model, shared, torch.full((32,), 2.0)) == ["lm_head.weight"]
    assert torch.equal(embedding.weight, before)
    assert torch.equal(head.weight, 2 * before)


def test_inputs_are_found_on_the_meta_device(tiny_decoder):
    with torch.device("meta"):
        empty = tiny_decoder("mixtral")
    full = tiny_decoder("mixtral")
    assert inputs_of(empty, "mixtral") == inputs_of(full, "mixtral")


def test_legal_scale_is_the_geometric_mean_over_query_heads_that_share_values(model_of):
    shared = next(s for s in inputs_of(model_of("llama"), "llama") if s.unit.endswith("o_proj"))
    scale_K = torch.rand(48) + 0.5  # 2 heads of values, each for 2 query heads, 12 features
    legal = legal_scale(shared, scale_K)
    first, second, third, fourth = legal.split(12)
    assert torch.equal(first, second)
    assert torch.equal(third, fourth)
    assert torch.allclose(first, (scale_K[:12] * scale_K[12:24]).sqrt())
    assert torch.allclose(legal_scale(shared, legal), legal)
    qkv = next(s for s in inputs_of(model_of("llama"), "llama") if s.unit.endswith("qkv"))
    assert torch.equal(legal_scale(qkv, scale_K), scale_K)


def test_bfloat16_weights_are_rounded_once(model_of):
    model = model_of("llama").bfloat16()
    weight = model.get_submodule("model.layers.0.self_attn.q_proj").weight
    before, scale_K = weight.clone(), torch.rand(32) + 0.5
    fold(model, inputs_of(model, "llama")[0], scale_K)
    assert torch.equal(weight, (before.float() * scale_K).bfloat16())


def test_what_cannot_fold_is_refused(model_of):
    llama, bert = model_of("llama"), model_of("bert")
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    qkv, output = inputs_of(llama, "llama")[:2]
    with pytest.raises(ModelError, match=r"layer\.0\.qkv: no module before this input can take a scale"):
        fold(bert, inputs_of(bert, "bert")[0], torch.ones(32))
    with pytest.raises(NumericsError, match=r"o_proj: 2 features share each row of .*v_proj, .* legal_scale"):
        fold(llama, output, torch.arange(1.0, 49.0))
    with pytest.raises(NumericsError, match=r"qkv: the scale has the shape \(31,\), but there are K = 32"):
        fold(llama, qkv, torch.ones(31))
    with pytest.raises(NumericsError, match=r"qkv: the smallest scale is 0"):
        scale_readers(llama, qkv, torch.zeros(32))
    with pytest.raises(NumericsError, match=r"o_proj: the scale holds NaN"):
        fold(llama, output, torch.full((48,), torch.nan))
    with pytest.raises(ModelError, match=r"qkv: a shift needs a bias"):
        fold(llama, qkv, torch.ones(32), torch.ones(32))
    assert all(torch.equal(tensor, before[name]) for name, tensor in llama.state_dict().items())
