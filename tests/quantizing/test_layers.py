"""From a plan to quantized linears, whatever the files look like."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitwright.methods.rtn import rtn
from bitwright.models.load import open_lazily
from bitwright.numerics import RANGES
from bitwright.numerics.linear import LinearForm
from bitwright.numerics.schemes import SCHEMES
from bitwright.pipeline import quantize
from bitwright.progress import Quiet
from bitwright.quantizing import layers
from bitwright.quantizing.layers import at_eight_bits, needs_inputs, quantize_linears
from bitwright.recipe import make_recipe
from bitwright.record import PlanRow

CALIBRATION = {"samples": 32, "max_tokens": 16, "batch_size": 8}
RECIPES = {
    "rtn": {"scheme": "w4a16_g32"},
    "awq_gptq": {"scheme": "w4a16_g32", "method": "awq_gptq", "calibration": CALIBRATION},
}


@pytest.fixture
def result(tmp_path: Path, prose: str) -> Callable[..., dict[str, bytes]]:
    """`result(source, method, **recipe)`: tensors and config of the quantized model, by file name."""

    def make(source: Path, method: str, **settings: Any) -> dict[str, bytes]:
        recipe = make_recipe({"targets": ["bitwright"]} | RECIPES[method] | settings)
        out = tmp_path / f"out-{source.name}-{method}"
        quantize(source, out=out, recipe=recipe, data=prose, samples=8, judged=False)
        return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix == ".safetensors"} | {
            "config.json": (out / "config.json").read_bytes()
        }

    return make


def copied(source: Path, to: Path, tensors: dict[str, Tensor] | None = None) -> Path:
    """A model without its weights, or with others."""
    shutil.copytree(source, to, ignore=shutil.ignore_patterns("*.safetensors"))
    if tensors is not None:
        save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.mark.parametrize("method", RECIPES)
def test_sharded_and_pickled_and_strided_weights_give_the_same(
    tiny_decoder: Callable[..., Path], result: Callable[..., Any], tmp_path: Path, method: str
) -> None:
    source = tiny_decoder("llama")
    tensors = load_file(source / "model.safetensors")
    sharded = copied(source, tmp_path / "sharded")
    names, files = sorted(tensors), ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for half, file in zip((names[::2], names[1::2]), files, strict=True):
        save_file({name: tensors[name] for name in half}, sharded / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: files[i % 2] for i, name in enumerate(names)}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    pickled = copied(source, tmp_path / "pickled")
    strided = {name: tensor.T.contiguous().T if tensor.ndim == 2 else tensor for name, tensor in tensors.items()}
    assert not strided["lm_head.weight"].is_contiguous()
    torch.save(strided, pickled / "pytorch_model.bin")
    wanted = result(source, method)
    assert result(sharded, method) == wanted
    assert result(pickled, method) == wanted


@pytest.mark.parametrize("method", RECIPES)
@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_stay_tied(
    tiny_decoder: Callable[..., Path], result: Callable[..., Any], tmp_path: Path, method: str, tied: bool
) -> None:
    files = result(tiny_decoder("llama", tie_word_embeddings=tied), method)
    (tmp_path / "one.safetensors").write_bytes(files["model.safetensors"])
    found = load_file(tmp_path / "one.safetensors")
    assert ("lm_head.weight" in found) != tied
    assert found["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert json.loads(files["config.json"])["tie_word_embeddings"] == tied


@pytest.mark.parametrize("method", RECIPES)
def test_layers_beyond_the_model_are_copied(
    tiny_decoder: Callable[..., Path], result: Callable[..., Any], tmp_path: Path, method: str
) -> None:
    """Those for multi-token prediction, and whatever else the files hold: float, to the bit; the rest is as without."""
    source = tiny_decoder("llama")
    tensors = load_file(source / "model.safetensors")
    more = {
        "model.layers.2.eh_proj.weight": torch.randn(32, 64),
        "model.layers.2.self_attn.q_proj.weight": torch.randn(32, 32).bfloat16(),
        "model.layers.2.shared_head.norm.weight": torch.randn(32).half(),
        "model.an_unknown_table": torch.arange(7),
    }
    plain, extended = result(source, method), result(copied(source, tmp_path / "more", tensors | more), method)
    for name, files in (("plain", plain), ("extended", extended)):
        (tmp_path / f"{name}.safetensors").write_bytes(files["model.safetensors"])
    without, found = load_file(tmp_path / "plain.safetensors"), load_file(tmp_path / "extended.safetensors")
    assert found.keys() - without.keys() == more.keys()
    for name, tensor in (without | more).items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16_g32_asym", "kmeans4_g32", "ternary_g32", "nf4_channel"])
@pytest.mark.parametrize("weight_range", ["min_max", "mse"])
def test_rows_at_a_time_are_rounded_as_the_whole(
    tiny_decoder: Callable[..., Path], opened: Any, monkeypatch: pytest.MonkeyPatch, scheme: str, weight_range: str
) -> None:
    if scheme == "ternary_g32" and weight_range == "min_max":
        weight_range = "absmax"
    monkeypatch.setattr(layers, "_VALUES_AT_ONCE", 5 * 32)
    job = opened(tiny_decoder("llama"), scheme=scheme, weight_range=weight_range)
    unread = open_lazily(job.loaded.path, runnable=False)
    found = quantize_linears(unread, job.plan, job.recipe, [], None, Quiet())
    assert len(found.layers) == len(found.account) == 14
    assert not found.changed
    spec = SCHEMES[scheme].weight
    for name, lazy in found.layers.items():
        stored, weight = lazy.load(), job.model.get_parameter(f"{name}.weight").detach()
        whole = rtn(weight, None, spec, RANGES[weight_range]).qtensor
        assert torch.equal(stored.weight.dequantize(), whole.dequantize()), name
        assert (lazy.form, lazy.shape) == (LinearForm(spec, SCHEMES[scheme].input), whole.shape)


def test_batches_are_cut_to_what_a_block_can_hold(
    opened: Any, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Masks go with their tokens: the statistics are those of the whole batch."""
    ids = torch.randint(5, 200, (5, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[2, 7:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    job = opened(tiny_model("bert"), scheme="w8a8_static", method="gptq")
    found = {}
    for tokens in (2048, 30, 7):
        monkeypatch.setattr(layers, "_TOKENS_AT_ONCE", tokens)
        folder = tmp_path / str(tokens)
        folder.mkdir()
        found[tokens] = job.to_directory([batch], folder)[0]
    for tokens in (30, 7):
        for name, lazy in found[2048].layers.items():
            ours, whole = found[tokens].layers[name].load().static, lazy.load().static
            assert ours.scale == pytest.approx(whole.scale, rel=1e-2)
        assert {row.n_tokens for row in found[tokens].account} == {5 * 12 - 5}


@pytest.mark.parametrize(
    ("scheme", "method", "recipe", "needed"),
    [
        ("w8a8", "rtn", {}, False),
        ("w4a16_g32", "rtn_mse", {}, False),
        ("w8a8_static", "rtn", {}, True),
        ("w4a16_g32", "gptq", {}, True),
        ("w4a16_g32", "awq", {}, True),
        ("w8a8", "smoothquant", {}, True),
        ("w4a16_g32", "imatrix", {}, True),
        ("w4a16_g32", "rtn", {"weight_range": "imatrix"}, True),
        ("w4a16_g32", "rtn", {"options": {"bias_correction": True}}, True),
        ("16bit", "cast", {}, False),
    ],
)
def test_what_needs_calibration(scheme: str, method: str, recipe: dict[str, Any], needed: bool) -> None:
    row = PlanRow("a", 0, "ffn", "a", (8, 32), scheme, method, 0, 0, "")
    assert needs_inputs(row, make_recipe(recipe)) == needed


def test_a_fallback_takes_the_folded_weight_and_the_source_s_bias(
    opened: Any, tiny_model: Callable[..., Path], batches: Any, tmp_path: Path
) -> None:
    """A linear in 16 bit whose producer took a scale needs the weight that expects it; a corrected bias belongs to the
    codes."""
    settings = {"scheme": "w4a16_g32", "method": "awq_gptq", "options": {"bias_correction": True}}
    job = opened(tiny_model("bert"), **settings)
    quantized, _ = job.to_directory(batches, tmp_path)
    name = "encoder.layer.0.attention.output.dense"
    rules = [{"match": name, "scheme": "16bit"}]
    fallen = opened(tiny_model("bert"), rules=rules, **settings).plan
    before, after = quantized.changed_for(job.plan), quantized.changed_for(fallen)
    assert f"{name}.weight" not in before
    assert f"{name}.weight" in after
    assert f"{name}.bias" in before
    assert f"{name}.bias" not in after
    folded = after[f"{name}.weight"]()
    assert folded.dtype == torch.bfloat16
    assert not torch.allclose(folded.float(), job.model.get_parameter(f"{name}.weight"), rtol=0.1)


@pytest.mark.parametrize("method", ["awq_gptq", "smoothquant_shift"])
def test_a_fallback_reads_its_input_as_it_is(
    opened: Any, tiny_model: Callable[..., Path], batches: Any, tmp_path: Path, method: str
) -> None:
    """The values of an attention both read an input that is transformed and make one whose scale was folded into them:
    in 16 bit they keep the fold alone, and in 8 bit too."""
    job = opened(tiny_model("bert"), scheme="w4a16_g32" if method == "awq_gptq" else "w8a8_static", method=method)
    quantized, _ = job.to_directory(batches, tmp_path)
    name, reader = "encoder.layer.0.attention.self.value", "encoder.layer.0.attention.output.dense"
    assert quantized.layers[name].form.scales_input
    source = {name: value.detach() for name, value in job.model.named_parameters()}
    kept = {name: quantized.changed[name]().float() for name in (f"{name}.weight", f"{name}.bias", f"{reader}.weight")}
    both = kept[f"{reader}.weight"] @ kept[f"{name}.weight"]
    wanted = source[f"{reader}.weight"] @ source[f"{name}.weight"]
    assert torch.allclose(both, wanted, atol=0.02 * float(wanted.abs().max()))  # rounded to bf16 twice
    through = kept[f"{reader}.weight"] @ kept[f"{name}.bias"]
    assert torch.allclose(through, source[f"{reader}.weight"] @ source[f"{name}.bias"], atol=1e-3)
    rows = tuple(replace(row, scheme="w8a8", method="rtn") for row in job.plan if row.name == name)
    eight = at_eight_bits(job.loaded, quantized, rows)[name].load()
    assert eight.transform is None
    assert torch.allclose(eight.weight.dequantize(), kept[f"{name}.weight"], atol=float(eight.weight.scale_NG.max()))
