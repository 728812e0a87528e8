"""A unit that the scheme destroys is found, is all that gets more bits, and the budget holds on held-out data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitwright.pipeline import analyze, quantize
from bitwright.recipe import Recipe, make_recipe

pytestmark = pytest.mark.usefixtures("unverified")

SAMPLES = 32
PROSE = "builtin#documentation"  # one kind of text: the thresholds here are for a loss on it
FFN = "model.layers.1.mlp"
BAD = "encoder.layer.1.intermediate.dense"


@pytest.fixture(scope="module")
def bad_decoder(trained_decoder: Path, planted: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("bad") / "decoder"
    readers = [f"{FFN}.gate_proj", f"{FFN}.up_proj"]
    return planted(trained_decoder, to, "model.layers.1.post_attention_layernorm", readers, (5, 40), 200)


@pytest.fixture(scope="module")
def bad_encoder(
    tiny_model: Callable[..., Path], planted: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    to = tmp_path_factory.mktemp("bad") / "encoder"
    return planted(tiny_model("bert"), to, "encoder.layer.1.attention.output.LayerNorm", [BAD], [0], 100)


def recipe_of(scheme: str, method: str, max_loss: float) -> Recipe:
    """Ranges that take every weight in: clipped ones would give up the planted weights, and save the others."""
    settings = {"scheme": scheme, "method": method, "weight_range": "absmax", "targets": ["bitwright"]}
    calibration = {"samples": 16, "max_tokens": 64, "batch_size": 8}
    return make_recipe(settings | {"budget": {"max_loss": max_loss}, "calibration": calibration})


def kept_of(record: dict[str, Any]) -> dict[str, str]:
    """The linears that fell back, and the scheme that they have instead."""
    fallen = {row["name"] for row in record["layers"] if row["fallback"]}
    return {row["name"]: row["scheme"] for row in record["plan"] if row["name"] in fallen}


@pytest.mark.parametrize("method", ["rtn", "imatrix"])  # without errors from quantizing, and with them
def test_bad_gate_and_up_of_a_decoder_fall_back_together_and_alone(
    bad_decoder: Path, trained_decoder: Path, tmp_path: Path, method: str
) -> None:
    recipe = recipe_of("w4a16_g32", method, 0.005)
    result = quantize(bad_decoder, out=tmp_path / "out", recipe=recipe, data=PROSE, samples=SAMPLES, speed=False)
    assert kept_of(result.record) == {f"{FFN}.gate_proj": "w8a16", f"{FFN}.up_proj": "w8a16"}
    assert result.record["steps"][0]["loss"] > 0.01  # with everything quantized
    assert result.record["evaluation"]["verdict"] == "met"
    assert result.record["evaluation"]["loss_upper"] <= 0.005
    if method == "rtn":
        good = quantize(trained_decoder, out=tmp_path / "good", recipe=recipe, data=PROSE, samples=SAMPLES, speed=False)
        assert kept_of(good.record) == {}
        assert good.record["evaluation"]["verdict"] == "met"


def test_bad_unit_of_a_decoder_ranks_first_by_error_and_by_fisher(bad_decoder: Path) -> None:
    found = analyze(bad_decoder, recipe=recipe_of("w4a16_g32", "rtn", 0.005), data=PROSE, samples=SAMPLES, fisher=True)
    assert {row["name"] for row in found["layers"][:2]} == {f"{FFN}.gate_proj", f"{FFN}.up_proj"}
    assert found["layers"][0]["error"] > 3 * found["layers"][2]["error"]
    assert found["fisher"][0]["name"] == found["layers"][0]["unit"]
    assert found["fisher"][0]["fisher"] > 3 * found["fisher"][1]["fisher"]


def test_bad_ffn_of_an_encoder_ranks_first(bad_encoder: Path) -> None:
    recipe = make_recipe({"targets": ["bitwright"], "budget": {"max_loss": 0.5}})
    assert analyze(bad_encoder, recipe=recipe, samples=100, data=PROSE)["rows"][0]["name"] == BAD


@pytest.mark.parametrize(("scheme", "max_loss", "instead"), [("w8a8", 0.004, "16bit"), ("w4a16_g32", 0.08, "w8a8")])
def test_bad_ffn_of_an_encoder_is_the_only_fallback(
    bad_encoder: Path, tmp_path: Path, scheme: str, max_loss: float, instead: str
) -> None:
    name, recipe = BAD, recipe_of(scheme, "rtn", max_loss)
    result = quantize(
        bad_encoder, out=tmp_path / "out", recipe=recipe, data=PROSE, samples=200, speed=False, sensitivity=False
    )
    assert kept_of(result.record) == {name: instead}
    linears = [row for row in result.record["plan"] if row["role"] not in ("embedding", "head")]
    assert [row["name"] for row in linears if row["scheme"] == instead] == [name]
    assert result.record["evaluation"]["verdict"] == "met"
    assert [step["units"] for step in result.record["steps"]] == [[], [name]]
    assert [step["n_fallback"] for step in result.record["steps"]] == [0, 1]
    assert result.record["steps"][0]["loss"] > max_loss
    units = result.record["sensitivity"]["units"]  # what the search needed, and no more
    assert units[0]["name"] == name
    assert not result.record["sensitivity"].get("rows")
    assert 0 < sum(row.get("emd") is not None for row in units) < len(units)
    assert all(row["estimate"] is not None for row in units)
    assert "to first order, from gradients" in (result.directory / "report.html").read_text()
