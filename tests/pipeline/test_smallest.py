"""`goal: smallest`: 4, 8 or 16 bits for each unit, inside the budget, and what is refused before the work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitwright.errors import InputError, RecipeError, TargetError
from bitwright.models.load import open_directory
from bitwright.models.tensor_files import TensorFiles
from bitwright.pipeline import measuring, preview, quantize
from bitwright.pipeline.job import Job, open_job
from bitwright.pipeline.measuring import distances
from bitwright.pipeline.request import Texts
from bitwright.pipeline.smallest import job_ladders
from bitwright.pipeline.variants import quantize_model, with_finer
from bitwright.progress import Quiet
from bitwright.recipe import FLOAT, Recipe, make_recipe, read_recipe
from bitwright.search.journal import Journal
from bitwright.search.ladder import Move, moved

pytestmark = pytest.mark.usefixtures("unverified")

CALIBRATION = {"samples": 16, "max_tokens": 32, "batch_size": 8}
RECIPE = {"calibration": CALIBRATION, "budget": {"goal": "smallest"}}
PROSE = "builtin#documentation"  # one kind of text: LOSS is for that
QUICK: dict[str, Any] = {"data": PROSE, "samples": 120, "speed": False, "sensitivity": False}
LOSS = 0.03  # the tiny models of random weights lose more by 4 bits, and less by 8


def linears(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in record["plan"] if row["role"] not in ("embedding", "attention")]


def written_bytes(directory: Path, names: list[str]) -> int:
    """What the tensors of these linears take in the files."""
    files = TensorFiles(open_directory(directory))
    return sum(
        files[tensor].numel() * files[tensor].element_size()
        for tensor in files
        for name in names
        if tensor.rpartition(".")[0] == name
    )


def check(record: dict[str, Any], out: Path) -> None:
    """The outcome is what the goal promises, as it was predicted."""
    rows = linears(record)
    assert record["evaluation"]["verdict"] == "met"
    assert record["smallest"]["bytes"] == sum(row["bytes_after"] for row in rows)
    assert record["smallest"]["bytes"] == written_bytes(out, [row["name"] for row in rows])
    assert record["smallest"]["bytes"] < record["smallest"]["int8_bytes"]
    assert record["recipe"]["budget"]["goal"] is None
    (chosen,) = [step for step in record["steps"] if step["chosen"]]
    by_unit = dict(zip(chosen["units"], chosen["schemes"], strict=True))
    assert {row["unit"]: row["scheme"] for row in rows if row["unit"] in by_unit} == by_unit


def test_the_smallest_encoder_is_inside_the_budget_and_weighs_what_the_plan_says(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    result = quantize(
        tiny_model("bert"), out=tmp_path / "out", recipe=make_recipe(RECIPE), max_loss=LOSS, goal="smallest", **QUICK
    )
    check(result.record, tmp_path / "out")
    schemes = {row["scheme"] for row in linears(result.record) if row["block"] is not None}
    assert schemes == {"w4a16_g32", "w8a8"}
    assert {row["scheme"] for row in result.record["layers"]} == {"w4a16_g32"}  # what they were calibrated as
    again = read_recipe(tmp_path / "out" / "recipe.yaml")
    assert {row.name: row.scheme for row in open_job(tiny_model("bert"), again, Texts(samples=40)).plan} == {
        row["name"]: row["scheme"] for row in result.record["plan"]
    }
    assert "fewer bytes than in INT8" in (tmp_path / "out" / "report.html").read_text()


def test_the_smallest_decoder_keeps_float_inputs(trained_decoder: Path, tmp_path: Path) -> None:
    recipe = make_recipe(RECIPE | {"targets": ["bitwright"]})
    result = quantize(trained_decoder, out=tmp_path / "out", recipe=recipe, max_loss=0.01, **QUICK | {"samples": 32})
    check(result.record, tmp_path / "out")
    schemes = {row["scheme"] for row in linears(result.record) if row["block"] is not None}
    assert schemes <= {"w4a16_g64", "w4a16_g128", "w8a16", FLOAT}
    assert len(schemes) > 1


@pytest.fixture
def job(tiny_model: Callable[..., Path]) -> Job:
    return open_job(tiny_model("bert"), make_recipe(RECIPE), Texts((PROSE,), samples=60))


def test_more_bits_come_nearer_whatever_was_folded(job: Job, tmp_path: Path) -> None:
    """Scales that AWQ gave to some inputs fit linears of 4 bits; of those with more bits the weights do without, or
    have them folded in."""
    climbs = job_ladders(job)
    quantized = with_finer(job, quantize_model(job, tmp_path, Quiet()), climbs)
    assert any(layer.form.scales_input for layer in quantized.layers.values())
    probe = distances(job, quantized, Journal(None, ""), tmp_path, Quiet())
    four = probe(job.recipe)
    eight, sixteen = (
        probe(moved(job.recipe, tuple(Move(unit, climbs[unit][rung]) for unit in climbs), "")) for rung in (0, 1)
    )
    assert sixteen.distance < 1e-4
    assert eight.distance < four.distance / 10
    for unit, schemes in climbs.items():
        for scheme in schemes:
            assert probe(moved(job.recipe, (Move(unit, scheme),), "")).distance < 1.1 * four.distance
    assert four.bytes_ < eight.bytes_ < sixteen.bytes_


def test_a_search_that_was_killed_goes_on_with_what_it_measured(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> dict[str, Any]:
        options = QUICK | {"recipe": make_recipe(RECIPE), "max_loss": LOSS}
        return quantize(tiny_model("bert"), out=tmp_path / "out", **options).record

    write, made = measuring.write_variant, []

    def killing(*args: Any) -> Any:
        made.append(args)
        if len(made) == 8:
            raise KeyboardInterrupt
        return write(*args)

    monkeypatch.setattr(measuring, "write_variant", killing)
    with pytest.raises(KeyboardInterrupt):
        start()
    resumed = start()
    n_resumed = len(made) - 8
    assert any("7 measurements were taken by an earlier run" in text for text in resumed["warnings"])
    made.clear()
    monkeypatch.setattr(measuring, "write_variant", lambda *args: made.append(args) or write(*args))
    whole = quantize(
        tiny_model("bert"), out=tmp_path / "whole", recipe=make_recipe(RECIPE), max_loss=LOSS, **QUICK
    ).record
    assert len(made) == n_resumed + 7
    assert (resumed["plan"], resumed["steps"]) == (whole["plan"], whole["steps"])


def test_where_a_target_reads_one_scheme_only_16_bit_is_the_next_step(tiny_model: Callable[..., Path]) -> None:
    recipe = make_recipe({"scheme": "w4a16_g32", "targets": ["sentence-transformers"]})
    job = open_job(tiny_model("bert"), recipe, Texts(samples=40))
    assert set(job_ladders(job).values()) == {(FLOAT,)}
    assert "back to 16 bit directly" in job.warnings[-1]
    asked = make_recipe(RECIPE | {"targets": ["sentence-transformers"], "method": "gptq"})
    with pytest.raises(TargetError, match=r"goal: smallest mixes .* sentence-transformers cannot read"):
        job_ladders(open_job(tiny_model("bert"), asked, Texts(samples=40)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recipe": Recipe(scheme="w8a8")}, "names w8a8"),
        ({"recipe": "encoder-int4"}, "names w4a16_g32"),
        ({"min_speedup": 2.0}, "min_speedup = 2"),
        ({"judged": False}, "does not judge"),
        ({"goal": "fastest"}, "goal = 'fastest'"),
    ],
)
def test_what_a_goal_cannot_go_with_is_refused_before_the_model_is_opened(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises((InputError, RecipeError), match=said):
        quantize(tmp_path / "no model", out=tmp_path / "out", **{"goal": "smallest"} | options)


def test_a_preview_shows_where_the_search_begins(tiny_model: Callable[..., Path]) -> None:
    shown = preview(tiny_model("bert"), recipe=make_recipe(RECIPE), texts=Texts(samples=40))
    assert {row.scheme for row in shown["plan"] if row.is_linear and row.role != "head"} == {"w4a16_g32"}
    assert "then gives some layers more bits" in shown["warnings"][0]
