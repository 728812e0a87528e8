"""The main job on small models: what it writes, what it promises, what it refuses."""

import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import bitwright
from bitwright.errors import InputError, ModelError, NumericsError, RecipeError, TargetError
from bitwright.pipeline import Texts, preview, quantize
from bitwright.pipeline.job import open_job
from bitwright.pipeline.variants import calibration_batches
from bitwright.recipe import make_recipe, read_recipe
from bitwright.record import LeftOut, plain_data, read_record
from bitwright.report import write_report
from tests.forks import popen

TinyModel = Callable[..., Path]

# Verification reloads in other processes: once for all targets, elsewhere only our own, or none.
HERE = make_recipe({"targets": ["bitwright"], "budget": {"max_loss": 0.5}})
FULL = pytest.mark.full
QUICK: dict[str, Any] = {"samples": 60, "speed": False, "sensitivity": False}


def digest(directory: Path) -> dict[str, str]:
    """SHA-256 by file name, but for what holds times."""
    timed = {"record.json", "report.html", "README.md"}
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in directory.iterdir()
        if p.is_file() and p.name not in timed
    }


def copied(source: Path, to: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a model with its tensors changed in place."""
    to.mkdir()
    for file in source.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    tensors = {name: tensor.clone() for name, tensor in load_file(to / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.mark.usefixtures("new_interpreters")
def test_result_is_complete(tiny_model: TinyModel, tmp_path: Path) -> None:
    source = tiny_model("bert")
    recipe = make_recipe({"budget": {"max_loss": 0.5}})
    result = quantize(source, out=tmp_path / "out", recipe=recipe, samples=60, speed=False)
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert read_record(tmp_path / "out") == result.measured
    assert record == plain_data(result.measured) == plain_data(result.record)
    assert result.exit_code == 0
    assert record["evaluation"]["verdict"] == "met"
    assert [(row["target"], row["ok"]) for row in record["verify"]] == [
        ("bitwright", True), ("transformers", True), ("sentence-transformers", True),
    ]  # fmt: skip
    checks = record["verify"][0]["checks"]
    assert checks["integer_kernel_calls"] == checks["engine_integer_kernel_calls"] == 12
    assert checks["engine_distance"] < checks["engine_distance_allowed"]
    assert {p.name for p in source.iterdir()} - {p.name for p in (tmp_path / "out").iterdir()} == set()
    assert {"report.html", "record.json", "recipe.yaml", "README.md"} <= {p.name for p in (tmp_path / "out").iterdir()}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]  # no work directory is left
    assert sum(row["bytes_after"] for row in record["plan"]) == record["size"]["weights_after"]
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written["encoder.layer.0.output.dense.weight"].dtype == torch.int8
    assert read_recipe(tmp_path / "out" / "recipe.yaml").scheme == "w8a8"
    numbered = re.compile(r"\bp\d{4,}\b")  # bokeh numbers its models through the life of a process
    before = numbered.sub("", (tmp_path / "out" / "report.html").read_text())
    assert numbered.sub("", write_report(tmp_path / "out").read_text()) == before


def test_what_is_left_out_is_told_everywhere(tiny_model: TinyModel, tmp_path: Path) -> None:
    """bge-m3's sparse head lies beside its weights as a pickle."""
    source = copied(tiny_model("bert"), tmp_path / "model", lambda tensors: None)
    (source / "sparse_linear.pt").write_bytes(b"x" * 10)
    result = quantize(source, out=tmp_path / "out", recipe=HERE, judged=False, samples=8)
    assert result.measured.left_out == (LeftOut("sparse_linear.pt", 10, "weights"),)
    assert not (tmp_path / "out" / "sparse_linear.pt").exists()
    for file in ("record.json", "README.md", "report.html"):
        assert "sparse_linear.pt" in (tmp_path / "out" / file).read_text().replace("<wbr>", "")


def test_a_tokenizer_of_another_model_is_refused_before_it_is_run(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe({"method": "gptq", "targets": ["bitwright"]})
    job = open_job(tiny_model("bert"), recipe, Texts(samples=60))
    assert len(calibration_batches(job)) > 1
    monkeypatch.setattr(type(job.model), "vocabulary", 20)
    with pytest.raises(InputError, match=r"its tokenizer gives the token id \d+, but this model has only 0 to 19"):
        calibration_batches(job)


@pytest.mark.parametrize(
    "config",
    [{"pos_att_type": ["c2p"]}, pytest.param({}, marks=FULL), pytest.param({"share_att_key": False}, marks=FULL)],
)
def test_what_the_engine_folds_is_verified(tiny_model: TinyModel, tmp_path: Path, config: dict[str, Any]) -> None:
    result = quantize(tiny_model("deberta-v2", **config), out=tmp_path / "out", recipe=HERE, **QUICK)
    (row,) = result.record["verify"]
    checks = row["checks"]
    assert row["ok"], row
    assert checks["engine_integer_kernel_calls"] == 12
    assert checks["engine_folded_calls"] == (0 if config == {"share_att_key": False} else 4)
    assert checks["integer_kernel_calls"] == 12 + checks["engine_folded_calls"]


@pytest.fixture(scope="module")
def quick(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of a small BERT, judged on few texts, for tests that only read it."""
    out = tmp_path_factory.mktemp("quick") / "out"
    quantize(tiny_model("bert"), out=out, recipe=HERE, **QUICK)
    return out


@pytest.mark.usefixtures("unverified")
class TestRuns:
    def test_loaded_model_gives_what_was_measured(self, quick: Path, tiny_model: TinyModel, texts: list[str]) -> None:
        ours, original = bitwright.load(quick), bitwright.load(tiny_model("bert"))
        a, b = ours.encode(texts[:20]), original.encode(texts[:20])
        cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert cosines.mean() > 0.98
        assert ours.backend.startswith("engine:")
        assert original.backend == "torch"

    def test_same_input_same_bytes(self, quick: Path, tiny_model: TinyModel, tmp_path: Path) -> None:
        quantize(tiny_model("bert"), out=tmp_path / "again", recipe=HERE, **QUICK)
        assert digest(tmp_path / "again") == digest(quick)

    @pytest.mark.parametrize("scheme", ["w8a8_symmetric", "w8a8_static", "w8a8_static_symmetric"])
    def test_schemes(self, tiny_model: TinyModel, tmp_path: Path, scheme: str) -> None:
        recipe = make_recipe({"scheme": scheme, "targets": ["bitwright"], "budget": {"max_loss": 0.5}})
        result = quantize(tiny_model("bert"), out=tmp_path / "out", recipe=recipe, **QUICK)
        assert result.record["evaluation"]["companions"]["cosine_mean"] > 0.97
        stored = load_file(tmp_path / "out" / "model.safetensors")
        assert ("encoder.layer.0.output.dense.input_scale" in stored) == ("static" in scheme)

    def test_int8_embeddings_run_here_and_nowhere_else(
        self, tiny_model: TinyModel, tmp_path: Path, texts: list[str]
    ) -> None:
        source = tiny_model("bert")
        recipe = make_recipe({"embeddings": "int8", "budget": {"max_loss": 0.5}})
        with pytest.raises(TargetError, match="transformers cannot read int8 embedding tables"):
            quantize(source, out=tmp_path / "out", recipe=recipe, targets="transformers", **QUICK)
        result = quantize(source, out=tmp_path / "out", recipe=recipe, **QUICK)
        assert read_recipe(tmp_path / "out" / "recipe.yaml").targets == ("bitwright",)
        assert result.measured.warnings[0].startswith("the result is not made for transformers")
        assert result.record["evaluation"]["companions"]["cosine_mean"] > 0.98
        assert bitwright.load(tmp_path / "out").encode(texts[:2]).shape == (2, 32)

    @pytest.mark.parametrize(
        "family",
        ["albert", "deberta-v2", "distilbert", "electra", "ernie", "modernbert", "mpnet", "roberta", "xlm-roberta"],
    )
    def test_every_family(self, tiny_model: TinyModel, tmp_path: Path, family: str, texts: list[str]) -> None:
        result = quantize(tiny_model(family), out=tmp_path / "out", recipe=HERE, **QUICK)
        assert result.record["evaluation"]["companions"]["cosine_mean"] > 0.95
        assert bitwright.load(tmp_path / "out").encode(texts[:3]).shape[0] == 3

    @pytest.mark.parametrize("head", [{"num_labels": 1}, {"problem_type": "multi_label_classification"}])
    def test_heads_without_a_best_class(self, tiny_model: TinyModel, tmp_path: Path, head: dict[str, Any]) -> None:
        source = tiny_model("bert", "sequence-classification", **head)
        facts = quantize(source, out=tmp_path / "out", recipe=HERE, **QUICK).record["evaluation"]
        assert "top-1" not in facts["metric"]["name"]
        assert facts["companions"]["max_abs"] > 0

    @pytest.mark.parametrize("task", ["sequence-classification", "token-classification", "question-answering"])
    def test_every_head(self, tiny_model: TinyModel, tmp_path: Path, task: str, texts: list[str]) -> None:
        source = tiny_model("bert", task)
        result = quantize(source, out=tmp_path / "out", recipe=HERE, **QUICK)
        assert result.record["evaluation"]["metric"]["label_free"]
        heads = [row for row in result.record["plan"] if row["role"] == "head"]
        assert heads
        assert {row["scheme"] for row in heads} == {"16bit"}
        mine, theirs = (bitwright.load(path).encode(texts[:4]) for path in (tmp_path / "out", source))
        for a, b in zip(mine, theirs, strict=True):
            assert a.shape == b.shape
            assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.9

    def test_existing_result_is_kept_unless_told(self, tiny_model: TinyModel, tmp_path: Path) -> None:
        source, quick = tiny_model("bert"), QUICK | {"judged": False, "samples": 8}
        quantize(source, out=tmp_path / "out", recipe=HERE, **quick)
        before = digest(tmp_path / "out")
        with pytest.raises(InputError, match="--overwrite"):
            quantize(source, out=tmp_path / "out", recipe=HERE, **quick)
        assert digest(tmp_path / "out") == before
        quantize(source, out=tmp_path / "out", recipe=HERE, overwrite=True, **quick)
        with pytest.raises(InputError, match="choose another directory"):
            quantize(source, out=source, recipe=HERE, overwrite=True, **quick)

    def test_own_metric_decides(self, tiny_model: TinyModel, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text(
            "import numpy as np\n"
            "TEXTS = [f'the list holds item {i} of the class' for i in range(40)]\n"
            "def score(encode):\n"
            "    v = encode(TEXTS)\n"
            "    return (v[:-1] * v[1:]).sum(1) / np.linalg.norm(v[:-1], axis=1) / np.linalg.norm(v[1:], axis=1)\n"
        )
        result = quantize(
            tiny_model("bert"), out=tmp_path / "out", recipe=HERE, metric=f"{tmp_path}/mine.py:score", **QUICK
        )
        assert not result.record["evaluation"]["metric"]["label_free"]
        assert result.record["evaluation"]["n_held_out"] in (19, 20)

    def test_labelled_pairs_decide(self, tiny_model: TinyModel, tmp_path: Path, texts: list[str]) -> None:
        lines = ["sentence1\tsentence2\tscore"]
        lines += [f"{a}\t{b}\t{i % 6}" for i, (a, b) in enumerate(zip(texts[::2], texts[1::2], strict=False))]
        (tmp_path / "pairs.tsv").write_text("\n".join(lines), encoding="utf-8")
        result = quantize(
            tiny_model("bert"), out=tmp_path / "out", recipe=HERE, evaluation=str(tmp_path / "pairs.tsv"), **QUICK
        )
        facts = result.record["evaluation"]
        assert facts["metric"]["kind"] == "similarity"
        assert facts["n_tuning"] + facts["n_held_out"] == 120
        page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
        assert not [text for text in texts if len(text) > 40 and text in page]  # no user text in the report
        assert not [text for text in texts if len(text) > 40 and text in (tmp_path / "out" / "record.json").read_text()]

    def test_preview_writes_nothing(
        self, tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = tiny_model("bert")
        monkeypatch.chdir(tmp_path)
        seen = preview(source, texts=Texts(samples=60))
        assert list(tmp_path.iterdir()) == []
        assert len([row for row in seen["plan"] if row.scheme == "w8a8"]) == 12
        assert seen["estimate"]["seconds"] > 0

    def test_bad_weights_and_bad_models(self, tiny_model: TinyModel, tmp_path: Path) -> None:
        source = tiny_model("bert")

        def poison(tensors: dict[str, torch.Tensor]) -> None:
            tensors["encoder.layer.0.output.dense.weight"][3, 4] = float("nan")

        out = tmp_path / "out"
        with pytest.raises(ModelError, match=r"encoder\.layer\.0\.output\.dense\.weight: 1 of 2048 values are NaN"):
            quantize(copied(source, tmp_path / "nan", poison), out=out, recipe=HERE, **QUICK)
        with pytest.raises(ModelError, match="neither a directory here nor a hub name"):
            quantize(tmp_path / "none", out=out, recipe=HERE, **QUICK)
        typo = make_recipe({"rules": [{"match": "encoder.layer.0.output.dens", "scheme": "16bit"}]})
        with pytest.raises(RecipeError, match="did you mean"):
            quantize(source, out=out, recipe=typo, **QUICK)
        assert not out.exists()

    def test_activations_that_overflow_are_reported(self, tiny_model: TinyModel, tmp_path: Path) -> None:
        def overflow(tensors: dict[str, torch.Tensor]) -> None:
            tensors["encoder.layer.1.output.LayerNorm.weight"].fill_(3e38)

        with pytest.raises(NumericsError, match="NaN or infinite"):
            quantize(copied(tiny_model("bert"), tmp_path / "big", overflow), out=tmp_path / "out", recipe=HERE, **QUICK)
        assert not (tmp_path / "out").exists()

    def test_constant_and_zero_weights_are_exact(self, tiny_model: TinyModel, tmp_path: Path) -> None:
        def flatten(tensors: dict[str, torch.Tensor]) -> None:
            tensors["encoder.layer.0.output.dense.weight"].zero_()
            tensors["encoder.layer.1.output.dense.weight"].fill_(0.25)

        source = copied(tiny_model("bert"), tmp_path / "flat", flatten)
        result = quantize(source, out=tmp_path / "out", recipe=HERE, **QUICK)
        assert np.isfinite(result.record["evaluation"]["loss"])
        stored = load_file(tmp_path / "out" / "model.safetensors")
        assert not stored["encoder.layer.0.output.dense.weight"].any()
        assert (stored["encoder.layer.1.output.dense.weight"] == 127).all()


@pytest.mark.usefixtures("interruptible", "unverified")
@pytest.mark.parametrize("stop", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=FULL)])
def test_a_run_that_is_stopped_goes_on_with_the_same_bytes(
    tiny_model: TinyModel, tmp_path: Path, stop: signal.Signals, run: Callable[..., Any]
) -> None:
    source = tiny_model("bert")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("targets: [bitwright]\nbudget: {max_loss: 0.5}\n")
    command = ["quantize", source, "--recipe", recipe, "--samples", "80", "--no-speed", "--sensitivity"]
    child = popen(
        [sys.executable, "-m", "bitwright", *command, "--out", tmp_path / "out"], stderr=subprocess.PIPE, text=True
    )
    journal = tmp_path / ".out.bitwright" / "journal.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_text().count("\n") >= 3):
        assert child.poll() is None, child.stderr.read() if child.stderr else ""
        assert time.monotonic() < deadline, "no measurement was written"
        time.sleep(0.01)
    child.send_signal(stop)
    _, said = child.communicate(timeout=60)
    assert child.returncode == (130 if stop is signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
    again = run(*command, "--out", tmp_path / "out")
    assert again.code == 0, again.err
    assert "continuing an interrupted run" in again.err
    fresh = run(*command, "--out", tmp_path / "fresh")
    assert fresh.code == 0, fresh.err
    assert digest(tmp_path / "out") == digest(tmp_path / "fresh")
    one, two = read_record(tmp_path / "out"), read_record(tmp_path / "fresh")
    assert one.sensitivity == two.sensitivity
    assert any("interrupted" in text for text in one.warnings)
