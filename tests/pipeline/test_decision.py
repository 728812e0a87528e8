"""`method: auto`: what is measured of a model, and that the choice is carried out; sizes from a config alone."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bitwright.errors import ModelError
from bitwright.models.load import LoadedModel, load_model
from bitwright.models.sites import find_embeddings, find_linears
from bitwright.pipeline import preview, quantize
from bitwright.pipeline.decision import decision_facts, plan, resolve_auto
from bitwright.pipeline.job import Job, open_job
from bitwright.pipeline.request import Texts
from bitwright.pipeline.resources import resources
from bitwright.pipeline.size import LISTED, kv_cache_bytes, size_plan
from bitwright.pipeline.variants import quantize_model
from bitwright.plan import make_plan, quantized_names
from bitwright.progress import Quiet
from bitwright.recipe import AUTO, Recipe, make_recipe, read_recipe, recipe_yaml, shipped_recipes
from bitwright.record import Evidence, from_data, plain_data
from bitwright.search.cost import Resources

TinyModel = Callable[..., Path]
ROOMY = Resources(10**11, 3600.0, 1e11)


def auto(scheme: str, **settings: Any) -> Recipe:
    return make_recipe(
        {"scheme": scheme, "method": AUTO, "targets": ["bitwright"], "calibration": {"samples": 24, "max_tokens": 32},
         "budget": {"max_loss": 1e-9}} | settings
    )  # fmt: skip


def job_of(model: Path, recipe: Recipe) -> Job:
    return open_job(model, recipe, Texts(samples=40))


def test_every_unit_is_measured_and_gets_a_method(tiny_model: TinyModel) -> None:
    job = job_of(tiny_model("bert"), auto("w8a8"))
    assert {row.method for row in job.plan if row.name in quantized_names(job.plan)} == {AUTO}
    decided = resolve_auto(job, available=ROOMY)
    decision = decided.decision
    assert decision is not None
    assert decision.rtn_loss is not None
    assert 0 < decision.rtn_loss < 1
    quantized = quantized_names(decided.plan)
    assert {site.name for unit in decision.features for site in unit.sites} == quantized
    methods = {row.name: row.method for row in decided.plan}
    for unit, choice in zip(decision.features, decision.choices, strict=True):
        assert {methods[site.name] for site in unit.sites} == {choice.method}
        assert unit.expected[choice.method] <= unit.expected["rtn"]
    assert decided.recipe == decision.recipe
    assert "method: auto" not in recipe_yaml(decided.recipe)


def test_the_model_is_the_same_afterwards(tiny_model: TinyModel) -> None:
    job = job_of(tiny_model("bert"), auto("w4a16"))
    before = job.model.encode(job.scored.probe)
    resolve_auto(job, available=ROOMY)
    assert np.array_equal(job.model.encode(job.scored.probe), before)
    assert all(parameter.is_meta for parameter in job.opened.loaded.model.parameters())  # nothing was left in it


def test_what_was_decided_can_be_quantized(tiny_model: TinyModel, tmp_path: Path) -> None:
    decided = resolve_auto(job_of(tiny_model("bert"), auto("w4a16")), available=ROOMY)
    quantized = quantize_model(decided, tmp_path, Quiet())
    assert quantized.layers.keys() == quantized_names(decided.plan)
    assert {row.name: row.method for row in quantized.account} == {
        row.name: row.method for row in decided.plan if row.name in quantized.layers
    }


def test_a_recipe_that_names_every_method_is_left_alone(tiny_model: TinyModel) -> None:
    job = job_of(tiny_model("bert"), auto("w8a8", method="rtn"))
    assert resolve_auto(job, available=ROOMY) is job


def test_named_methods_stay_beside_auto(tiny_model: TinyModel) -> None:
    recipe = auto("w4a16", rules=[{"role": "ffn", "method": "rtn_mse"}, {"role": "head", "scheme": "16bit"}])
    decided = resolve_auto(job_of(tiny_model("bert"), recipe), available=ROOMY)
    decision = decided.decision
    assert decision is not None
    assert {unit.role for unit in decision.features} == {"qkv", "attention_output"}
    ffn = [row.method for row in decided.plan if row.role == "ffn"]
    assert set(ffn) == {"rtn_mse"}
    assert decision.overruled == len(ffn)


def test_a_model_too_large_to_calibrate_is_not_run(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitwright.pipeline.unit_features.stream_lazily", lambda *args, **kwargs: pytest.fail("ran"))
    job = job_of(tiny_model("bert"), auto("w8a8"))
    decided = resolve_auto(job, available=replace(ROOMY, flops_per_second=1.0))
    decision = decided.decision
    assert decision is not None
    assert {row.method for row in decided.plan if row.name in quantized_names(decided.plan)} == {"rtn"}
    assert "TFLOP" in decision.reason
    assert decision.features == ()


def test_planted_outliers_are_seen_where_they_are(tiny_model: TinyModel, tmp_path: Path) -> None:
    """A value feature made large and read small is the same function; only its reader's input has a long tail."""
    source = tiny_model("bert")
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(source / "model.safetensors")
    block = "encoder.layer.1.attention."
    for name in ("self.value.weight", "self.value.bias"):
        tensors[block + name][3] *= 100
    tensors[f"{block}output.dense.weight"][:, 3] /= 100
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    plain = resolve_auto(job_of(source, auto("w8a8")), available=ROOMY).decision
    outlying = resolve_auto(job_of(tmp_path, auto("w8a8")), available=ROOMY).decision
    assert plain is not None
    assert outlying is not None
    for before, after, choice in zip(plain.features, outlying.features, outlying.choices, strict=True):
        if before.unit == f"{block}output.dense":
            assert after.channel_ratio > 20 * before.channel_ratio
            assert after.expected["rtn"] > 3 * before.expected["rtn"]
            assert after.expected["smoothquant"] < after.expected["rtn"] / 3
            assert choice.method.startswith("smoothquant")
            assert "long-tailed inputs" in choice.reason
        else:
            assert after.channel_ratio == pytest.approx(before.channel_ratio, rel=0.02)


