"""`polish` in a recipe: scales and norms learn from the float model, the codes stay, and nothing gets worse."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bitwright.errors import DataError, RecipeError
from bitwright.pipeline import polishing, quantize
from bitwright.progress import Quiet
from bitwright.recipe import make_recipe, recipe_yaml
from bitwright.training import polish

POLISH = {"tokens": 1440, "epochs": 2, "learning_rate": 0.004}
RECIPE = {
    "scheme": "w3a16_g32", "targets": ["bitwright"], "budget": {"max_loss": 0.9}, "seed": 3,
    "calibration": {"samples": 16, "max_tokens": 48},
}  # fmt: skip
ENCODER = {"scheme": "w4a16_channel", "targets": ["bitwright"], "budget": {"max_loss": 0.9}, "attention": "float"}


def run(model: Path, out: Path, recipe: dict[str, Any], **options: Any) -> Any:
    defaults: dict[str, Any] = {"samples": 16, "judged": False}
    return quantize(model, out=out, recipe=make_recipe(recipe), **(defaults | options))


def weights(out: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(out / "model.safetensors"))


@pytest.fixture(scope="module")
def source(trained_decoder: Path) -> Path:
    return trained_decoder


@pytest.fixture(scope="module")
def results(source: Path, prose: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(without, with) polishing."""
    folder = tmp_path_factory.mktemp("results")
    plain = run(source, folder / "plain", RECIPE, data=prose)
    return plain, run(source, folder / "polished", RECIPE | {"polish": POLISH}, data=prose)


def test_only_scales_and_norms_change(results: Any) -> None:
    before, after = (weights(result.directory) for result in results)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.rpartition(".")[2] for name in changed} == {"weight_scale", "weight"}
    assert all("norm" in name for name in changed if name.endswith(".weight"))
    assert sum(name.endswith("weight_scale") for name in changed) == 3 * 7
    assert "model.norm.weight" in changed


def test_the_loss_goes_down_and_the_record_says_so(results: Any) -> None:
    plain, polished = results
    assert plain.measured.polish is None
    told = polished.record["polish"]
    points = told["points"]
    assert points[0]["step"] == 0
    assert min(point["held_out"] for point in points) < 0.95 * points[0]["held_out"]
    assert told["kept"]
    assert told["best"] > 0
    assert told["tokens"] == 1440
    assert "weights" not in told
    assert polished.record["recipe"]["polish"]["tokens"] == 1440
    assert "improve" in polished.record["timings_s"]


def test_a_judged_result_is_compared_on_tuning_texts(source: Path, prose: str, tmp_path: Path) -> None:
    result = run(
        source, tmp_path / "out", RECIPE | {"polish": POLISH}, data=prose, judged=True, speed=False, samples=32
    )
    told = result.measured.polish
    before, after = told.before, told.after
    assert told.best > 0
    assert after != before
    assert told.kept == (after <= before)
    assert (result.record["recipe"]["polish"] is None) != told.kept
    assert (result.directory / "report.html").read_text(encoding="utf-8").count("Polishing")


