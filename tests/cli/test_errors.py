"""Everything that a person can get wrong: one line that says what, where and what to do, and nothing left behind."""

import json
import os
import re
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file, save_file

Run = Callable[..., Any]
TinyModel = Callable[..., Path]

QUICK = ("--samples", "60", "--no-sensitivity", "--no-speed", "--max-loss", "50%")


def copied(source: Path, to: Path) -> Path:
    """A copy of a model to break."""
    to.mkdir()
    for file in source.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def truncated(model: Path, tmp: Path) -> Path:
    weights = copied(model, tmp / "broken") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    return weights.parent


def lying(model: Path, tmp: Path) -> Path:
    weights = copied(model, tmp / "broken") / "model.safetensors"
    content = weights.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    name = next(key for key in header if key.endswith("output.dense.weight"))
    header[name]["data_offsets"][1] += 4
    told = json.dumps(header).encode()
    weights.write_bytes(struct.pack("<Q", len(told)) + told + content[8 + length :])
    return weights.parent


def with_nan(model: Path, tmp: Path) -> Path:
    weights = copied(model, tmp / "broken") / "model.safetensors"
    tensors = load_file(weights)
    tensors["encoder.layer.0.output.dense.weight"][3, 4] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    return weights.parent


def with_config(model: Path, tmp: Path, **changes: Any) -> Path:
    config = copied(model, tmp / "broken") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    return config.parent


def a_file(tmp: Path, name: str, text: str) -> Path:
    """A file with its folder."""
    path = tmp / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


class Case(NamedTuple):
    """A mistake: its arguments, given the model and a folder for files; the exit code; what the line must say."""

    arguments: Callable[[Path, Path], list[Any]]
    code: int
    says: tuple[str, ...]


def quantizing(make: Callable[[Path, Path], list[Any]], code: int, *says: str) -> Case:
    """A mistake in `bitwright quantize`."""
    return Case(lambda model, tmp: ["quantize", *make(model, tmp), "--out", "out", *QUICK], code, says)


def misusing(*arguments: Any, says: tuple[str, ...]) -> Case:
    """A mistake that no file is needed for."""
    return Case(lambda model, tmp: list(arguments), 2, says)


def with_recipe(text: str, *says: str, code: int = 2, more: tuple[str, ...] = ()) -> Case:
    return quantizing(lambda m, t: [m, "--recipe", a_file(t, "recipe.yaml", text), *more], code, *says)


def with_data(text: str, *says: str) -> Case:
    return quantizing(lambda m, t: [m, "--data", a_file(t, "texts.txt", text)], 2, "texts.txt", *says)


