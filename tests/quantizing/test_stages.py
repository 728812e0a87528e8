"""One stage after another: what is left in memory is what the files say, and the account is true."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitwright.calibration.observers import merge, observe, observe_beside
from bitwright.errors import NumericsError, RecipeError
from bitwright.kernels import dispatch
from bitwright.methods import METHODS
from bitwright.methods.gptq import gptq
from bitwright.methods.rtn import rtn
from bitwright.models.experts import Experts
from bitwright.models.rescale import fold
from bitwright.numerics import RANGES
from bitwright.numerics.grids import scale_and_zero_point
from bitwright.numerics.histogram import Histogram
from bitwright.numerics.schemes import SCHEMES
from bitwright.quantizing import observing, transforming
from bitwright.quantizing.stages import quantize_stage
from bitwright.record import Starved
from bitwright.runtime.load import load

W4 = "w4a16_g32"
needs_kernels = pytest.mark.skipif(not dispatch.available(), reason="the native kernels are not built")


def outputs(model: Any) -> Tensor:
    ids = torch.randint(5, 200, (2, 20), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids))[0]
    return found


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


CASES = [
    *((family, method, {}) for family in ("llama", "bert") for method in METHODS),
    *((family, method, {}) for family in ("gpt2", "mixtral") for method in ("awq_gptq", "smoothquant_shift")),
    ("bert", "rtn", {"bias_correction": True}),
    ("bert", "smoothquant_shift", {"sequential": True, "bias_correction": True}),
    ("bert", "smoothquant_gptq", {"alpha": "search"}),
    ("mixtral", "gptq", {"sequential": True}),
    ("mixtral", "gptq", {"mismatch": 1.0}),
    ("llama", "awq_gptq", {"mismatch": 1.0}),
    ("bert", "awq_gptq", {"mismatch": 0.5, "bias_correction": True}),
    ("glm4_moe", "smoothquant_gptq", {}),
]


@needs_kernels
@pytest.mark.parametrize(("family", "method", "options"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_model_in_memory_computes_what_the_checkpoint_computes(
    opened, tiny_decoder, tiny_model, batches, tmp_path, family, method, options
):
    source = tiny_model(family) if family == "bert" else tiny_decoder(family)
    settings = {"scheme": W4, "method": method, "options": options}
    quantized, written = opened(source, **settings).to_directory(batches, tmp_path)
    in_memory = opened(source, **settings)
    before = outputs(in_memory.model)
    in_memory.quantize(batches)
    in_memory.round_the_rest()
    stored = outputs(load(written, compute="float32").hf)
    assert relative(outputs(in_memory.model), stored) < 3e-6
    assert relative(stored, before) > 1e-3  # else nothing was quantized
    transforms = {row.transform for row in quantized.account}
    if METHODS[method].transform == "awq":
        assert ("at the input" in transforms) == (family in ("bert", "gpt2"))
        assert "folded" in transforms


@pytest.mark.parametrize("method", ["rtn", "smoothquant_shift"])
@pytest.mark.parametrize("range_", ["min_max", "percentile"])
def test_static_ranges_are_those_of_the_transformed_inputs(
    opened, tiny_model, batches, inputs_of, monkeypatch, method, range_
):
    """Of the first input of a block, which nothing that is rounded there changes, to the bit."""
    folded: dict[str, tuple[Tensor, Tensor | None]] = {}

    def noting(model: nn.Module, shared: Any, scale_K: Tensor, shift_K: Tensor | None = None) -> list[str]:
        folded.update(dict.fromkeys(shared.sites, (scale_K, shift_K)))
        return fold(model, shared, scale_K, shift_K)

    monkeypatch.setattr(transforming, "fold", noting)
    job = opened(tiny_model("bert"), scheme="w8a8_static", method=method, range=range_)
    checked = 0
    for stage in job.stages(batches):
        read = {site.name: inputs_of(stage, site.name) for site in stage.sites}
        made = quantize_stage(job.model, stage, job.stage_plan())
        for name, layer in made.layers.items():
            scale_K, shift_K = folded.get(name, (None, None))
            x = read[name] if shift_K is None else read[name] - shift_K
            x = layer.seen(x) if scale_K is None else x / scale_K
            spec = SCHEMES["w8a8_static"].input
            if range_ == "min_max":
                scale, zero = scale_and_zero_point(x.min().reshape(1, 1), x.max().reshape(1, 1), spec)
            elif name.endswith(("query", "key", "value")):
                each = [Histogram.of(part) for part in x.split(len(x) // len(batches))]
                scale, zero = RANGES[range_](each[0] + each[1] + each[2], spec)
            else:
                continue
            assert layer.static.scale == pytest.approx(float(scale), rel=1e-6)
            assert abs(layer.static.zero_point - int(zero)) <= (method != "rtn")  # a tie may fall either way
            checked += 1
    assert checked == (12 if range_ == "min_max" else 6)
    assert (method == "rtn") == (not folded)


def test_bias_correction_leaves_no_mean_error(opened, tiny_model, batches, inputs_of):
    job = opened(tiny_model("bert"), scheme=W4, method="gptq", options={"bias_correction": True})
    stage = next(iter(job.stages(batches, fast=False)))
    name = "encoder.layer.0.attention.self.value"
    x, linear = inputs_of(stage, name), job.model.get_submodule(name)
    with torch.no_grad():
        wanted, bias = linear(x), linear.bias.clone()
        made = quantize_stage(job.model, stage, job.stage_plan())
        rounded = x @ made.layers[name].weight.dequantize().T
        assert torch.allclose(linear(x), rounded + made.layers[name].bias_N, atol=1e-5)
    corrected, uncorrected = ((rounded + b - wanted).mean(0).abs().max() for b in (made.layers[name].bias_N, bias))
    assert corrected < 1e-5 < 1e-3 < uncorrected


@pytest.mark.parametrize("method", ["gptq", "smoothquant"])
def test_errors_are_those_of_the_outputs(opened, tiny_model, batches, inputs_of, method):
    """The account's errors come from Gram matrices; here from the outputs themselves, bias left out."""
    job = opened(tiny_model("bert"), scheme=W4, method=method)
    for stage in job.stages(batches, fast=False):
        read = {site.name: inputs_of(stage, site.name) for site in stage.sites}
        weights = {name: job.model.get_parameter(f"{name}.weight").detach().clone() for name in read}
        made = quantize_stage(job.model, stage, job.stage_plan())
        for row in made.account:
            name, x = row.name, read[row.name].double()
            if f"{name}.weight" in made.changed:
                continue  # a fold gave it other inputs, or other outputs
            wanted = x @ weights[name].double().T
            found = x @ job.model.get_parameter(f"{name}.weight").detach().double().T
            nearest = rtn(weights[name], None, SCHEMES[W4].weight, RANGES["min_max"]).qtensor.dequantize()
            assert row.error == pytest.approx(relative(found, wanted), rel=1e-3)
            assert row.sqnr_db == pytest.approx(-20 * float(torch.tensor(row.error).log10()))
            assert row.cosine == pytest.approx(float((found * wanted).sum() / found.norm() / wanted.norm()), abs=1e-5)
            assert row.error_rtn == pytest.approx(relative(x @ nearest.double().T, wanted), rel=1e-3)
            assert row.n_tokens == 3 * 4 * 24


