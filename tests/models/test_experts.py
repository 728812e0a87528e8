"""Linearized models compute the same, under the names and shapes of the published files."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bitwright.errors import ModelError
from bitwright.families import architecture_of
from bitwright.models.experts import Experts, linearize
from bitwright.models.sites import file_name, find_linears, is_transposed

HIDDEN = ["deepseek_v3", "glm4_moe", "gpt2", "mixtral", "qwen3_moe"]  # families with linears that are not nn.Linear


@pytest.mark.parametrize("family", HIDDEN)
def test_outputs_stay(tiny_decoder, outputs, family):
    model = tiny_decoder(family)
    before, count = outputs(model), sum(p.numel() for p in model.parameters())
    linears = sum(isinstance(module, nn.Linear) for module in model.modules())
    linearize(model, architecture_of(family))
    assert sum(isinstance(module, nn.Linear) for module in model.modules()) > linears
    assert sum(p.numel() for p in model.parameters()) == count
    torch.testing.assert_close(outputs(model), before, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("family", ["deepseek_v3", "gpt2", "mixtral"])
def test_on_the_meta_device_nothing_is_allocated(tiny_decoder, family):
    with torch.device("meta"):
        empty = tiny_decoder(family)
    full = tiny_decoder(family)
    for model in (empty, full):
        linearize(model, architecture_of(family))
    shapes = [{n: (p.shape, p.dtype) for n, p in m.state_dict().items()} for m in (empty, full)]
    assert shapes[0] == shapes[1]
    assert all(parameter.is_meta for parameter in empty.parameters())


@pytest.mark.parametrize("family", [*HIDDEN, "llama", "gemma3", "opt"])
def test_names_and_values_are_those_that_transformers_writes(tiny_decoder, tmp_path, family):
    row = architecture_of(family)
    model = tiny_decoder(family, **({"tie_word_embeddings": False} if family != "gemma3" else {}))
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    linearize(model, row)
    ours = {file_name(row, n): t.T if is_transposed(row, n) else t for n, t in model.state_dict().items()}
    if family == "gemma3":  # whose published files keep a part of the vision tower's names that transformers drops
        ours = {name.replace("vision_tower.vision_model.", "vision_tower."): tensor for name, tensor in ours.items()}
        assert ours.pop("language_model.lm_head.weight") is not None  # tied
    assert set(ours) == set(stored)
    assert all(torch.equal(ours[name], stored[name]) for name in stored)


def test_no_expert_keeps_the_fused_tensor_in_memory(tiny_decoder):
    model = tiny_decoder("mixtral")
    linearize(model, architecture_of("mixtral"))
    for parameter in model.parameters():
        assert parameter.untyped_storage().nbytes() == parameter.numel() * parameter.element_size()


def test_twice_is_once(tiny_decoder):
    for family in ("gpt2", "mixtral"):
        model = tiny_decoder(family)
        linearize(model, architecture_of(family))
        before = {name: id(module) for name, module in model.named_modules()}
        linearize(model, architecture_of(family))
        assert {name: id(module) for name, module in model.named_modules()} == before


def test_an_expert_runs_once_on_its_tokens_and_not_without_any(tiny_decoder):
    model = tiny_decoder("mixtral")
    linearize(model, architecture_of("mixtral"))
    experts = model.get_submodule("model.layers.0.mlp.experts")
    assert isinstance(experts, Experts)
    seen: dict[int, list[int]] = {}
    for index, expert in enumerate(experts):
        expert.register_forward_pre_hook(lambda _, args, i=index: seen.setdefault(i, []).append(len(args[0])))
    x_MK = torch.randn(3, 32, dtype=torch.float64)
    chosen_MS, weights_MS = torch.tensor([[3, 0], [0, 3], [0, 1]]), torch.rand(3, 2, dtype=torch.float64)
    total_MK = experts(x_MK, chosen_MS, weights_MS)
    assert seen == {0: [3], 1: [1], 3: [2]}
    each = [
        sum(w * experts[int(e)](x) for e, w in zip(es, ws, strict=True))
        for x, es, ws in zip(x_MK, chosen_MS, weights_MS, strict=True)
    ]
    torch.testing.assert_close(total_MK, torch.stack(each), rtol=0.0, atol=1e-12)


def test_fused_experts_are_refused_with_the_remedy_and_unknown_ones_by_their_class(tiny_decoder):
    model, row = tiny_decoder("mixtral"), architecture_of("mixtral")
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.experts: a list .* has a MixtralExperts; call .*linearize"):
        find_linears(model, row)
    model.set_submodule("model.layers.1.mlp.experts", nn.Identity())
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.experts: this Identity has no gate_up_proj"):
        linearize(model, row)