def test_experts_and_routers(tmp_path: Path, tiny_model: TinyModel) -> None:
    model = write_decoder(
        tmp_path, tiny_model, "qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
    )
    recipe = auto("w4a16", calibration={"samples": 8, "max_tokens": 16})
    decided = resolve_auto(open_job(model, recipe, Texts(samples=8)), available=ROOMY)
    decision = decided.decision
    assert decision is not None
    experts = [unit for unit in decision.features if unit.role == "expert"]
    assert len(experts) == 2  # one unit per block
    assert all(len(unit.sites) == 4 * 3 for unit in experts)
    assert AUTO not in {row.method for row in decided.plan}


def write_decoder(path: Path, tiny_model: TinyModel, family: str, **config: Any) -> Path:
    """A small random decoder with the tokenizer of the small encoders."""
    import transformers

    size = {
        "vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 66, "pad_token_id": 0, "bos_token_id": 2,
        "eos_token_id": 3,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(family, **size | config))
    made.save_pretrained(path)
    for file in tiny_model("bert").glob("tokenizer*"):
        (path / file.name).write_bytes(file.read_bytes())
    return path


def test_facts_are_plain_data(tiny_model: TinyModel) -> None:
    found = plan(tiny_model("bert"), recipe=auto("w8a8"), texts=Texts(samples=40), available=ROOMY)
    told = json.loads(json.dumps(plain_data(found), allow_nan=False))
    assert from_data(Evidence, told["decision"]) == found["decision"]
    assert all(
        {"tail", "kurtosis", "error_int4", "expected", "method", "reason"} <= unit.keys()
        for unit in told["decision"]["units"]
    )
    decided = resolve_auto(job_of(tiny_model("bert"), auto("w8a8")), available=ROOMY)
    decision = decided.decision
    assert decision is not None
    assert decision_facts(decision).units == found["decision"].units


def test_resources_are_measured() -> None:
    found = resources(seconds=5.0)
    assert found.seconds == 5.0
    assert found.memory_bytes > 10**8
    assert 1e8 < found.flops_per_second < 1e15