def unfair(_: nn.Module, args: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Before the experts run: every token goes to experts 0 and 1, but the first of each batch to 0 and 2."""
    x_MK, chosen_MS, weights_MS = args
    chosen_MS = torch.tensor([0, 1]).repeat(len(chosen_MS), 1)
    chosen_MS[0, 1] = 2
    return x_MK, chosen_MS, weights_MS


@pytest.mark.parametrize("options", [{}, {"sequential": True}])
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_starved_experts_are_noted_and_helped(opened, tiny_decoder, batches, inputs_of, method, options):
    job = opened(tiny_decoder("mixtral"), scheme=W4, method=method, options=options)
    stem = "model.layers.0.mlp.experts"
    experts = job.model.get_submodule(stem)
    assert isinstance(experts, Experts)
    experts.register_forward_pre_hook(unfair)
    stage = next(iter(job.stages(batches)))
    weights = {name: p.detach().clone() for name, p in experts.named_parameters()}
    fed = [observe(None, inputs_of(stage, f"{stem}.{i}.gate_proj"), gram=True) for i in (0, 1)]
    made = quantize_stage(job.model, stage, job.stage_plan())
    rows = {row.name.removeprefix(f"{stem}."): row for row in made.account if row.role == "expert"}
    assert {i: rows[f"{i}.gate_proj"].n_tokens for i in range(4)} == {0: 288, 1: 285, 2: 3, 3: 0}
    for name, row in rows.items():
        starved = name[0] in "23"
        policy = "rtn" if name.endswith("down_proj") else "lent"
        assert row.starved == (Starved(row.n_tokens, 32, policy) if starved else None)
    if method == "gptq" and not options:
        spec = SCHEMES[W4].weight
        codes = {name: made.layers[f"{stem}.{name}"].weight.codes_NK for name in rows}
        nearest = rtn(weights["3.down_proj.weight"], None, spec, RANGES["mse"]).qtensor
        assert torch.equal(codes["3.down_proj"], nearest.codes_NK)
        lent = gptq(weights["3.up_proj.weight"], merge(*fed), spec, RANGES[METHODS["gptq"].range]).qtensor
        agree = (codes["3.up_proj"] == lent.codes_NK).float().mean()
        plain = rtn(weights["3.up_proj.weight"], None, spec, RANGES["mse"]).qtensor
        assert agree > 0.99 > (codes["3.up_proj"] == plain.codes_NK).float().mean()


def test_static_inputs_need_tokens(opened, tiny_decoder, batches):
    job = opened(tiny_decoder("mixtral"), scheme="w8a8_static")
    job.model.get_submodule("model.layers.0.mlp.experts").register_forward_pre_hook(unfair)
    with pytest.raises(NumericsError, match=r"experts\.2\.down_proj: only 3 calibration tokens .* dynamic scheme"):
        job.quantize(batches)


def test_nan_in_one_batch_names_the_block(opened, tiny_decoder, batches, monkeypatch):
    calls = 0

    def poisoned(stats: Any, x_MK: Tensor, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3 * 4 + 2:  # block 1, its second input
            x_MK = x_MK.clone()
            x_MK[5, 7] = float("nan")
        return observe(stats, x_MK, **options)

    monkeypatch.setattr(observing, "observe", poisoned)
    with pytest.raises(NumericsError, match=r"block 1: .* 1 of 32 are NaN or infinite"):
        opened(tiny_decoder("llama"), scheme=W4, method="gptq").quantize(batches)


@pytest.mark.parametrize(("damping", "falls_back"), [(0.01, False), (1e-14, True)])
def test_equal_tokens_make_a_gram_matrix_of_rank_one(opened, tiny_decoder, damping, falls_back):
    """Damping makes it definite; where it cannot, the weight is rounded to nearest, and the account says so."""
    same = [{"input_ids": torch.full((4, 24), 7)} for _ in range(2)]
    job = opened(tiny_decoder("llama"), scheme=W4, method="gptq", options={"damping": damping})
    rows = [row for made in job.quantize(same, fast=False) for row in made.account]
    assert torch.isfinite(outputs(job.model)).all()
    assert len(rows) == 14
    for row in rows:
        assert row.gave_way_to == ("rtn" if falls_back else None)
        assert "calibrate on more tokens" in row.reason if falls_back else row.damping == damping


def test_methods_can_differ_between_linears(opened, tiny_decoder, batches):
    rules = [{"role": "ffn", "method": "rtn"}, {"match": "model.layers.1.*", "scheme": "w8a16"}]
    job = opened(tiny_decoder("llama"), scheme=W4, method="gptq", rules=rules)
    weights = {name: p.detach().clone() for name, p in job.model.named_parameters()}
    made = job.quantize(batches)
    layers = {name: layer for each in made for name, layer in each.layers.items()}
    rows = {row.name: row for each in made for row in each.account}
    for name, row in rows.items():
        scheme = SCHEMES["w8a16" if ".1." in name else W4]
        assert (row.scheme, row.method) == (scheme.name, "rtn" if "mlp" in name else "gptq")
        plain = rtn(weights[f"{name}.weight"], None, scheme.weight, RANGES["absmax"]).qtensor
        assert torch.equal(layers[name].weight.codes_NK, plain.codes_NK) == ("mlp" in name)


@pytest.mark.parametrize("change", [{"scheme": "w8a16"}, {"method": "awq"}])
def test_linears_that_share_an_input_share_scheme_and_method(opened, tiny_decoder, change):
    rule = {"match": "*q_proj"} | change
    with pytest.raises(RecipeError, match=r"q_proj \(.*\) and .*k_proj \(.*\) read the same input"):
        opened(tiny_decoder("llama"), scheme=W4, method="gptq", rules=[rule])


def test_stage_without_anything_to_quantize_costs_nothing(opened, tiny_decoder, batches, monkeypatch):
    rules = [{"match": "model.layers.0.*", "scheme": "16bit"}]
    job = opened(tiny_decoder("llama"), scheme=W4, method="gptq", rules=rules)
    observed: list[int] = []
    monkeypatch.setattr(observing, "observe", lambda *args, **options: observed.append(1) or observe(*args, **options))
    first, second, heads = job.quantize(batches)
    assert (first.layers, first.account) == (heads.layers, heads.account) == ({}, [])
    assert len(second.layers) == 7
    assert len(observed) == 3 * 4


def test_mismatch_is_what_rounding_changed_before(opened, tiny_decoder, batches, inputs_of):
    """At the first linears of the first block it is nothing; later it is the float model's inputs less those seen, also
    of linears behind others of the same block: these have made up for a part of it.
    """
    source, settings = tiny_decoder("llama"), {"scheme": W4, "method": "gptq"}
    untouched, job = opened(source), opened(source, **settings, options={"mismatch": 1.0})
    plain = opened(source, **settings, options={"sequential": True}).quantize(batches, fast=False)
    originals = untouched.stages(batches, fast=False)
    for stage, original, made in zip(job.stages(batches, fast=False), originals, plain, strict=True):
        name = f"model.layers.{stage.index}.self_attn.q_proj"
        if stage.blocks:
            sites = [site for site in stage.sites if site.name == name]
            found = stage.observe(sites, observe_beside, partial(stage.original_inputs, stage.sites))
            x, wanted = inputs_of(stage, name), inputs_of(original, name)
            assert torch.allclose(
                found[name].mismatch_KK, (wanted - x).T @ (x / x.square().sum(-1, keepdim=True)), rtol=1e-3, atol=1e-4
            )
            assert bool(found[name].mismatch_KK.any()) == (stage.index > 0)
        ours = quantize_stage(job.model, stage, job.stage_plan())
        for row in ours.account:
            moved = stage.index > 0 or not row.name.endswith(("q_proj", "k_proj", "v_proj"))
            assert (row.more["mismatch_moved"] > 0) == moved
            same = torch.equal(ours.layers[row.name].weight.codes_NK, made.layers[row.name].weight.codes_NK)
            assert same or moved


def test_the_last_hidden_states_come_nearer_to_the_float_models(opened, tiny_decoder, batches):
    """On the tokens that calibrate, and with all that is random in such a model."""
    source = tiny_decoder("llama", num_hidden_layers=4)
    *_, last = opened(source).stages(batches, fast=False)
    wanted = torch.cat(last.inputs)
    moved = {}
    for share in (0.0, 1.0):
        job = opened(source, scheme="w3a16_g32", method="gptq", options={"mismatch": share})
        plan = job.stage_plan()
        for stage in job.stages(batches, fast=False):
            quantize_stage(job.model, stage, plan)
        moved[share] = relative(torch.cat(stage.inputs), wanted)
    assert moved[1.0] < moved[0.0]


@pytest.mark.parametrize("options", [{}, {"sequential": True}, {"mismatch": 1.0}])
def test_loss_weights_count_in_rounding(opened, tiny_decoder, batches, options):
    """Equal weights change nothing; where only some tokens count, others are rounded worse."""
    settings = {"scheme": W4, "method": "gptq", "options": options}

    def made_with(weights: Any) -> dict[str, Tensor]:
        job = opened(tiny_decoder("llama"), **settings)
        plan = replace(job.stage_plan(), loss_weights=weights)
        made = [quantize_stage(job.model, stage, plan) for stage in job.stages(batches)]
        return {name: layer.weight.codes_NK for part in made for name, layer in part.layers.items()}

    names = [site.name for site in opened(tiny_decoder("llama"), **settings).sites]
    plain = made_with(None)
    equal = made_with(lambda index: {name: torch.ones(4, 24, 2) for name in names})
    some = made_with(lambda index: {name: (torch.arange(24) < 8).float().expand(4, 24)[..., None] for name in names})
    assert len(plain) == 14
    assert all(torch.equal(plain[name], equal[name]) for name in plain)
    assert not any(torch.equal(plain[name], some[name]) for name in plain)
