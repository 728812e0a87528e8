"""Models filled block by block are the models that transformers loads whole."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bitwright.errors import ModelError
from bitwright.families import FAMILIES
from bitwright.models.load import LoadedModel, lent, load_model, materialise, open_lazily, open_skeleton, release
from bitwright.models.sites import find_blocks, find_linears


@pytest.fixture(scope="session")
def directory(tiny_model) -> Callable[..., Path]:
    """`directory(family, **config)`: a small random model of any family on disk, a decoder with its head."""
    return tiny_model


@pytest.fixture
def copy(directory, tmp_path) -> Callable[..., Path]:
    """A copy of a small model, with its tensors changed."""

    def make(family: str, change: Callable[[dict[str, Tensor]], object], **config: object) -> Path:
        path = Path(shutil.copytree(directory(family, **config), tmp_path / "model"))
        tensors = load_file(path / "model.safetensors")
        change(tensors)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        return path

    return make


def blocks_of(loaded: LoadedModel) -> list[str]:
    return [path for path, _ in find_blocks(loaded.model, loaded.architecture)]


def filled(loaded: LoadedModel) -> set[str]:
    return {name for name, parameter in loaded.model.named_parameters() if not parameter.is_meta}


def assert_same_values(got: nn.Module, want: nn.Module) -> None:
    tensors = dict(want.named_parameters(remove_duplicate=False)) | dict(want.named_buffers())
    ours = dict(got.named_parameters(remove_duplicate=False)) | dict(got.named_buffers())
    assert ours.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("family", FAMILIES)
def test_only_blocks_are_empty_and_filled_they_are_what_transformers_loads(directory, family):
    loaded, whole = open_lazily(directory(family)), load_model(directory(family))
    assert loaded.task == whole.task
    assert find_linears(loaded.model, loaded.architecture) == find_linears(whole.model, whole.architecture)
    inside = tuple(f"{path}." for path in blocks_of(loaded))
    assert filled(loaded) == {name for name, _ in loaded.model.named_parameters() if not name.startswith(inside)}
    for path in blocks_of(loaded):
        materialise(loaded, path)
    assert_same_values(loaded.model, whole.model)
    ids = torch.randint(5, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.model(input_ids=ids)[0], whole.model(input_ids=ids)[0])


@pytest.mark.parametrize("family", ["bert", "llama", "mixtral", "deepseek_v3"])
def test_dtype_is_that_of_a_whole_model(directory, family):
    loaded = open_lazily(directory(family), dtype=torch.bfloat16)
    materialise(loaded, "")
    assert_same_values(loaded.model, load_model(directory(family), dtype=torch.bfloat16).model)


def test_a_task_head_over_a_base_models_prefix(tiny_model):
    path = tiny_model("roberta", "token-classification")
    loaded = open_lazily(path)
    materialise(loaded, "")
    assert_same_values(loaded.model, load_model(path).model)
    assert open_lazily(path, task="embedding").model.base_model_prefix


def test_one_block_at_a_time(directory):
    loaded = open_lazily(directory("llama"))
    outside = filled(loaded)
    first, second = blocks_of(loaded)
    materialise(loaded, first)
    assert filled(loaded) - outside == {n for n, _ in loaded.model.named_parameters() if n.startswith(f"{first}.")}
    release(loaded, first)
    materialise(loaded, second)
    assert filled(loaded) - outside == {n for n, _ in loaded.model.named_parameters() if n.startswith(f"{second}.")}


@pytest.mark.parametrize("family", ["bert", "mixtral"])
def test_released_is_as_opened_whatever_was_done_to_the_block(directory, family):
    loaded = open_lazily(directory(family))
    path = blocks_of(loaded)[0]
    before = {name: type(module) for name, module in loaded.model.named_modules()}
    site = next(site for site in find_linears(loaded.model, loaded.architecture) if site.block == 0)
    materialise(loaded, path)
    block = loaded.model.get_submodule(path)
    for name, module in list(block.named_modules()):
        if isinstance(module, nn.Linear):
            module.bias = nn.Parameter(torch.ones(module.out_features))
        if name.endswith("act_fn"):
            block.set_submodule(name, nn.Identity())
    loaded.model.set_submodule(site.name, nn.Sequential(nn.Linear(4, 4)))
    release(loaded, path)
    assert {name: type(module) for name, module in loaded.model.named_modules()} == before
    assert not any(name.startswith(f"{path}.") for name in filled(loaded))
    materialise(loaded, "")
    assert_same_values(loaded.model, load_model(directory(family)).model)


def test_what_is_filled_already_is_left(directory):
    loaded = open_lazily(directory("bert"))
    path = blocks_of(loaded)[0]
    materialise(loaded, path)
    weight = next(loaded.model.get_submodule(path).parameters())
    with torch.no_grad():
        weight.zero_()
    materialise(loaded, "")
    assert not weight.any()
    assert next(loaded.model.get_submodule(path).parameters()) is weight


@pytest.mark.parametrize("family", ["gemma3_text", "gpt2", "opt"])
def test_tied_parameters_are_one(directory, family):
    loaded = open_lazily(directory(family, tie_word_embeddings=True))
    head, table = loaded.model.get_output_embeddings().weight, loaded.model.get_input_embeddings().weight
    assert head is table
    assert not head.is_meta


def test_tied_by_config_but_not_in_the_files(copy):
    def untie(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

    path = copy("gemma3_text", untie, tie_word_embeddings=True)
    loaded = open_lazily(path)
    materialise(loaded, "")
    assert_same_values(loaded.model, load_model(path).model)
    head, table = loaded.model.get_output_embeddings().weight, loaded.model.get_input_embeddings().weight
    assert torch.equal(head, table + 1)


def test_shards_and_a_bin(directory, tmp_path):
    whole = transformers.AutoModelForCausalLM.from_pretrained(directory("llama"))
    whole.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    shutil.copytree(directory("llama"), tmp_path / "bin")
    tensors = load_file(tmp_path / "bin" / "model.safetensors")
    (tmp_path / "bin" / "model.safetensors").unlink()
    turned = {name: t.t().contiguous().t() if t.ndim == 2 else t for name, t in tensors.items()}  # not contiguous
    torch.save(turned, tmp_path / "bin" / "pytorch_model.bin")
    for name in ("shards", "bin"):
        loaded = open_lazily(tmp_path / name)
        materialise(loaded, "")
        assert_same_values(loaded.model, whole)
        assert all(parameter.is_contiguous() for parameter in loaded.model.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_values_that_are_not_numbers_name_file_and_tensor(copy, value):
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.1.block_sparse_moe.experts.3.w1.weight"][2, :3] = value

    loaded = open_lazily(copy("mixtral", spoil))
    materialise(loaded, blocks_of(loaded)[0])
    with pytest.raises(
        ModelError, match=r"model\.safetensors: model\.layers\.1\..*experts\.3\.w1\.weight: 3 of 1536 values are NaN"
    ):
        materialise(loaded, blocks_of(loaded)[1])


def test_values_that_overflow_a_sum_but_are_numbers(copy):
    def enlarge(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm.weight"][:] = 3e38

    assert "model.norm.weight" in filled(open_lazily(copy("llama", enlarge)))


def next_token_layers(tensors: dict[str, Tensor]) -> None:
    further = {n.replace("layers.1.", "layers.2."): t.clone() for n, t in tensors.items() if "layers.1." in n}
    tensors |= further | {"model.layers.2.eh_proj.weight": torch.ones(2, 2), "mtp.norm.weight": torch.ones(2)}


@pytest.mark.parametrize("family", ["llama", "glm4_moe", "deepseek_v3"])
def test_layers_beyond_a_language_models_last_are_kept(copy, family):
    path = copy(family, next_token_layers)
    loaded = open_lazily(path)
    assert {"model.layers.2.eh_proj.weight", "mtp.norm.weight"} <= set(loaded.kept)
    assert {"model.layers.2.eh_proj.weight", "mtp.norm.weight"} <= set(load_model(path).kept)
    assert all(name.startswith(("model.layers.2.", "mtp.")) for name in loaded.kept)


def test_more_blocks_than_the_config_of_an_encoder_says(copy):
    def add(tensors: dict[str, Tensor]) -> None:
        tensors["encoder.layer.2.output.dense.bias"] = torch.ones(32)

    with pytest.raises(ModelError, match=r"hold encoder\.layer\.2\.output\.dense\.bias, but config"):
        open_lazily(copy("bert", add))


@pytest.mark.parametrize(
    ("family", "name"),
    [("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"), ("gpt2", "transformer.h.1.attn.bias")],
)
def test_tables_that_old_files_hold_are_kept(copy, family, name):
    assert open_lazily(copy(family, lambda tensors: tensors.update({name: torch.ones(4)}))).kept == (name,)


def test_a_tensor_inside_a_block_that_the_model_lacks(copy):
    def add(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(12)

    with pytest.raises(ModelError, match=r"hold model\.layers\.0\.self_attn\.q_norm\.weight, but config"):
        open_lazily(copy("llama", add))


def test_missing_weights(copy):
    with pytest.raises(ModelError, match=r"the weights lack model\.layers\.0\.mlp\.down_proj\.weight, which config"):
        open_lazily(copy("llama", lambda tensors: tensors.pop("model.layers.0.mlp.down_proj.weight")))


def test_a_missing_head(copy):
    with pytest.raises(ModelError, match=r"the weights lack lm_head\.weight, so .* text-generation"):
        open_lazily(copy("llama", lambda tensors: tensors.pop("lm_head.weight")))


def test_a_pooler_that_is_not_there_is_not_invented(copy):
    def behead(tensors: dict[str, Tensor]) -> None:
        del tensors["pooler.dense.weight"], tensors["pooler.dense.bias"]

    loaded = open_lazily(copy("bert", behead))
    assert loaded.model.pooler is None
    materialise(loaded, "")
    assert loaded.model(input_ids=torch.tensor([[7, 8]])).last_hidden_state.shape == (1, 2, 32)


def test_for_reading_only_nothing_is_filled(directory):
    loaded = open_lazily(directory("llama"), runnable=False)
    assert filled(loaded) == set()
    assert torch.equal(
        loaded.source["lm_head.weight"], load_file(directory("llama") / "model.safetensors")["lm_head.weight"]
    )


def test_a_whole_model_can_be_emptied_and_filled_again(directory):
    loaded = load_model(directory("bert"))
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    release(loaded, blocks_of(loaded)[0])
    assert any(parameter.is_meta for parameter in loaded.model.parameters())
    materialise(loaded, "")
    after = loaded.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_skeleton_has_every_shape_and_no_value(directory, family):
    whole = load_model(directory(family))
    skeleton = open_skeleton(directory(family) / "config.json")
    assert (skeleton.task, skeleton.architecture) == (whole.task, whole.architecture)
    assert find_linears(skeleton.model, skeleton.architecture) == find_linears(whole.model, whole.architecture)
    want = {name: tensor.shape for name, tensor in whole.model.state_dict().items()}
    got = skeleton.model.state_dict()
    assert {name: got[name].shape for name in got if name in want} == want
    assert all(tensor.is_meta for tensor in got.values())


def test_a_skeleton_of_70_billion_parameters(tmp_path):
    config = transformers.LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=128256,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    skeleton = open_skeleton(tmp_path / "config.json")
    assert sum(parameter.numel() for parameter in skeleton.model.parameters()) == 70_553_706_496
    assert len(find_linears(skeleton.model, skeleton.architecture)) == 80 * 7 + 1


def test_a_config_that_cannot_be_built(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(ModelError, match="does not know model_type 'mamba'"):
        open_skeleton(tmp_path / "config.json")


@pytest.mark.parametrize("family", ["bert", "mpnet", "gpt2", "llama", "mixtral"])
@pytest.mark.parametrize("whole", [True, False])
def test_reopened_models_are_the_same_and_read_no_header_twice(directory, family, whole, monkeypatch):
    """From whole models as from empty ones; what is done to one copy is not done to the other."""
    path = directory(family)
    first = load_model(path) if whole else open_lazily(path, runnable=False)
    wanted = open_lazily(path)
    monkeypatch.setattr("bitwright.files.tensors.read_header", lambda file, path: pytest.fail(f"read {path}"))
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *args, **options: pytest.fail("parsed"))
    for _ in range(2):
        again = first.reopen()
        assert (again.tokenizer is first.tokenizer, again.name, again.task) == (True, first.name, first.task)
        assert filled(again) == filled(wanted)
        materialise(again, "")
        materialise(wanted, "")
        state = again.model.state_dict()
        assert state.keys() == wanted.model.state_dict().keys()
        for name, value in wanted.model.state_dict().items():
            assert torch.equal(state[name], value), name
        for value in state.values():
            value.zero_()
        release(wanted, "")
        wanted = wanted.reopen()


def test_a_model_that_was_trusted_is_reopened_with_trust(directory):
    loaded = open_lazily(directory("llama"), trust_remote_code=True)
    assert loaded.trust_remote_code
    assert loaded.reopen().trust_remote_code
    assert not load_model(directory("bert")).reopen().trust_remote_code


def test_a_lent_model_is_given_back_empty(directory: Callable[..., Path]) -> None:
    """With the modules that it had; one that is not empty stays as it is, and another is lent."""
    loaded = open_lazily(directory("bert"), runnable=False)
    before = dict(loaded.model.named_modules())
    with lent(loaded) as mine, lent(loaded) as other:
        assert mine is loaded
        assert other is not loaded
        assert filled(mine) == filled(other) != set()
        mine.model.set_submodule("embeddings.LayerNorm", nn.Identity())
        materialise(mine, "encoder.layer.0")
    assert filled(loaded) == set()
    assert dict(loaded.model.named_modules()) == before