CASES: dict[str, Case] = {
    "missing directory": quantizing(lambda m, t: ["none"], 1, "none", "neither a directory here nor a hub name"),
    "no model in the directory": quantizing(lambda m, t: [t], 1, "no config.json", "model directory has one"),
    "truncated weights": quantizing(lambda m, t: [truncated(m, t)], 1, "model.safetensors", "5000|bytes"),
    "lying header": quantizing(lambda m, t: [lying(m, t)], 1, "model.safetensors", r"output\.dense\.weight", "bytes"),
    "NaN in the weights": quantizing(
        lambda m, t: [with_nan(m, t)], 1, r"encoder\.layer\.0\.output\.dense\.weight: 1 of 204"
    ),
    "unsupported architecture": quantizing(lambda m, t: [with_config(m, t, model_type="t5")], 1, "t5", "bert"),
    "config of another model": quantizing(
        lambda m, t: [with_config(m, t, intermediate_size=128)], 1, "config and weights are of different models"
    ),
    "quantized already": quantizing(
        lambda m, t: [with_config(m, t, quantization_config={"quant_method": "gptq"})], 1, "gptq", "give the original"
    ),
    "no texts": with_data("", "there are no texts in this file"),
    "texts too short": with_data("a\nb\n?\n", "none of its 3 texts is usable"),
    "no such texts": quantizing(lambda m, t: [m, "--data", "gone.txt"], 2, r"gone\.txt: no such file"),
    "recipe with an unknown key": with_recipe("shceme: w8a8\n", "recipe.yaml", "`shceme`", "did you mean 'scheme'"),
    "recipe with an unknown scheme": with_recipe("scheme: w8a9\n", "'w8a9' is unknown", "did you mean 'w8a8'"),
    "recipe whose rule matches nothing": with_recipe(
        'rules: [{match: "encoder.layer.9.output.dens", scheme: 16bit}]\n', "matches none of the 13 linears",
        "did you mean",
    ),
    **{
        f"a goal beside {' '.join(options)}": quantizing(
            lambda m, t, options=options: [m, "--goal", "smallest", *options], 2, "goal: ", says, "leave one of the"
        )
        for options, says in (
            (("--scheme", "w4a16"), "also names w4a16"),
            (("--static",), "also names w8a8_static"),
            (("--recipe", "auto"), "also names w8a8"),
            (("--min-speedup", "2"), "min_speedup = 2"),
        )
    },
    "recipe that is no YAML": with_recipe("scheme: [w8a8\n", r"recipe\.yaml, line 2: this is not YAML", "expected"),
    "recipe that is no mapping": with_recipe("- w8a8\n", "a recipe must be a mapping"),
    "recipe that is missing": quantizing(lambda m, t: [m, "--recipe", "gone.yaml"], 2, r"gone\.yaml: cannot be read"),
    "int8 tables for transformers": with_recipe(
        "targets: [bitwright, transformers]\n", "cannot read int8 embedding tables",
        "leave transformers out with --target bitwright", code=2, more=("--embeddings", "int8"),
    ),
    "metric in a missing file": quantizing(lambda m, t: [m, "--metric", "gone.py:f"], 2, r"gone\.py:f: there is no"),
    "metric that is not defined": quantizing(
        lambda m, t: [m, "--metric", f"{a_file(t, 'mine.py', 'def score(encode): return 1.0')}:scores"],
        2, r"mine\.py: there is no function 'scores'", "the file defines score",
    ),
    "metric that does not compile": quantizing(
        lambda m, t: [m, "--metric", f"{a_file(t, 'mine.py', 'def score(')}:score"], 2, r"raised SyntaxError"
    ),
    "metric and labelled data": quantizing(
        lambda m, t: [m, "--metric", "a.py:f", "--eval", "b.tsv"], 2, "--metric and --eval", "give only one of them"
    ),
    "labelled data of no known layout": quantizing(
        lambda m, t: [m, "--eval", a_file(t, "labels/notes.md", "hello").parent], 2, "labels", "corpus"
    ),
    "labelled data with other columns": quantizing(
        lambda m, t: [m, "--eval", a_file(t, "pairs.tsv", "left\tright\n1\t2\n")],
        2, r"pairs\.tsv: the first row", "sentence1"
    ),
    "labelled data that is missing": quantizing(lambda m, t: [m, "--eval", "gone.tsv"], 2, r"gone\.tsv: there is no"),
    "kind of nothing": quantizing(lambda m, t: [m, "--kind", "retrieval"], 2, "--kind", "no --eval"),
    "range of nothing": quantizing(lambda m, t: [m, "--range", "mse"], 2, "--range", "add --static"),
    "result inside the source": Case(lambda m, t: ["quantize", m, "--out", m], 2, ("choose another directory",)),
    "no destination": Case(lambda m, t: ["quantize", m], 2, ("--out DIR", "--dry-run")),
    "nothing to report on": Case(lambda m, t: ["report", t], 1, (r"record\.json: there is no", "bitwright quantize")),
    "nothing to compare": Case(lambda m, t: ["compare", t, t], 1, (r"record\.json: there is no", "bitwright quantize")),
    "corrupted record": Case(
        lambda m, t: ["report", a_file(t, "record.json", '{"record_version": 1, "model": ').parent],
        1, (r"record\.json: cannot be read as a record",),
    ),
    "record that is a list": Case(
        lambda m, t: ["compare", a_file(t, "record.json", "[1]"), t], 1, ("record_version is None",)
    ),
    "record of a later version": Case(
        lambda m, t: ["compare", a_file(t, "record.json", '{"record_version": 99, "bitwright_version": "7.1.0"}'), t],
        1, ("record_version is 99, written by Bitwright '7.1.0'; this release reads 1: update Bitwright",),
    ),
    "record of an earlier version": Case(
        lambda m, t: ["compare", a_file(t, "record.json", '{"record_version": 0, "bitwright_version": "0.0.3"}'), t],
        1, ("record_version is 0, written by Bitwright '0.0.3'", "quantize the model again"),
    ),
    "page into a missing folder": Case(
        lambda m, t: ["compare", t, t, "--html", t / "gone" / "page.html"], 2, ("--html", "there is no directory")
    ),
    "benchmark of no model": Case(lambda m, t: ["bench", t], 1, ("config.json|weights",)),
    "unknown command": misusing("quantise", "m", says=("quantise", "did you mean 'quantize'", "bitwright --help")),
    "unknown command, like none": misusing("xyz", says=("xyz", "quantize, tune, train")),
    "unknown option": misusing("quantize", "m", "--max-los", "1%", says=("--max-los", "--max-loss", "quantize --help")),
    "unknown choice": misusing("quantize", "m", "--range", "means", says=("^bitwright: --range: 'means' is", "absmax")),
    "misspelt choice": misusing("eval", "m", "--kind", "retrival", says=("--kind", "did you mean 'retrieval'")),
    "misspelt recipe": misusing("recipes", "lm-int4", says=("'lm-int4'", "did you mean 'llm-int4'")),
    "misspelt scheme": misusing("plan", "m", "--scheme", "w4a61", says=("'w4a61'", "did you mean 'w4a16'")),
    "misspelt goal": misusing("quantize", "m", "--goal", "smalest", says=("--goal", "did you mean 'smallest'")),
    "missing argument": misusing("quantize", says=("MODEL", "quantize --help")),
    "loss too large": misusing("quantize", "m", "--max-loss", "200%", says=("--max-loss", "'200%' must lie between")),
    "loss of one": misusing("quantize", "m", "--max-loss", "1", says=("'1' must lie", "0.01 and 1% mean the same")),
    "loss that is NaN": misusing("quantize", "m", "--max-loss", "nan", says=("'nan' must lie between",)),
    "loss that is a word": misusing("quantize", "m", "--max-loss", "abc", says=("is no percentage; write 1%",)),
    "too few samples": misusing("quantize", "m", "--samples", "3", says=("--samples", "3", "8")),
    "shape": misusing("bench", "d", "--shape", "8by128", says=("'8by128' is no shape", "such as 8x128")),
    "shape of nothing": misusing("bench", "d", "--shape", "0x128", says=("'0x128' is no shape",)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_mistake_is_told_in_one_line(name: str, tiny_model: TinyModel, tmp_path: Path, here: Path, run: Run) -> None:
    arguments, code, says = CASES[name]
    given = arguments(tiny_model("bert"), _folder(tmp_path))
    outcome = run(*given)
    assert outcome.code == code
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert len(outcome.remarks) == 1
    assert outcome.err.splitlines()[-1] == outcome.remarks[0]
    for pattern in says:
        assert re.search(pattern, outcome.remarks[0]), f"{pattern!r} is not in {outcome.remarks[0]!r}"
    assert list(here.iterdir()) == []

    debugged = run(*given, "--debug")
    assert debugged.code == code
    assert "Traceback (most recent call last)" in debugged.err
    assert debugged.remarks == outcome.remarks
    assert list(here.iterdir()) == []


def _folder(tmp_path: Path) -> Path:
    folder = tmp_path / "given"
    folder.mkdir()
    return folder


@pytest.mark.usefixtures("unverified")
def test_existing_result_is_replaced_only_on_demand(tiny_model: TinyModel, here: Path, run: Run) -> None:
    model = tiny_model("bert")
    assert run("quantize", model, "--out", "out", *QUICK).code == 0
    before = (here / "out" / "record.json").read_bytes()
    refused = run("quantize", model, "--out", "out", *QUICK)
    assert refused.code == 2
    assert refused.remarks == [
        "bitwright: out: this directory exists already; choose another one, or replace it with --overwrite"
    ]
    assert (here / "out" / "record.json").read_bytes() == before
    assert run("quantize", model, "--out", "out", "--overwrite", *QUICK).code == 0
    assert (here / "out" / "record.json").read_bytes() != before
    assert [path.name for path in here.iterdir()] == ["out"]


def test_directory_that_is_no_result_is_never_replaced(tiny_model: TinyModel, here: Path, run: Run) -> None:
    (here / "out").mkdir()
    (here / "out" / "thesis.tex").write_text("years of work")
    outcome = run("quantize", tiny_model("bert"), "--out", "out", "--overwrite", *QUICK)
    assert outcome.code == 2
    assert "out: Bitwright did not write this directory" in outcome.remarks[0]
    assert (here / "out" / "thesis.tex").read_text() == "years of work"


@pytest.mark.usefixtures("unverified")
def test_full_disk(tiny_model: TinyModel, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    with monkeypatch.context() as patch:
        patch.setattr("bitwright.checkpoints.result.shutil.disk_usage", lambda folder: Usage(1234))
        outcome = run("quantize", tiny_model("bert"), "--out", "out", *QUICK)
    assert outcome.code == 1
    assert len(outcome.remarks) == 1
    assert "1234 are free" in outcome.remarks[0]
    assert "free some space, or write to another disk" in outcome.remarks[0]
    left = [path for path in here.rglob("*") if path.is_file()]
    assert {path.name for path in left} <= {"journal.jsonl"}  # measurements, so that the next run goes on
    assert run("quantize", tiny_model("bert"), "--out", "out", *QUICK).code == 0
    assert [path.name for path in here.iterdir()] == ["out"]


@pytest.mark.parametrize(("command", "goes_on"), [("quantize", True), ("analyze", False)])
def test_ctrl_c(command: str, goes_on: bool, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"bitwright.pipeline.{command}", interrupt)
    outcome = run(command, "m", *(["--out", "out"] if command == "quantize" else []))
    assert outcome.code == 130
    lines = [line for line in outcome.err.splitlines() if line and not line.startswith("loading")]
    assert lines == outcome.remarks
    assert len(lines) == 1
    assert lines[0].startswith("bitwright: stopped")
    assert ("the same command goes on" in lines[0]) == goes_on


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(13, "Permission denied", "/x/report.html"), "/x/report.html: Permission denied"),
        (OSError("unexpected end"), "OSError: unexpected end"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_what_the_system_refuses(
    error: Exception, says: str, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(directory: Path) -> None:
        raise error

    monkeypatch.setattr("bitwright.report.write_report", refuse)
    outcome = run("report", here)
    assert outcome.code == 1
    assert outcome.err.startswith(f"bitwright: {says}")
    assert outcome.err.count("\n") == 1


def test_own_bugs_keep_their_traceback(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(directory: Path) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("bitwright.report.write_report", fail)
    with pytest.raises(ZeroDivisionError):
        run("report", here)


def test_warning_is_one_line(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(directory: Path) -> Path:
        warnings.simplefilter("always")  # the suite makes errors of warnings
        warnings.warn("the license\nis unknown", stacklevel=1)
        return directory / "report.html"

    monkeypatch.setattr("bitwright.report.write_report", warn)
    outcome = run("report", here)
    assert outcome.err == "bitwright: warning: the license is unknown\n"
    assert outcome.out == f"{here}{os.sep}report.html\n"


def test_a_scheduler_s_stop_is_an_interrupt(tmp_path: Path) -> None:
    code = f"""
import os, signal, tempfile, time
from bitwright import cli
def work(**_):
    with tempfile.TemporaryDirectory(dir={str(tmp_path)!r}):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
cli.app.main = work
cli.main()
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (child.returncode, list(tmp_path.iterdir())) == (130, [])
    assert "stopped; nothing half-written is left" in child.stderr


@pytest.mark.parametrize("command", ["quantize", "analyze", "plan", "eval"])
def test_a_task_that_the_files_leave_open_is_asked_for_and_taken(
    run: Run, tiny_model: TinyModel, tmp_path: Path, command: str
) -> None:
    path = with_config(tiny_model("bert", "sequence-classification"), tmp_path, architectures=["BertModel"])
    options = {"quantize": ["--dry-run"], "eval": ["--reference", str(path)]}.get(command, [])
    options += [] if command == "plan" else ["--samples", "8"]
    asked = run(command, str(path), *options)
    assert asked.code == 1
    assert "--task" in asked.err
    assert "names BertModel" in asked.err
    assert run(command, str(path), *options, "--task", "embedding").code == 0
