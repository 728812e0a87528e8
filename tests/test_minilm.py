"""The promises on a real encoder, all-MiniLM-L6-v2: size, fidelity, accuracy on public data, planted outliers found."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import bitwright
from bitwright.calibration.data import builtin_texts
from bitwright.evaluate import load_task
from bitwright.evaluate.metrics import cosines
from bitwright.pipeline import analyze, quantize
from bitwright.recipe import make_recipe
from bitwright.runtime.model import Model

HERE = {"targets": ["bitwright"]}


@pytest.fixture(scope="module")
def source(minilm_dir: Path) -> Model:
    return bitwright.load(minilm_dir)


@pytest.fixture(scope="module")
def result(minilm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("minilm") / "int8"
    made = quantize(
        minilm_dir, out=out, max_loss=0.01, recipe=make_recipe(HERE), samples=240, sensitivity=False, speed=False
    )
    assert made.exit_code == 0
    assert made.record["evaluation"]["verdict"] == "met"
    yield out
    shutil.rmtree(out)


def fidelity(model: Model, source: Model) -> float:
    """Mean cosine with float on the first 200 sentences of 40 to 200 characters of Python's documentation."""
    texts = builtin_texts(200)
    return float(cosines(source.encode(texts, batch_size=25), model.encode(texts, batch_size=25)).mean())


def weight_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def test_dynamic_int8_is_faithful_and_small(result: Path, source: Model, minilm_dir: Path) -> None:
    assert fidelity(bitwright.load(result), source) >= 0.9985
    assert weight_bytes(result) <= 0.40 * weight_bytes(minilm_dir)


def test_int8_embeddings_are_smaller_still(minilm_dir: Path, source: Model, tmp_path: Path) -> None:
    recipe = make_recipe(HERE | {"embeddings": "int8"})
    quantize(minilm_dir, out=tmp_path / "out", recipe=recipe, judged=False)
    assert weight_bytes(tmp_path / "out") <= 0.27 * weight_bytes(minilm_dir)
    assert fidelity(bitwright.load(tmp_path / "out"), source) >= 0.9985


@pytest.mark.parametrize("threads", [1, 2])
def test_runs_within_300_mb_of_addresses(result: Path, threads: int) -> None:
    code = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_AS, (300_000_000, 300_000_000))\n"
        "import bitwright\n"
        f"model = bitwright.load({str(result)!r}, threads={threads})\n"
        "assert model.encode(['a first text']).shape == (1, 384)\n"
        "assert model.encode(['many texts, and longer ones ' * 40] * 100).shape == (100, 384)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.eval_data
def test_sts_benchmark(result: Path, eval_data: Path) -> None:
    task = load_task(eval_data / "stsb" / "stsb-en-test.tsv")
    assert 100 * task.score(task.run(bitwright.load(result).encode)) >= 81.8


@pytest.mark.eval_data
@pytest.mark.parametrize("name", ["medline", "cranfield"])
def test_retrieval(result: Path, source: Model, eval_data: Path, name: str) -> None:
    task = load_task(eval_data / name)
    loss = task.loss(task.run(source.encode), task.run(bitwright.load(result).encode))
    assert loss <= 0.01


@pytest.mark.full
def test_analysis_finds_planted_outliers_first(minilm_dir: Path, tmp_path: Path) -> None:
    name = "encoder.layer.3.attention.output.dense"  # by itself among the least sensitive
    planted = tmp_path / "planted"
    shutil.copytree(minilm_dir, planted)
    tensors = load_file(planted / "model.safetensors")
    # One value feature shrinks and the weights that read it grow as much: the float model is the same, but every row of
    # the planted linear now has an outlier that takes the int8 steps from its other weights.
    for part in ("weight", "bias"):
        tensors[f"encoder.layer.3.attention.self.value.{part}"][7] /= 500
    tensors[f"{name}.weight"][:, 7] *= 500
    save_file(tensors, planted / "model.safetensors", metadata={"format": "pt"})
    found = analyze(planted, recipe=make_recipe(HERE), samples=24)
    assert found["rows"][0]["name"] == name
    assert found["units"][0]["name"] == name
