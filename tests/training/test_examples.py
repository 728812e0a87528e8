"""examples/train_*.py run, and what they write is a checkpoint that the engine runs."""

import runpy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from bitwright.kernels import dispatch
from bitwright.runtime.load import load
from tests.pages import ROOT

TinyModel = Callable[..., Path]
pytestmark = pytest.mark.skipif(not dispatch.available(), reason="the native kernels are not built")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """`example(name, arguments…)`: run it, and return the directory that it wrote."""

    def call(name: str, *arguments: object) -> Path:
        out = tmp_path / "out"
        words = [name, *map(str, arguments), "--out", str(out), "--steps", "3"]
        monkeypatch.setattr("sys.argv", words)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries that train
            runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
        return out

    return call


def test_a_classifier_by_the_trainer_of_transformers(
    example: Callable[..., Path], tiny_model: TinyModel, texts: list[str], tmp_path: Path
) -> None:
    labels = tmp_path / "labels.csv"
    plain = [text.replace('"', "") for text in texts[:96]]
    labels.write_text("text,label\n" + "\n".join(f'"{text}",{"the" in text:d}' for text in plain))
    out = example("train_transformers", tiny_model("bert", "sequence-classification"), labels)
    model = load(out)
    assert model.backend.startswith("engine")
    assert model.encode(["one text"]).shape[0] == 1


def test_an_embedding_model_by_the_trainer_of_sentence_transformers(
    example: Callable[..., Path], tiny_model: TinyModel
) -> None:
    pytest.importorskip("sentence_transformers")
    out = example("train_sentence_transformers", tiny_model("bert", pooling="mean_tokens"))
    model = load(out)
    assert model.backend.startswith("engine")
    assert model.encode(["one text"]).shape == (1, 32)
