"""A run decides by measuring in which blocks attention is computed in int8, and says what that costs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import bitwright.search.attention
from bitwright.checkpoints.attention import ATTENTION_KEY
from bitwright.errors import RecipeError
from bitwright.kernels import dispatch
from bitwright.pipeline import Texts, preview, quantize
from bitwright.pipeline.job import open_job
from bitwright.pipeline.judging import Judged
from bitwright.recipe import make_recipe, read_recipe
from bitwright.record import read_record
from bitwright.runtime.load import load

pytestmark = pytest.mark.skipif(not dispatch.available(), reason="the native kernels are not built")
TinyModel = Callable[..., Path]
QUICK: dict[str, Any] = {"samples": 60, "speed": False, "max_loss": 0.5}


def recipe(**said: Any) -> Any:
    return make_recipe({"targets": ["bitwright"]} | said)


def rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in record["plan"] if row["role"] == "attention"]


def stored(out: Path) -> Any:
    return json.loads((out / "config.json").read_text()).get(ATTENTION_KEY)


def test_it_is_measured_checked_and_told(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bitwright.search.attention, "MAX_ADDED", 1.0)
    result = quantize(tiny_model("bert"), out=tmp_path / "out", recipe=recipe(), **QUICK)
    record, cost = result.record, result.record["attention"]
    assert result.exit_code == 0
    assert stored(tmp_path / "out") == {"int8": [0, 1]}
    assert load(tmp_path / "out").backend.endswith("int8 attention")
    assert cost["loss"] == cost["loss_int8"] != cost["loss_float"] == record["steps"][0]["loss"]
    assert all(
        f"it adds {100 * (cost['loss'] - cost['loss_float']):.2f} points" in row["reason"] for row in rows(record)
    )
    (check,) = record["verify"]
    assert check["checks"]["attention_distance"] <= check["checks"]["attention_distance_allowed"]
    assert "int8 attention adds no more" in check["detail"]
    assert "8 bit in 2 of 2 blocks" in (tmp_path / "out" / "README.md").read_text()
    assert "8 bit in 2 of 2 blocks" in (tmp_path / "out" / "report.html").read_text()
    assert read_record(tmp_path / "out").attention == result.measured.attention


@pytest.fixture(scope="module")
def outliers(once: Callable[..., Path], tiny_model: TinyModel) -> Path:
    """A BERT, the same function, whose first block has a dimension of large queries and small keys in each head: the
    codes of a query have nothing left for the others."""

    def write(path: Path) -> None:
        shutil.copytree(tiny_model("bert"), path)
        tensors = load_file(path / "model.safetensors")
        for part, factor in (("query", 1000.0), ("key", 0.001)):
            for name in (f"encoder.layer.0.attention.self.{part}.{kind}" for kind in ("weight", "bias")):
                tensors[name][[0, 16]] *= factor
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})

    return once("outliers in queries", write)


def test_blocks_that_cost_too_much_are_computed_in_float(
    outliers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the recipe of the result makes the same plan again."""
    monkeypatch.setattr(bitwright.search.attention, "MAX_ADDED", 0.02)  # so few texts tell no less apart
    result = quantize(outliers, out=tmp_path / "out", recipe=recipe(), **QUICK)
    assert result.exit_code == 0
    assert stored(tmp_path / "out") == {"int8": [1]}
    assert load(tmp_path / "out").backend.endswith("int8 attention in 1 of 2 layers")
    first, second = rows(result.record)
    assert (first["scheme"], second["scheme"]) == ("float", "int8")
    assert "and 2.00 are allowed; this block alone" in first["reason"]
    cost = result.record["attention"]
    assert cost["loss_int8"] - cost["loss_float"] > 0.1
    assert cost["loss"] - cost["loss_float"] < 0.02
    assert [row["name"] for row in cost["rows"]] == [first["name"], second["name"]]
    assert [step["n_fallback"] for step in result.record["steps"]] == [0]  # no linear pays for it
    again = read_recipe(tmp_path / "out" / "recipe.yaml")
    plan = open_job(outliers, again, Texts(samples=60)).plan
    assert [row.scheme for row in plan if row.is_attention] == ["float", "int8"]


def test_a_killed_run_does_not_measure_it_again(
    outliers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bitwright.pipeline.run.judge_result", killed)
        with pytest.raises(KeyboardInterrupt):
            quantize(outliers, out=tmp_path / "out", recipe=recipe(), **QUICK)
    monkeypatch.setattr("bitwright.pipeline.measuring.run_task", killed)
    monkeypatch.setattr("bitwright.pipeline.run.judge_result", lambda *args, **options: Judged())
    record = quantize(outliers, out=tmp_path / "out", recipe=recipe(), **QUICK).record
    assert record["attention"]["loss_int8"] > 0.1
    assert rows(record)[0]["scheme"] == "float"


def test_what_the_recipe_asks_for_is_kept_and_its_cost_is_told(tiny_model: TinyModel, tmp_path: Path) -> None:
    result = quantize(
        tiny_model("bert"), out=tmp_path / "out", recipe=recipe(attention="int8", scheme="w8a16"), **QUICK
    )
    assert result.exit_code == 0
    assert stored(tmp_path / "out") == {"int8": [0, 1]}
    assert result.record["attention"]["rows"] == []
    assert "points of loss" in rows(result.record)[0]["reason"]
    assert result.record["recipe"]["attention"] == "int8"


def test_a_run_that_does_not_judge_has_int8_attention_only_if_asked(tiny_model: TinyModel, tmp_path: Path) -> None:
    def run(out: str, **settings: Any) -> Any:
        return quantize(tiny_model("bert"), out=tmp_path / out, recipe=recipe(**settings), samples=60, judged=False)

    assert "attention" not in run("auto").record
    assert stored(tmp_path / "auto") is None
    assert rows(run("again").record)[0]["reason"] == "what 8 bits cost was not measured"
    run("int8", attention="int8")
    assert stored(tmp_path / "int8") == {"int8": [0, 1]}


def test_a_model_that_the_engine_does_not_run_has_float_attention(tiny_model: TinyModel, tmp_path: Path) -> None:
    source = tiny_model("bert", hidden_act="quick_gelu")
    result = quantize(source, out=tmp_path / "out", recipe=recipe(), **QUICK)
    assert stored(tmp_path / "out") is None
    assert {row["scheme"] for row in rows(result.record)} == {"float"}
    assert "the engine does not run this model: the engine has no operator" in rows(result.record)[0]["reason"]
    with pytest.raises(
        RecipeError, match=r"attention: int8 needs Bitwright's engine, but .*'quick_gelu'.*auto or float"
    ):
        preview(source, recipe=recipe(attention="int8"), texts=Texts(samples=60))


def test_nothing_quantized_is_refused_before_the_work(tiny_model: TinyModel, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no linear is quantized"):
        quantize(tiny_model("bert"), out=tmp_path / "out", recipe=recipe(attention="int8", scheme="16bit"), **QUICK)
    assert not (tmp_path / "out").exists()
