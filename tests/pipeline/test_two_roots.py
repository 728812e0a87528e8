"""A model whose Transformer has a folder of its own gives the result of its flat twin, in the flat layout."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer

import bitwright
from bitwright.errors import InputError
from bitwright.pipeline import Texts, analyze, quantize
from bitwright.pipeline.job import open_job
from bitwright.pipeline.study import bench
from bitwright.recipe import make_recipe
from bitwright.record import LeftOut, read_record
from tests.forks import popen
from tests.nested import FOLDER, SETTINGS, TEXTS, flat_embedder, flat_reranker, nested
from tests.pipeline.test_quantize import digest

TinyModel = Callable[..., Path]
HERE = make_recipe({"targets": ["bitwright"], "budget": {"max_loss": 0.5}})
QUICK: dict[str, Any] = {"samples": 60, "speed": False, "sensitivity": False}


@pytest.fixture
def flat(tiny_model: TinyModel, tmp_path: Path) -> Path:
    return flat_embedder(tiny_model("bert"), tmp_path / "flat")


@pytest.fixture
def apart(flat: Path, tmp_path: Path) -> Path:
    return nested(flat, tmp_path / "apart")


def names(directory: Path) -> list[str]:
    return sorted(file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file())


def test_the_result_is_the_flat_twin_s(flat: Path, apart: Path, tmp_path: Path) -> None:
    recipe = make_recipe({"budget": {"max_loss": 0.5}})
    results = [quantize(source, out=tmp_path / f"of {source.name}", recipe=recipe, **QUICK) for source in (flat, apart)]
    one, two = (result.measured for result in results)
    assert [row.ok for row in two.verify or ()] == [True, True, True]  # Bitwright, transformers, sentence-transformers
    assert names(tmp_path / "of flat") == names(tmp_path / "of apart")
    of_flat, of_apart = digest(tmp_path / "of flat"), digest(tmp_path / "of apart")
    assert {name for name in of_flat if of_flat[name] != of_apart[name]} == {"modules.json"}
    modules = [json.loads((tmp_path / f"of {name}" / "modules.json").read_text()) for name in ("flat", "apart")]
    assert modules[0] == modules[1]
    assert one.model is not None
    assert two.model is not None
    assert (one.model.source_sha256, one.model.license) == (two.model.source_sha256, two.model.license)
    assert one.model.license == "mit"
    assert (one.size, one.evaluation) == (two.size, two.evaluation)
    assert two.evaluation is not None
    assert str(two.evaluation.judge).startswith("sentence-transformers")
    assert one.left_out == two.left_out == ()
    assert one.warnings == two.warnings
    theirs = SentenceTransformer(str(tmp_path / "of apart"), device="cpu").encode(TEXTS)
    ours = bitwright.load(tmp_path / "of apart").encode(TEXTS)
    assert theirs.shape == ours.shape == (3, SETTINGS["truncate_dim"])
    assert (ours == bitwright.load(tmp_path / "of flat").encode(TEXTS)).all()


def test_a_reranker_s_result_is_the_flat_twin_s(tiny_model: TinyModel, tmp_path: Path) -> None:
    flat = flat_reranker(tiny_model("bert", "sequence-classification", num_labels=1), tmp_path / "flat")
    apart = nested(flat, tmp_path / "apart")
    for source in (flat, apart):
        quantize(source, out=tmp_path / f"of {source.name}", recipe=HERE, **QUICK)
    assert names(tmp_path / "of flat") == names(tmp_path / "of apart")
    of_flat, of_apart = digest(tmp_path / "of flat"), digest(tmp_path / "of apart")
    assert {name for name in of_flat if of_flat[name] != of_apart[name]} == {"modules.json"}
    pairs = [("a question", text) for text in TEXTS]
    assert CrossEncoder(str(tmp_path / "of apart"), device="cpu").predict(pairs).shape == (3,)


def test_another_model_beside_modules_json_is_listed_and_not_kept(
    tiny_model: TinyModel, flat: Path, apart: Path, tmp_path: Path
) -> None:
    for file in tiny_model("bert", noise=2.0).iterdir():
        shutil.copy(file, apart)
    (apart / "added_tokens.json").write_text('{"text": 5}')
    (apart / "scores.csv").write_text("1,2\n")
    (apart / FOLDER / "LICENSE").write_text("MIT License")
    (apart / FOLDER / "README.md").write_text("# The model alone\n")
    (apart / FOLDER / "head.pt").write_bytes(b"x")
    result = quantize(apart, out=tmp_path / "of apart", recipe=HERE, judged=False)
    quantize(flat, out=tmp_path / "of flat", recipe=HERE, judged=False)
    found = {file.name: file.reason for file in result.measured.left_out or ()}
    assert found == {
        f"{FOLDER}/head.pt": "weights", "added_tokens.json": "unread", "config.json": "unread",
        "model.safetensors": "copy", "tokenizer.json": "unread", "tokenizer_config.json": "unread",
    }  # fmt: skip
    assert LeftOut("added_tokens.json", 11, "unread") in (result.measured.left_out or ())
    more = {"LICENSE", "scores.csv", f"{FOLDER}/README.md"}
    assert set(names(tmp_path / "of apart")) - set(names(tmp_path / "of flat")) == more
    of_flat, of_apart = digest(tmp_path / "of flat"), digest(tmp_path / "of apart")
    assert {name for name in of_flat if of_flat[name] != of_apart[name]} == {"modules.json"}
    assert "added_tokens.json" in (tmp_path / "of apart" / "README.md").read_text()


@pytest.mark.parametrize(
    "changed",
    ["modules.json", "config_sentence_transformers.json", "1_Pooling/config.json", f"{FOLDER}/tokenizer_config.json",
     f"{FOLDER}/sentence_bert_config.json", f"{FOLDER}/config.json"],
)  # fmt: skip
def test_a_changed_file_in_either_root_is_another_model(apart: Path, changed: str) -> None:
    before = open_job(apart, HERE, Texts(samples=60)).context()
    (apart / changed).write_text((apart / changed).read_text() + "\n")
    after = open_job(apart, HERE, Texts(samples=60)).context()
    assert {name for name in before if before[name] != after[name]} == {"model"}


def test_a_result_is_not_written_into_either_root(apart: Path) -> None:
    for out in (apart / "out", apart / FOLDER / "out", apart / FOLDER, apart):
        with pytest.raises(InputError, match="is the source model"):
            quantize(apart, out=out, recipe=HERE, overwrite=True, **QUICK)


@pytest.mark.usefixtures("unverified")
def test_the_original_of_a_result_is_found_again(apart: Path, tmp_path: Path) -> None:
    quantize(apart, out=tmp_path / "out", recipe=HERE, **QUICK)
    found = bench(tmp_path / "out", shapes=[(1, 8)], rounds=1, rivals=False, max_load=1e9)
    assert found["size"]["source_bytes"] == (apart / FOLDER / "model.safetensors").stat().st_size
    (apart / FOLDER / "config.json").write_text((apart / FOLDER / "config.json").read_text() + "\n")
    with pytest.raises(InputError, match="this is not the model that"):
        bench(tmp_path / "out", shapes=[(1, 8)], rounds=1, rivals=False, max_load=1e9)


def test_commands_that_write_nothing(apart: Path, run: Callable[..., Any]) -> None:
    plan = run("quantize", apart, "--dry-run", "--json", "--samples", "60", "--no-speed")
    assert plan.code == 0, plan.err
    assert [row["scheme"] for row in json.loads(plan.out)["plan"]].count("w8a8") == 12
    for command in (("plan", apart), ("inspect", apart), ("doctor",)):
        done = run(*command)
        assert done.code == 0, (command, done.err)
    found = analyze(apart, recipe=HERE, samples=60)
    assert len(found["rows"]) > 0


@pytest.mark.full
@pytest.mark.usefixtures("interruptible", "unverified")
def test_a_run_that_is_stopped_goes_on_with_the_same_bytes(
    apart: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    (tmp_path / "recipe.yaml").write_text("targets: [bitwright]\nbudget: {max_loss: 0.5}\n")
    command = ["quantize", apart, "--recipe", tmp_path / "recipe.yaml", "--samples", "80", "--no-speed",
               "--sensitivity"]  # fmt: skip
    child = popen([sys.executable, "-m", "bitwright", *command, "--out", tmp_path / "out"], stderr=subprocess.PIPE)
    journal = tmp_path / ".out.bitwright" / "journal.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_text().count("\n") >= 3):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=60)
    again = run(*command, "--out", tmp_path / "out")
    assert "continuing an interrupted run" in again.err
    assert run(*command, "--out", tmp_path / "fresh").code == 0
    assert digest(tmp_path / "out") == digest(tmp_path / "fresh")
    assert read_record(tmp_path / "out").sensitivity == read_record(tmp_path / "fresh").sensitivity
