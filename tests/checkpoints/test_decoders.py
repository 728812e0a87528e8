"""Decoders and mixtures of experts, dense or stacked in the files: names, ties, transposes; what transformers loads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitwright.checkpoints.formats import read_checkpoint
from bitwright.checkpoints.write import QuantizedParts, write_checkpoint
from bitwright.files.directory import ModelDirectory
from bitwright.models.architectures import find_linears
from bitwright.models.build import LoadedModel
from bitwright.models.experts import linearize
from bitwright.models.load import load_model
from bitwright.models.names import ModelNames, model_names
from bitwright.numerics.arrays import as_torch
from bitwright.numerics.linear import PendingLinear, QuantizedLinear, ready
from bitwright.runtime.generic import Linears

pytest.importorskip("compressed_tensors")
pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[..., QuantizedLinear]
SIZE = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 32, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 2,
    "eos_token_id": 3,
}  # fmt: skip
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
FIRST_DENSE = {"first_k_dense_replace": 1, "n_shared_experts": 1, "n_group": 2, "topk_group": 1}
LATENT = {"q_lora_rank": 20, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 10, "v_head_dim": 12}
FAMILIES: dict[str, dict[str, Any]] = {
    "deepseek_v3": MOE | FIRST_DENSE | LATENT | {"head_dim": 8},
    "gemma3_text": {},
    "glm4": {},
    "glm4_moe": MOE | FIRST_DENSE,
    "gpt2": {"n_inner": 48},
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True},
    "mistral": {},
    "mixtral": MOE,
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi3": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": MOE | {"mlp_only_layers": [0]},
}
TRANSPOSED = ("gpt2",)
WITH_EXPERTS = ("deepseek_v3", "glm4_moe", "mixtral", "qwen3_moe")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedModel]:
    """`source(family)`: a small random decoder, saved as transformers saves it and loaded as Bitwright holds it."""
    made: dict[str, LoadedModel] = {}

    def make(family: str) -> LoadedModel:
        if family not in made:
            path = tmp_path_factory.mktemp("decoder")
            torch.manual_seed(0)
            config = transformers.AutoConfig.for_model(family.partition(",")[0], **SIZE | FAMILIES[family])
            transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
            made[family] = load_model(path)
        return made[family]

    return make


Source = Callable[[str], LoadedModel]


def weight_of(loaded: LoadedModel, name: str) -> Tensor:
    weight: Tensor = loaded.model.get_parameter(f"{name}.weight").detach()
    return weight


def quantized(
    loaded: LoadedModel, make: Make, scheme: str, skip: Callable[[str], bool] = lambda name: False
) -> dict[str, PendingLinear]:
    sites = [site for site in find_linears(loaded.model, loaded.architecture) if site.role != "head"]
    return {site.name: ready(make(weight_of(loaded, site.name), scheme)) for site in sites if not skip(site.name)}


def names_of(loaded: LoadedModel) -> ModelNames:
    return model_names(loaded.model, loaded.architecture)


def write(loaded: LoadedModel, out: Path, parts: QuantizedParts) -> str:
    """The quant_method that was chosen."""
    write_checkpoint(ModelDirectory(loaded.path), out, parts, names_of(loaded), model_card="")
    method: str = json.loads((out / "config.json").read_text())["quantization_config"]["quant_method"]
    return method


def assert_transformers_gives(out: Path, loaded: LoadedModel, layers: dict[str, PendingLinear]) -> None:
    model, report = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        model(input_ids=torch.arange(8)[None])  # what was not decompressed while loading is now
    linearize(model, loaded.architecture)
    for name, layer in layers.items():
        assert torch.equal(model.get_parameter(f"{name}.weight"), layer.load().weight.dequantize()), name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back(source: Source, make_linear: Make, tmp_path: Path, family: str) -> None:
    """Packed and symmetric: portable but for Conv1D. Tensors that the model has no place for are kept."""
    loaded = source(family)
    layers = quantized(loaded, make_linear, "w4a16_channel")
    method = write(loaded, tmp_path / "out", QuantizedParts(layers))
    found = read_checkpoint(ModelDirectory(tmp_path / "out"))
    linears = Linears(found, names_of(loaded))
    assert linears.keys() == layers.keys()
    for name, layer in layers.items():
        assert torch.equal(linears[name].weight.dequantize(), layer.load().weight.dequantize()), name
    before = load_file(loaded.path / "model.safetensors")
    on_disk = {f"{name}.weight" for name in found.linears}
    assert on_disk <= before.keys()
    assert set(found.others) == before.keys() - on_disk
    assert method == ("bitwright" if family in TRANSPOSED else "compressed-tensors")
    if family in TRANSPOSED:
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    else:
        assert_transformers_gives(tmp_path / "out", loaded, layers)


@pytest.mark.parametrize(
    ("one", "other"), [("w8a8", "w4a16_g32"), ("w8a8", "w4a8_channel"), ("w8a16", "w3a16_channel")]
)
def test_transformers_decompresses_several_schemes(
    source: Source, make_linear: Make, tmp_path: Path, one: str, other: str
) -> None:
    loaded = source("llama")
    layers = quantized(loaded, make_linear, one, lambda name: "self_attn" in name)
    layers |= quantized(loaded, make_linear, other, lambda name: "self_attn" not in name)
    assert write(loaded, tmp_path / "out", QuantizedParts(layers)) == "compressed-tensors"
    assert_transformers_gives(tmp_path / "out", loaded, layers)


def test_transformers_stops_at_packed_zero_points_beside_another_scheme(
    source: Source, make_linear: Make, tmp_path: Path
) -> None:
    """Which is why the targets refuse it."""
    loaded = source("llama")
    layers = quantized(loaded, make_linear, "w8a8", lambda name: "self_attn" in name)
    layers |= quantized(loaded, make_linear, "w4a16_g32_asym", lambda name: "self_attn" not in name)
    assert write(loaded, tmp_path / "out", QuantizedParts(layers)) == "compressed-tensors"
    with pytest.raises(RuntimeError):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("scheme", ["w8a16", "w3a16_channel", "w2a16_channel", "w4a8_channel"])
def test_transformers_unpacks_experts(source: Source, make_linear: Make, tmp_path: Path, scheme: str) -> None:
    loaded = source("mixtral")
    layers = quantized(loaded, make_linear, scheme)
    assert write(loaded, tmp_path / "out", QuantizedParts(layers)) == "compressed-tensors"
    assert_transformers_gives(tmp_path / "out", loaded, layers)


def other_block(name: str) -> bool:
    return ".1.mlp.experts." in name


@pytest.mark.parametrize(
    ("scheme", "skip"),
    [("w8a8", None), ("w4a16_channel_asym", None), ("nf4_channel", None), ("w4a16_channel", other_block)],
    ids=["8-bit codes", "zero points", "a grid", "experts left float"],
)
def test_experts_that_transformers_cannot_unpack_are_guarded(
    source: Source, make_linear: Make, tmp_path: Path, scheme: str, skip: Callable[[str], bool] | None
) -> None:
    loaded = source("mixtral")
    layers = quantized(loaded, make_linear, scheme, skip or (lambda name: False))
    assert write(loaded, tmp_path / "out", QuantizedParts(layers)) == "bitwright"
    assert Linears(read_checkpoint(ModelDirectory(tmp_path / "out")), names_of(loaded)).keys() == layers.keys()
    with pytest.raises(RuntimeError):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_experts_of_another_scheme_than_the_rest_are_guarded(source: Source, make_linear: Make, tmp_path: Path) -> None:
    loaded = source("qwen3_moe")
    layers = quantized(loaded, make_linear, "w4a16_channel", lambda name: "experts" not in name)
    layers |= quantized(loaded, make_linear, "w8a8", lambda name: "experts" in name)
    assert write(loaded, tmp_path / "out", QuantizedParts(layers)) == "bitwright"
    groups = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["config_groups"]
    assert {group["format"] for group in groups.values()} == {"int-quantized", "pack-quantized"}
    assert sum(len(group["targets"]) for group in groups.values()) < len(layers) / 2  # numbers are put together
    linears = Linears(read_checkpoint(ModelDirectory(tmp_path / "out")), names_of(loaded))
    assert {name: linear.form for name, linear in linears.items()} == {
        name: layer.form for name, layer in layers.items()
    }


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_stacked_experts_are_written_one_by_one(source: Source, make_linear: Make, tmp_path: Path, first: int) -> None:
    """A source that stacks its experts; from expert `first` on they are quantized, the others stay what they were."""
    loaded = source("qwen3_moe")
    tensors = load_file(loaded.path / "model.safetensors")
    stem = "model.layers.1.mlp.experts"
    pieces = {
        (expert, part): tensors.pop(f"{stem}.{expert}.{part}.weight")
        for expert in range(4)
        for part in ("gate_proj", "up_proj", "down_proj")
    }
    rows = [torch.cat((pieces[expert, "gate_proj"], pieces[expert, "up_proj"])) for expert in range(4)]
    tensors[f"{stem}.gate_up_proj"] = torch.stack(rows)
    tensors[f"{stem}.down_proj"] = torch.stack([pieces[expert, "down_proj"] for expert in range(4)])
    stacked = tmp_path / "stacked"
    stacked.mkdir()
    (stacked / "config.json").write_bytes((loaded.path / "config.json").read_bytes())
    save_file(tensors, stacked / "model.safetensors", {"format": "pt"})

    chosen = [(expert, part) for expert, part in pieces if expert >= first]
    layers = {
        f"{stem}.{expert}.{part}": ready(make_linear(pieces[expert, part], "w4a16_channel")) for expert, part in chosen
    }
    names = names_of(loaded)
    write_checkpoint(ModelDirectory(stacked), tmp_path / "out", QuantizedParts(layers), names, model_card="")
    found = read_checkpoint(ModelDirectory(tmp_path / "out"))
    assert Linears(found, names).keys() == layers.keys()
    assert not {f"{stem}.gate_up_proj", f"{stem}.down_proj"} & found.others
    for (expert, part), weight in pieces.items():
        if (expert, part) not in chosen:
            assert torch.equal(as_torch(found.tensors[f"{stem}.{expert}.{part}.weight"]), weight)
            assert f"{stem}.{expert}.{part}.weight" in found.others
    rest = tensors.keys() - {f"{stem}.gate_up_proj", f"{stem}.down_proj"}
    assert rest <= found.others

    write_checkpoint(ModelDirectory(stacked), tmp_path / "float", QuantizedParts({}), names, model_card="")
    assert load_file(tmp_path / "float" / "model.safetensors").keys() == tensors.keys()


def test_what_a_fold_changed_is_written_in_float32(source: Source, make_linear: Make, tmp_path: Path) -> None:
    """Norms, a router, a transposed bias and weight, a weight kept in 16 bit; from a 16-bit source."""
    for family, changed, half in (
        ("mixtral", ("model.layers.0.post_attention_layernorm.weight", "model.layers.0.mlp.gate.weight"), ()),
        ("gpt2", ("transformer.h.0.mlp.c_fc.bias", "transformer.h.1.mlp.c_fc.weight"), ("transformer.h.1.mlp.c_fc",)),
    ):
        loaded = source(family)
        original = load_file(loaded.path / "model.safetensors")
        folder = tmp_path / family
        folder.mkdir()
        (folder / "config.json").write_bytes((loaded.path / "config.json").read_bytes())
        in_16_bit = {name: tensor.bfloat16() for name, tensor in original.items()}
        save_file(in_16_bit, folder / "model.safetensors", {"format": "pt"})
        values = {name: torch.randn(loaded.model.get_parameter(name).shape) for name in changed}
        parts = QuantizedParts(
            quantized(loaded, make_linear, "w8a16", lambda name, half=half: name in half),  # type: ignore[misc]
            half=half,
            changed={name: lambda value=value: value for name, value in values.items()},  # type: ignore[misc]
        )
        names = names_of(loaded)
        write_checkpoint(ModelDirectory(folder), tmp_path / f"{family}-out", parts, names, model_card="")
        out = load_file(tmp_path / f"{family}-out" / "model.safetensors")
        for name, value in values.items():
            on_disk = names.renames.get(name, name)
            value = value.t() if name in names.transposed else value
            dtype = torch.bfloat16 if name.removesuffix(".weight") in half else torch.float32
            assert out[on_disk].dtype == dtype
            assert torch.equal(out[on_disk], value.to(dtype))
            assert not torch.equal(out[on_disk].float(), in_16_bit[on_disk].float())


def test_what_the_model_lacks_is_kept(source: Source, make_linear: Make, tmp_path: Path) -> None:
    """Layers that predict further tokens, and anything unknown, keep their bytes."""
    loaded = source("llama")
    extra = {
        "model.layers.2.eh_proj.weight": torch.randn(8, 8),
        "model.layers.2.mlp.down_proj.weight": torch.randn(8, 4).bfloat16(),
        "unknown": torch.arange(5),
    }
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "config.json").write_bytes((loaded.path / "config.json").read_bytes())
    save_file(load_file(loaded.path / "model.safetensors") | extra, folder / "model.safetensors", {"format": "pt"})
    parts = QuantizedParts(quantized(loaded, make_linear, "w4a16"))
    write_checkpoint(ModelDirectory(folder), tmp_path / "out", parts, names_of(loaded), model_card="")
    out = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in extra.items():
        assert out[name].dtype == tensor.dtype
        assert torch.equal(out[name], tensor)