def test_what_is_worse_on_tuning_texts_is_not_kept(
    source: Path, prose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training that is told the opposite: its result is taken back, and the weights are those without polishing."""
    best = polish.train

    def wrong(parameters: Any, units: Any, backward: Any, held_out: Any, *others: Any) -> Any:
        def away(batch: Any) -> float:
            loss = backward(batch)
            for parameter in parameters.values():
                parameter.grad.neg_()
            return float(loss)

        return best(parameters, units, away, lambda: -float(held_out()), *others)

    monkeypatch.setattr(polishing, "train", wrong)
    options: dict[str, Any] = {"data": prose, "judged": True, "speed": False, "samples": 32}
    result = run(source, tmp_path / "out", RECIPE | {"polish": POLISH}, **options)
    plain = run(source, tmp_path / "plain", RECIPE, data=prose)
    assert not result.measured.polish.kept
    assert result.measured.polish.before < result.measured.polish.after
    assert result.record["recipe"]["polish"] is None
    scales = [name for name in weights(plain.directory) if name.endswith("weight_scale")]
    assert all(torch.equal(weights(plain.directory)[name], weights(result.directory)[name]) for name in scales)


class _Killed(Exception):
    pass


@pytest.mark.parametrize("at", [3, 40])
def test_a_killed_run_ends_in_the_same_bytes(
    results: Any, source: Path, prose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(polish, "_SAVED_AFTER", 0.0)
    advance, count = polish._advance, 0

    def until(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == at:
            raise _Killed
        advance(*arguments)

    monkeypatch.setattr(polish, "_advance", until)
    recipe = RECIPE | {"polish": POLISH}
    with pytest.raises(_Killed):
        run(source, tmp_path / "out", recipe, data=prose)
    monkeypatch.setattr(polish, "_advance", advance)
    said: list[str] = []

    class Telling(Quiet):
        def say(self, text: str) -> None:
            said.append(text)

    run(source, tmp_path / "out", recipe, data=prose, progress=Telling())
    assert any("continuing to polish" in text for text in said)
    whole = results[1].directory / "model.safetensors"
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == whole.read_bytes()


def test_an_encoder_is_polished_too(tiny_model: Callable[..., Path], texts: list[str], tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    recipe = ENCODER | {"polish": {"tokens": 16384, "epochs": 3, "learning_rate": 0.003}}
    result = run(tiny_model("bert"), tmp_path / "out", recipe, data=str(file))
    told = result.measured.polish
    assert told.loss == "distance to float embeddings"
    assert min(point.held_out for point in told.points) < 0.9 * told.points[0].held_out
    assert any("bias" in name for name in weights(tmp_path / "out"))


def test_a_static_scheme_trains_its_input_scales(
    tiny_model: Callable[..., Path], texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(texts), encoding="utf-8")
    students: list[Any] = []
    write = polishing._with_floats
    monkeypatch.setattr(
        polishing, "_with_floats", lambda q, student, path: students.append(student) or write(q, student, path)
    )
    recipe = ENCODER | {"scheme": "w8a8_static", "polish": {"tokens": 16384, "epochs": 2, "learning_rate": 0.003}}
    run(tiny_model("bert"), tmp_path / "out", recipe, data=str(file))
    (student,) = students
    written = weights(tmp_path / "out")
    for name, module in student.linears.items():
        before, after = module.linear.static.scale, module.trained().static.scale
        assert before != after
        assert float(written[f"{name}.input_scale"]) == pytest.approx(after, rel=1e-6)
        assert torch.equal(written[f"{name}.weight"], module.linear.weight.codes_NK)


def test_too_little_text_is_refused(source: Path, prose: str, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text(Path(prose).read_text(encoding="utf-8")[:1500], encoding="utf-8")
    with pytest.raises(DataError, match="more"):
        run(source, tmp_path / "out", RECIPE | {"polish": POLISH}, data=str(short))
    assert not (tmp_path / "out").exists()


def test_other_tasks_are_refused(tiny_model: Callable[..., Path], texts: list[str], tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(texts), encoding="utf-8")
    model = tiny_model("bert", task="token-classification")
    with pytest.raises(RecipeError, match="polish trains language models"):
        run(model, tmp_path / "out", ENCODER | {"polish": True}, data=str(file))


def test_nothing_to_polish_is_refused(source: Path, prose: str, tmp_path: Path) -> None:
    recipe = {"scheme": "16bit", "targets": ["transformers"], "calibration": {"max_tokens": 48}, "polish": True}
    with pytest.raises(RecipeError, match="quantizes none"):
        run(source, tmp_path / "out", recipe, data=prose)


def test_the_recipe_is_read_back() -> None:
    recipe = make_recipe({"polish": True})
    assert recipe.polish is not None
    assert make_recipe({"polish": False}).polish is None
    assert "tokens: 65536" in recipe_yaml(recipe)
    with pytest.raises(RecipeError, match=r"epochs.*polish|polish.*epochs"):
        make_recipe({"polish": {"epoch": 3}})
