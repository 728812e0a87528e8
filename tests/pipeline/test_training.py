"""A run that trains what it quantized: what it makes, how it goes on after a kill, and what it refuses."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitwright.errors import DataError, InputError
from bitwright.pipeline import Result, TrainingAsked, quantize
from bitwright.pipeline.workspace import work_path
from bitwright.recipe import make_recipe
from bitwright.runtime.load import load
from bitwright.training import trainer
from bitwright.training.state import State
from tests.forks import in_fork

TinyModel = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("unverified")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    """`run(model, scheme, method, **training)`: a judged and trained result in tmp_path / "out"."""

    def call(model: Path, scheme: str = "w4a8_channel", method: str = "rtn", **training: Any) -> Result:
        calibration = {"samples": 32, "max_tokens": 16, "batch_size": 8}
        recipe = make_recipe({"scheme": scheme, "method": method, "calibration": calibration})
        options = {name: training.pop(name) for name in ("evaluation", "data") if name in training}
        asked = TrainingAsked(**({"steps": 20, "rate": 1e-3} | training))
        return quantize(
            model, out=tmp_path / "out", recipe=recipe, samples=160, speed=False, training=asked, **options
        )  # fmt: skip

    return call


@pytest.mark.parametrize(
    ("scheme", "method", "rate"),
    [("w4a8_channel", "rtn", 1e-3), pytest.param("w8a8_static", "rtn", 1e-4, marks=pytest.mark.full),
     pytest.param("w3a8_channel", "rtn", 1e-3, marks=pytest.mark.full),
     pytest.param("ternary_a8_channel", "rtn", 1e-3, marks=pytest.mark.full)],
)  # fmt: skip
def test_an_encoder_loses_less_and_the_record_says_so(
    run: Callable[..., Result], tiny_model: TinyModel, scheme: str, method: str, rate: float
) -> None:
    result = run(tiny_model("bert"), scheme, method, rate=rate)
    told = result.measured.training
    assert told is not None
    assert told.kept
    assert told.curve[-1].step == told.steps == 20
    assert min(look.loss for look in told.curve) < told.curve[0].loss
    assert told.after is not None
    assert told.before is not None
    assert told.after <= told.before
    assert result.measured.evaluation is not None
    assert result.measured.evaluation.loss is not None
    assert load(result.directory).backend.startswith("engine")
    read = json.loads((result.directory / "record.json").read_text())
    assert read["training"]["best"] == told.best


@pytest.mark.full
def test_a_language_model_is_trained_too(run: Callable[..., Result], trained_decoder: Path) -> None:
    told = run(trained_decoder, "w2a16_g32", "rtn", steps=8, rate=1e-3).measured.training
    assert told is not None
    assert told.objective.startswith("KL divergence of the next token")
    assert min(look.loss for look in told.curve) < told.curve[0].loss
    assert told.kept


@pytest.fixture(scope="session")
def labelled(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 texts with two labels."""
    path = tmp_path_factory.mktemp("labelled") / "labelled.tsv"
    rows = [f"{half}\t{int('the' in half)}" for text in texts for half in (text, text[: len(text) // 2].strip())]
    path.write_text("text\tlabel\n" + "\n".join(dict.fromkeys(rows)), encoding="utf-8")
    return path


@pytest.mark.full
def test_labels_train_a_classifier(run: Callable[..., Result], tiny_model: TinyModel, labelled: Path) -> None:
    told = run(tiny_model("bert", "sequence-classification"), labels=str(labelled)).measured.training
    assert told is not None
    assert told.objective.endswith("and the labels")
    assert min(look.loss for look in told.curve) < told.curve[0].loss


def test_labels_that_do_not_fit_the_head(
    run: Callable[..., Result], tiny_model: TinyModel, labelled: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.tsv"
    wrong.write_text(labelled.read_text().replace("\t1", "\t7"))
    with pytest.raises(DataError, match=r"label '?7'? "):
        run(tiny_model("bert", "sequence-classification"), labels=str(wrong))
    with pytest.raises(DataError, match="task is embedding"):
        run(tiny_model("bert"), labels=str(labelled))


def test_refused_before_the_work(
    run: Callable[..., Result], tiny_model: TinyModel, tiny_decoder: TinyModel, prose: str, tmp_path: Path
) -> None:
    few = tmp_path / "few.txt"
    few.write_text("\n".join(f"This is text number {i}." for i in range(20)))
    with pytest.raises(DataError, match=r"there are 20 texts .* at least 256 are needed: give 236 more with --texts"):
        run(tiny_model("bert"), texts=(str(few),))
    wide = tiny_model("bert", hidden_size=48)
    with pytest.raises(InputError, match="it has 48 values in an embedding, but the model has 32"):
        run(tiny_model("bert"), teacher=str(wide))
    with pytest.raises(InputError, match="its task is sequence-classification, but that of the model is embedding"):
        run(tiny_model("bert"), teacher=str(tiny_model("bert", "sequence-classification")))
    with pytest.raises(InputError, match=r"its vocabulary \(300 tokens\) is another than the model's \(200\)"):
        run(tiny_decoder("llama"), "w4a16_g32", teacher=str(tiny_decoder("llama", vocab_size=300)), data=prose)
    with pytest.raises(InputError, match="quantizes no linear, so there is nothing to train"):
        run(tiny_model("bert"), "16bit")
    with pytest.raises(InputError, match="minutes or steps"):
        run(tiny_model("bert"), steps=None)
    assert not (tmp_path / "out").exists()
    assert not work_path(tmp_path / "out").exists()


@pytest.mark.full
def test_inside_the_budget_nothing_is_trained(tiny_model: TinyModel, tmp_path: Path) -> None:
    result = quantize(
        tiny_model("bert"), out=tmp_path / "out", max_loss=0.5, samples=160, speed=False,
        training=TrainingAsked(steps=5, only_if_over=True),
    )  # fmt: skip
    assert result.measured.training is None
    assert result.exit_code == 0


@pytest.mark.full
def test_over_the_budget_it_is_trained_before_bits_are_added(tiny_model: TinyModel, tmp_path: Path) -> None:
    recipe = make_recipe({"scheme": "w4a8_channel"})
    result = quantize(
        tiny_model("bert"), out=tmp_path / "out", recipe=recipe, max_loss=0.01, samples=160, speed=False,
        training=TrainingAsked(steps=20, rate=0.05, only_if_over=True),
    )  # fmt: skip
    told, steps = result.measured.training, result.measured.steps
    assert told is not None
    assert told.kept
    assert steps[0].loss == told.after, "the search begins with the trained model"
    assert load(result.directory).encode(["a text"]).shape == (1, 32)


def _killed_at(step: int, source: Path, out: Path, scheme: str) -> None:
    """Quantize and train, saving after every step; killed when this step is saved."""
    save = trainer.save_state

    def saved(folder: Path, state: State, *rest: Any) -> None:
        save(folder, state, *rest)
        if state.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.save_state = saved
    trainer.Settings.__init__.__kwdefaults__["save_seconds"] = 0.0  # type: ignore[attr-defined]
    training = TrainingAsked(steps=40, rate=0.05)
    quantize(source, out=out, recipe=make_recipe({"scheme": scheme}), samples=160, speed=False, training=training)


@pytest.mark.full
def test_killed_while_it_trains_it_goes_on_in_the_same_bytes(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model, log = tiny_model("bert"), tmp_path / "log"

    def run(out: str, step: int = 0, scheme: str = "w4a8_channel") -> int | None:
        process = in_fork(log, _killed_at, step, model, tmp_path / out, scheme)
        process.join()
        return process.exitcode

    assert run("out", step=10) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert run("out", scheme="w8a8") == 1
    assert "differs from this one in its recipe" in log.read_text()

    assert run("out", step=25) == -signal.SIGKILL
    assert (run("out"), run("whole")) == (0, 0), log.read_text()
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    told = [json.loads((tmp_path / out / "record.json").read_text())["training"]["curve"] for out in ("out", "whole")]
    assert told[0] == told[1]