@pytest.fixture(scope="module")
def models(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    llama = write_decoder(tmp_path_factory.mktemp("llama"), tiny_model, "llama", hidden_size=64, intermediate_size=128)
    return {"encoder": load_model(tiny_model("bert", hidden_size=64, intermediate_size=128)), "llm": load_model(llama)}


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_plans_a_model(name: str, models: dict[str, LoadedModel]) -> None:
    """Those for encoders a BERT, those for language models a llama, the others both; for all targets that they name."""
    recipe = read_recipe(Path(name))
    kind = name.partition("-")[0]
    for loaded in [models[kind]] if kind in models else models.values():
        sites = find_linears(loaded.model, loaded.architecture)
        made = make_plan(
            recipe,
            loaded.model,
            loaded.architecture,
            sites,
            find_embeddings(loaded.model, loaded.architecture),
            lambda name: torch.float32,
        )
        schemes = {row.scheme for row in made if row.is_linear and row.role != "head"}
        assert all(scheme.startswith(recipe.scheme) for scheme in schemes)
        assert {row.method for row in made if row.name in quantized_names(made)} == {recipe.method}


def test_sizes_are_those_that_the_plan_counts(tiny_model: TinyModel) -> None:
    path = tiny_model("bert")
    job = job_of(path, auto("w4a16_g32", method="rtn"))
    sizes = size_plan(path / "config.json", job.recipe)
    rows = {row["scheme"]: row for row in sizes["rows"]}
    loaded = load_model(path)
    assert sizes["n_parameters"] == sum(p.numel() for p in loaded.model.parameters())
    assert rows["fp32"]["bytes"] == 4 * sizes["n_parameters"]
    assert rows["16bit"]["bytes"] == 2 * sizes["n_parameters"]
    assert rows["recipe"] == rows["w4a16_g32"] | {"scheme": "recipe"}
    linears = [row for row in job.plan if row.is_linear and row.role != "head"]
    counted = sum(rows["w4a16_g32"]["groups"][group] for group in ("attention", "ffn"))
    biases = sum(row.shape[0] for row in linears)
    assert counted == sum(row.bytes_after for row in linears) - 2 * biases  # the plan's source is float32: 4 bytes each
    assert all(sum(row["groups"].values()) == row["bytes"] for row in sizes["rows"])
    assert sizes["kv_cache_bytes_per_token"] is None


def test_group_sizes_that_do_not_divide_are_chosen(tiny_model: TinyModel) -> None:
    names = [row["scheme"] for row in size_plan(tiny_model("bert") / "config.json")["rows"]]
    assert "w4a16_g128" in LISTED
    assert "w4a16_g128" not in names  # K = 32
    assert {"w4a16", "w4a16_g32"} <= set(names)


def test_seventy_billion_parameters_in_four_bits(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8192, "num_hidden_layers": 80,'
        '"intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 32000}'
    )
    sizes = size_plan(config)
    rows = {row["scheme"]: row["bytes"] / 1e9 for row in sizes["rows"]}
    assert rows["fp32"] == pytest.approx(276, abs=1)
    assert rows["w4a16_channel"] == pytest.approx(35.3, abs=0.1)
    assert rows["w4a16_g128"] == pytest.approx(37.4, abs=0.1)
    assert rows["ternary"] == rows["w2a16"]
    assert sizes["kv_cache_bytes_per_token"] == 2 * 80 * 8 * 128 * 2


def test_a_tied_head_counts_once(tmp_path: Path, tiny_model: TinyModel) -> None:
    tied = size_plan(write_decoder(tmp_path, tiny_model, "llama", tie_word_embeddings=True) / "config.json")
    assert "head" not in tied["rows"][0]["groups"]
    (tmp_path / "apart").mkdir()
    apart = size_plan(write_decoder(tmp_path / "apart", tiny_model, "llama", tie_word_embeddings=False) / "config.json")
    assert apart["rows"][1]["bytes"] - tied["rows"][1]["bytes"] == 2 * 200 * 32


def test_latent_attention_caches_one_vector() -> None:
    import transformers

    config = transformers.DeepseekV3Config(num_hidden_layers=4, kv_lora_rank=512, qk_rope_head_dim=64)
    assert kv_cache_bytes(config) == 4 * (512 + 64) * 2


def test_a_config_of_no_known_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5", "architectures": ["T5Model"]}')
    with pytest.raises(ModelError, match="t5"):
        size_plan(tmp_path / "config.json")


def test_quantize_decides_first_and_keeps_the_grounds(tiny_model: TinyModel, tmp_path: Path) -> None:
    result = quantize(tiny_model("bert"), out=tmp_path / "out", recipe=auto("w4a16"), samples=40, judged=False)
    record = result.record
    assert {row["method"] for row in record["layers"]} == {unit["method"] for unit in record["decision"]["units"]}
    assert record["decision"]["rejected"]
    assert read_recipe(tmp_path / "out" / "recipe.yaml") == make_recipe(record["recipe"])
    again = quantize(
        tiny_model("bert"), out=tmp_path / "again", recipe=tmp_path / "out" / "recipe.yaml", samples=40, judged=False
    )
    assert "decision" not in again.record
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again")]
    assert files[0] == files[1]


def test_other_commands_decide_too(tiny_model: TinyModel) -> None:
    found = preview(tiny_model("bert"), recipe=auto("w8a8"), texts=Texts(samples=40), sensitivity=False)
    assert AUTO not in {row.method for row in found["plan"]}
