"""The decision engine: features that mean what they say, and choices that follow from them."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bitwright.calibration.observers import LayerStats, observe
from bitwright.errors import NumericsError
from bitwright.evaluate.output_errors import output_errors
from bitwright.families import Role
from bitwright.methods.gptq import gptq
from bitwright.methods.rtn import rtn
from bitwright.models.sites import LinearSite
from bitwright.numerics import RANGES
from bitwright.numerics.schemes import SCHEMES
from bitwright.recipe import AUTO, Recipe, Rule, check_rules, scheme_of
from bitwright.search import cost as costs
from bitwright.search.cost import Cost, Resources, calibration_cost
from bitwright.search.decide import THRESHOLDS, Decision, decide, tolerable_error, too_expensive
from bitwright.search.features import COMPARED, Features, Seen, candidates, measure
from bitwright.search.rules import with_method, with_methods

CHEAP = Cost(1000, 1e12, 10.0, 10**9)
ROOMY = Resources(10**10, 3600.0, 1e11)
_LINEARS: tuple[tuple[str, Role, str], ...] = (
    ("q", "qkv", "qkv"), ("k", "qkv", "qkv"), ("up", "ffn", "up"), ("down", "ffn", "down")
)  # fmt: skip
SITES = [
    LinearSite(f"layer.{block}.{name}", block, role, f"layer.{block}.{unit}")
    for block in range(3)
    for name, role, unit in _LINEARS
]
ONLY_HERE: dict[str, Any] = {"targets": ("bitwright",)}
AUTO_W8A8 = Recipe(method=AUTO, scheme="w8a8", **ONLY_HERE)


def features(unit: str, **expected: float) -> Features:
    """Features of a unit of SITES, its inputs without tails, by default with no gain from any method."""
    sites = tuple(site for site in SITES if site.unit == unit)
    errors = dict.fromkeys(candidates(SCHEMES["w8a8"]), 0.1) | expected
    return Features(
        unit, sites[0].role, sites[0].block, "w8a8", sites, 100, 8, 64, 2.0, 3.0, 2.0, 0.1, 0.01, errors, True
    )


def every_unit(**expected: float) -> list[Features]:
    return [features(unit, **expected) for unit in dict.fromkeys(site.unit for site in SITES)]


def decided(
    units: list[Features], recipe: Recipe = AUTO_W8A8, rtn_loss: float | None = 0.1, cost: Cost = CHEAP
) -> Decision:
    return decide(units, recipe, SITES, rtn_loss=rtn_loss, cost=cost, resources=ROOMY)


def methods(decision: Decision) -> dict[str, str]:
    return {site.name: scheme_of(decision.recipe, site)[1] for site in SITES}


def test_too_large_a_model_is_rounded_to_nearest_without_being_looked_at() -> None:
    slow, big = replace(CHEAP, seconds=3601.0), replace(CHEAP, memory_bytes=10**10)
    for cost, words in ((slow, "1.0 h"), (big, "10.0 GB")):
        decision = decided([], rtn_loss=None, cost=cost)
        assert set(methods(decision).values()) == {"rtn"}
        assert words.replace("1.0 h", "60 min") in decision.reason
        assert {row.method for row in decision.rejected} == set(candidates(SCHEMES["w8a8"])) - {"rtn"}
        assert all(row.why == decision.rejected[0].why for row in decision.rejected)
    assert too_expensive(replace(CHEAP, memory_bytes=int(THRESHOLDS.memory_share * 10**10)), ROOMY) == ""


def test_a_robust_model_is_rounded_to_nearest_whatever_could_be_gained() -> None:
    enough = THRESHOLDS.robust_share * AUTO_W8A8.budget.max_loss
    units = every_unit(gptq=0.001)
    assert set(methods(decided(units, rtn_loss=enough)).values()) == {"rtn"}
    assert set(methods(decided(units, rtn_loss=enough * 1.1)).values()) == {"gptq"}


def test_the_least_error_wins_unless_less_work_does_as_well() -> None:
    smoothing = every_unit(smoothquant=0.05, gptq=0.09, smoothquant_gptq=0.03)
    assert set(methods(decided(smoothing)).values()) == {"smoothquant_gptq"}
    nearly = every_unit(smoothquant=0.0305, gptq=0.09, smoothquant_gptq=0.03)
    assert set(methods(decided(nearly)).values()) == {"smoothquant"}
    assert set(methods(decided(every_unit())).values()) == {"rtn"}  # nothing gains anything


def test_units_that_move_less_than_is_tolerable_are_left_alone() -> None:
    loud, quiet = features("layer.0.qkv", rtn=0.2, gptq=0.05), features("layer.1.qkv", rtn=0.02, gptq=0.001)
    decision = decided([loud, quiet], rtn_loss=0.0101)
    tolerable = tolerable_error([loud, quiet], 0.0101, 0.01)
    assert 0.02 < tolerable < 0.1
    assert [choice.method for choice in decision.choices] == ["gptq", "rtn"]
    assert "robust" in decision.choices[1].reason


def test_what_is_tolerable_uses_up_its_share_of_the_budget() -> None:
    """If loss grows with the mean squared error, units that all move that far lose that share."""
    units = [features("layer.0.qkv", rtn=0.3), features("layer.0.up", rtn=0.1)]
    mean_square = (0.3**2 + 0.1**2) / 2
    loss_at_tolerable = 0.04 * tolerable_error(units, 0.04, 0.01) ** 2 / mean_square
    assert loss_at_tolerable == pytest.approx(THRESHOLDS.unit_share * 0.01)
    assert tolerable_error(units, 0.0, 0.01) == math.inf


def test_a_transform_that_does_not_fold_is_for_targets_that_apply_it() -> None:
    units = [replace(unit, foldable=unit.role == "qkv") for unit in every_unit(smoothquant=0.01, gptq=0.05)]
    portable = decided(units, AUTO_W8A8.model_copy(update={"targets": ("bitwright", "vllm")}))
    assert {site.role: methods(portable)[site.name] for site in SITES} == {"qkv": "smoothquant", "ffn": "gptq"}
    assert set(methods(decided(units)).values()) == {"smoothquant"}
    barred = decided([u for u in units if u.role == "ffn"], AUTO_W8A8.model_copy(update={"targets": ("vllm",)}))
    assert any(row.method == "smoothquant" and "6 of 6 groups" in row.why for row in barred.rejected)


def test_what_was_rejected_is_everything_else_with_its_number() -> None:
    decision = decided(every_unit(gptq=0.04, smoothquant=0.07))
    assert [row.method for row in decision.rejected] == ["rtn", "smoothquant", "smoothquant_gptq", "awq"]
    assert "the expected error is 7 %, and 4 % with the chosen methods" in {row.why for row in decision.rejected}


def test_a_method_that_the_recipe_names_stays() -> None:
    rules = (Rule(match="layer.0.*", method="awq"), Rule(role="ffn", scheme="w4a16", method=AUTO))
    recipe = Recipe(method="smoothquant", rules=rules, **ONLY_HERE)
    open_sites = [site for site in SITES if scheme_of(recipe, site)[1] == AUTO]
    assert {site.role for site in open_sites} == {"ffn"}
    units = [features(unit, gptq=0.01) for unit in dict.fromkeys(site.unit for site in open_sites)]
    decision = decided(units, recipe)
    for site in SITES:
        was, now = scheme_of(recipe, site), scheme_of(decision.recipe, site)
        assert now[0] == was[0]
        assert now[1] == ("gptq" if was[1] == AUTO else was[1])
    assert decision.overruled == len(SITES) - len(open_sites)


def test_few_rules_say_what_many_linears_get() -> None:
    wanted = {site.name: ("gptq" if site.name.endswith("down") else "rtn", "why") for site in SITES}
    recipe = with_methods(AUTO_W8A8, wanted, SITES)
    assert [(rule.match, rule.method) for rule in recipe.rules] == [("layer.*.down", "gptq")]
    wanted = {site.name: ("gptq" if site.role == "qkv" else "rtn", "why") for site in SITES}
    (rule,) = with_methods(AUTO_W8A8, wanted, SITES).rules
    assert (rule.match, rule.role, rule.method) in {(None, "qkv", "gptq"), (None, "ffn", "rtn")}


def test_rules_give_every_linear_what_was_wanted() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        drawn = torch.randint(3, (len(SITES),), generator=generator).tolist()
        wanted = {site.name: (COMPARED[index], f"{index}") for site, index in zip(SITES, drawn, strict=True)}
        recipe = with_methods(AUTO_W8A8, wanted, SITES)
        check_rules(recipe, SITES)
        assert {site.name: scheme_of(recipe, site)[1] for site in SITES} == {n: m for n, (m, _) in wanted.items()}


def test_with_method_leaves_nothing_open() -> None:
    recipe = with_method(
        Recipe(method=AUTO, rules=(Rule(role="ffn", method=AUTO), Rule(role="qkv", method="awq"))), "rtn"
    )
    assert {scheme_of(recipe, site)[1] for site in SITES} == {"rtn", "awq"}


def test_cost_grows_with_tokens_and_shrinks_with_speed() -> None:
    tensors = [costs.Tensor(96, 32, 0), costs.Tensor(32, 64, 0), costs.Tensor(96, 32, 1)]

    def cost(tokens: int, speed: float = 1e9) -> Cost:
        return calibration_cost(tensors, n_tokens=tokens, hidden=32, resident_bytes=7, flops_per_second=speed)

    per_token = sum((2 * t.n * costs.FORWARDS + t.k) * t.k for t in tensors)
    assert cost(300).flops - cost(200).flops == 100 * per_token
    assert cost(300, 2e9).seconds == cost(300).seconds / 2
    assert cost(300).memory_bytes - cost(200).memory_bytes == 4 * 2 * 100 * 32
    largest = 2 * (96 * 32 + 32 * 64) + 32**2 + 64**2  # block 0: weights twice, and its Gram matrices
    assert cost(0).memory_bytes == 4 * largest + 7


def test_an_expert_costs_its_share_of_the_tokens() -> None:
    whole = calibration_cost([costs.Tensor(8, 8, 0)], n_tokens=100, hidden=8, resident_bytes=0, flops_per_second=1.0)
    part = calibration_cost(
        [costs.Tensor(8, 8, 0, 0.25)], n_tokens=25 * 4, hidden=8, resident_bytes=0, flops_per_second=1.0
    )
    fixed = calibration_cost([costs.Tensor(8, 8, 0)], n_tokens=0, hidden=8, resident_bytes=0, flops_per_second=1.0)
    assert part.flops - fixed.flops == (whole.flops - fixed.flops) / 4


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    """Correlated inputs of 64 features, two of them thirty times as large."""
    generator = torch.Generator().manual_seed(0)
    x_MK = torch.randn(600, 16, generator=generator) @ torch.randn(16, 64, generator=generator)
    x_MK = x_MK + 0.5 * torch.randn(600, 64, generator=generator)
    x_MK[:, :2] *= 30
    return x_MK


@pytest.fixture(scope="module")
def weight() -> Tensor:
    return torch.randn(48, 64, generator=torch.Generator().manual_seed(1))


def seen(x_MK: Tensor, weight: Tensor) -> Seen:
    return Seen(observe(None, x_MK, gram=True), [weight], True)


def measured(x_MK: Tensor, weight: Tensor, scheme: str) -> Features:
    return measure("layer.0.up", SITES[2:3], scheme, weight.numel(), [seen(x_MK, weight)], alpha=0.5)


def test_tails_are_those_of_the_inputs(weight: Tensor) -> None:
    normal = torch.randn(4000, 64, generator=torch.Generator().manual_seed(2))
    plain = measured(normal, weight, "w8a8")
    assert plain.kurtosis == pytest.approx(3.0, abs=0.1)
    assert plain.tail == pytest.approx(float(normal.abs().max() / normal.abs().flatten().quantile(0.999)), rel=0.01)
    long = normal.clone()
    long[:, 5] *= 20
    outlying = measured(long, weight, "w8a8")
    absmax = long.abs().amax(0)
    assert outlying.channel_ratio == pytest.approx(float(absmax.max() / absmax.median()))
    assert outlying.kurtosis > 10 * plain.kurtosis


def test_rounding_errors_are_what_rounding_leaves(inputs: Tensor, weight: Tensor) -> None:
    """Of rtn exactly, since all rows are measured; of gptq to the tenth that equal rounding errors leave open."""
    found, spec = measured(inputs, weight, "w4a16"), SCHEMES["w4a16_g64"].weight
    assert spec is not None
    stats = observe(None, inputs, gram=True)
    nearest = output_errors(weight, rtn(weight, None, spec, RANGES["absmax"]).qtensor.dequantize(), stats)["error"]
    assert found.expected["rtn"] == pytest.approx(nearest, rel=1e-5)
    assert found.error_int4 == pytest.approx(nearest, rel=1e-5)
    solved = output_errors(weight, gptq(weight, stats, spec, RANGES["mse"]).qtensor.dequantize(), stats)["error"]
    assert found.expected["gptq"] == pytest.approx(solved, rel=0.25)
    assert found.error_int8 < found.error_int4 / 10


def test_expected_input_error_is_what_rounding_inputs_leaves(inputs: Tensor, weight: Tensor) -> None:
    found, spec = measured(inputs, weight, "w8a8"), SCHEMES["w8a8"].input
    assert spec is not None
    scale, zero = RANGES["min_max"](inputs, spec)
    assert zero is not None
    codes = (inputs / scale + zero).round().clamp(-128, 127)
    moved = (inputs - (codes - zero) * scale) @ weight.T
    only_inputs = float((moved.square().sum() / (inputs @ weight.T).square().sum()).sqrt())
    assert found.expected["rtn"] == pytest.approx(math.hypot(only_inputs, found.error_int8), rel=0.25)


def test_outliers_ask_for_smoothing_and_low_bits_for_compensation(inputs: Tensor, weight: Tensor) -> None:
    int8 = measured(inputs, weight / torch.where(torch.arange(64) < 2, 30.0, 1.0), "w8a8")
    assert int8.expected["smoothquant"] < 0.5 * int8.expected["rtn"]
    int4 = measured(inputs, weight, "w4a16")
    assert int4.expected["gptq"] < int4.expected["rtn"]
    assert "smoothquant" not in int4.expected
    assert "awq" not in int8.expected


def test_uncorrelated_inputs_leave_nothing_to_compensate(weight: Tensor) -> None:
    stats = observe(None, torch.eye(64), gram=True)
    found = measure("layer.0.up", SITES[2:3], "w4a16", weight.numel(), [Seen(stats, [weight], True)], alpha=None)
    plain = measure_with_range(weight, stats)
    assert found.expected["gptq"] == pytest.approx(plain, rel=1e-5)


def measure_with_range(weight: Tensor, stats: LayerStats) -> float:
    """The error of rounding to nearest in the range that gptq takes."""
    spec = SCHEMES["w4a16_g64"].weight
    assert spec is not None
    rounded = rtn(weight, stats, spec, RANGES["mse"]).qtensor.dequantize()
    return output_errors(weight, rounded, stats)["error"]


def test_a_unit_that_nothing_reached_is_refused(weight: Tensor) -> None:
    with pytest.raises(NumericsError, match=r"layer\.0\.up: no token of the sample reached these linears"):
        measure("layer.0.up", SITES[2:3], "w8a8", weight.numel(), [], alpha=None)


def test_inputs_of_zeros_have_no_error_and_no_tail(weight: Tensor) -> None:
    found = measured(torch.zeros(8, 64), weight, "w8a8")
    assert set(found.expected.values()) == {0.0}
    assert (found.tail, found.channel_ratio) == (1.0, 0.0)
