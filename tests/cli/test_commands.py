"""What each command prints: within 80 columns for people, as JSON for machines, its help at once."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any

import click
import pytest

import bitwright
from bitwright.cli import COMMANDS, app
from bitwright.cli.analyze import print_ranking
from bitwright.cli.bench import print_measurements
from bitwright.cli.command import GROUPS
from bitwright.cli.doctor import MEANINGS
from bitwright.cli.quantize import exit_code_lines, print_preview
from bitwright.errors import EXIT_MEANINGS, ExitCode
from bitwright.kernels.dispatch import ISAS, cpu_features
from bitwright.record import record_of
from tests.cli.conftest import lines_of

Run = Callable[..., Any]
TinyModel = Callable[..., Path]

HELP_CPU_S = 0.3


def test_plan_fits(record: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    estimate = {"seconds": 12345.0, "memory_bytes": 2.2e9, "disk_bytes": 1e8, "source_bytes": 4e8}
    print_preview(
        {"model": record["model"]["name"], "plan": record_of(record).plan, "estimate": estimate, "warnings": []}
    )
    lines = lines_of(capsys)
    assert lines[1].split() == ["layers", "number", "scheme", "method", "before", "after"]
    text = " ".join(" ".join(lines).split()).replace("\u00a0", " ")
    assert "attention output 48 w8a8_static_symmetric rtn 453 MB 114 MB" in text
    assert "48 × w8a8_static_symmetric, rtn default scheme" in text
    assert ("1 × 16bit, rtn " + "a long reason " * 9).strip() in text
    assert "about 3 h 25 min" in text
    assert "2.20 GB of memory" in text


def test_ranking_fits(record: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    measured = {"emd": 12.3456, "sqnr_db": -12.3, "cosine": -0.12345, "rank_flips": 1.0, "metric_loss": float("inf")}
    rows = [
        measured | {"name": row["name"], "block": row["block"], "unit": row["unit"], "mode": mode}
        for mode in ("one", "all but one")
        for row in record["plan"]
    ]
    groups = [measured | {"name": "attention_output", "block": None, "unit": None, "mode": "one"}]
    found = {
        "rows": rows,
        "groups": groups,
        "spearman_with_metric_loss": None,
        "metric": "Spearman of pairwise similarities",
    }
    print_ranking(found, top=15)
    lines = lines_of(capsys)
    headings = [line.split()[-6:] for line in lines if line.startswith(" #")]
    assert headings == [["EMD", "SQNR", "dB", "cosine", "flips", "loss"]] * 2
    assert sum("first 15 of 49" in line for line in lines) == 2
    assert sum("11.attention.output.dense" in line for line in lines) == 0
    assert sum(line.startswith("12 ") for line in lines) == 2


def test_measurements_fit(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"runtime": runtime, "batch": 128, "tokens": 8192, "median_ms": 123456.7, "per_second": 98765.4,
         "ratio_to_fp32": 12.34, "ratio_to_bf16": None, "work": "forward"}
        for runtime in ("onnxruntime int8", "bitwright")
    ]  # fmt: skip
    print_measurements({
        "rows": rows, "threads": 1, "peak_rss_mib": {"bitwright": 12345.6},
        "size": {"source_bytes": None, "checkpoint_bytes": 22_900_000},
        "skipped": [{"runtime": "openvino int8", "reason": "not installed: nncf; pip install 'bitwright[rivals]'"}],
    })  # fmt: skip
    lines = lines_of(capsys)
    assert lines[0] == "Speed with 1 thread; × is how many times as fast"
    assert lines[1].split("  ")[0] == "runtime"
    assert "onnxruntime int8" in lines[2]
    assert "bitwright[rivals]" in " ".join(lines)


def test_tokens_per_second_fit(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"runtime": runtime, "batch": 32, "tokens": 4096, "median_ms": 123456.7, "per_second": 98765.4,
         "ratio_to_fp32": None, "ratio_to_bf16": 12.34, "work": work}
        for work in ("prefill", "decode") for runtime in ("bitwright bf16", "bitwright")
    ]  # fmt: skip
    print_measurements({
        "rows": rows, "threads": 2, "peak_rss_mib": {}, "skipped": [],
        "size": {"source_bytes": 1, "checkpoint_bytes": 22_900_000},
    })  # fmt: skip
    lines = lines_of(capsys)
    assert lines[0] == "Tokens per second with 2 threads; × is how many times as fast"
    assert lines[2].split("  ")[0] == "bitwright bf16"
    assert [line.split()[-1] for line in lines[2:6]] == ["12.34×"] * 4


def test_help_lists_every_exit_code_in_80_columns() -> None:
    assert list(EXIT_MEANINGS) == list(ExitCode)
    lines = exit_code_lines().splitlines()
    assert max(map(len, lines)) <= 78
    for code, meaning in EXIT_MEANINGS.items():
        assert f"{int(code)} {meaning}" in " ".join(exit_code_lines().split())


def test_plan_of_many_experts_is_short(language_record: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    estimate = {"seconds": 1.0, "memory_bytes": 2.2e9, "disk_bytes": 1e8, "source_bytes": 4e8}
    print_preview({"model": "m", "plan": record_of(language_record).plan, "estimate": estimate, "warnings": ["w"]})
    lines = lines_of(capsys)
    assert len(lines) < 15
    assert any(line.split()[:2] == ["expert", "120"] for line in lines)


def test_layer_errors_fit(language_record: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    fisher = [
        {"name": row["name"], "block": 0, "role": "attention_output", "fisher": 1.2345e-7, "diagonal": 3.3e-9}
        for row in language_record["layers"]
    ]
    print_ranking({"model": "m", "layers": language_record["layers"], "fisher": fisher}, top=15)
    lines = lines_of(capsys)
    assert "awq_gptq (first 15 of 24)" in lines[0]
    assert "12.35 %" in " ".join(lines).replace("\u00a0", " ")
    assert any("first 15 of 132" in line for line in lines)
    unmeasured = [{k: v for k, v in row.items() if k != "error_rtn"} for row in language_record["layers"]]
    print_ranking({"model": "m", "layers": unmeasured}, top=2)
    assert "by rtn" not in " ".join(lines_of(capsys))


def test_comparison(record: dict[str, Any], here: Path, run: Run) -> None:
    for name in ("one", "two"):
        folder = here / name / "quantized-multilingual-mpnet"
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(record))
    first, second = (f"{name}/quantized-multilingual-mpnet" for name in ("one", "two"))
    outcome = run("compare", first, f"{second}/record.json", "--html", "page.html")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert max(map(len, lines)) <= 80
    heading = "".join("".join(lines[:2]).split())
    assert "one/" in heading  # equal names are told apart by their parents
    assert "two/" in heading
    assert (here / "page.html").read_text().startswith("<!")
    assert "budget" not in " ".join(outcome.out.partition("The same in both")[0].split())
    assert "budget" in outcome.out
    rows = json.loads(run("compare", first, second, "--json").out)
    assert {row["change"] for row in rows if row["name"] == "verdict"} == {"same"}


def test_doctor(run: Run) -> None:
    outcome = run("doctor")
    assert (outcome.code, outcome.err) == (0, "")
    assert max(map(len, outcome.out.splitlines())) <= 80
    found = json.loads(run("doctor", "--json").out)
    active = [kernel["isa"] for kernel in found["kernels"] if kernel["active"]]
    assert [f"This machine uses the {isa} kernels" for isa in active] == outcome.out.splitlines()[:1]
    assert set(MEANINGS) == set(ISAS)
    assert all(kernel["isa"] in outcome.out for kernel in found["kernels"])
    assert all(feature in outcome.out for feature in found["cpu_features"])
    assert found["cpu_features"] == [name for name, there in cpu_features().items() if there]


@pytest.mark.usefixtures("unverified")
def test_quantize_for_people_and_for_machines(tiny_model: TinyModel, here: Path, run: Run) -> None:
    model = tiny_model("bert")
    quick = ("--samples", "60", "--max-loss", "50%", "--no-speed")
    shown = run("quantize", model, "--out", "out", *quick)
    assert shown.code == 0
    assert shown.out.splitlines()[-1] == "out/report.html"
    assert shown.out.startswith("✓ Budget met: you can use it\n")
    assert "50 % allowed" in shown.out.replace("\u00a0", " ")
    assert "rounding weights" in shown.err
    assert "sensitivity" not in shown.err  # nothing has to fall back

    outcome = run("quantize", model, "--out", "again", "--sensitivity", *quick, "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out) == json.loads((here / "again" / "record.json").read_text())
    assert "sensitivity of every layer" in outcome.err
    assert "\x1b" not in shown.out + shown.err + outcome.out + outcome.err

    plan = run("quantize", model, "--dry-run", "--json", *quick)
    assert [row["scheme"] for row in json.loads(plan.out)["plan"]].count("w8a8") == 12
    assert plan.err.startswith("loading ")

    rebuilt = run("report", "out")
    assert (rebuilt.code, rebuilt.out, rebuilt.err) == (0, "out/report.html\n", "")


def test_analyze_for_machines(tiny_model: TinyModel, here: Path, run: Run) -> None:
    outcome = run("analyze", tiny_model("bert"), "--samples", "30", "--journal", "journal.jsonl", "--json")
    assert outcome.code == 0
    assert len([row for row in json.loads(outcome.out)["rows"] if row["mode"] == "one"]) == 12
    assert [path.name for path in here.iterdir()] == ["journal.jsonl"]
    again = run("analyze", tiny_model("bert"), "--samples", "30", "--journal", "journal.jsonl", "--top", "3")
    assert "first 3 of 12" in again.out


@pytest.mark.usefixtures("forked_workers", "unverified")
def test_language_models_from_the_command_line(tiny_llama: Path, here: Path, run: Run) -> None:
    quick = ("--method", "gptq", "--samples", "20", "--max-loss", "90%")
    (here / "small.yaml").write_text("calibration: {samples: 32, max_tokens: 32}\n")
    judged = run("quantize", tiny_llama, "--out", "out", "--recipe", "small.yaml", "--scheme", "w4a16_g32", *quick)
    assert judged.code == 0
    assert "score       perplexity" in judged.out
    written = run("quantize", tiny_llama, "--out", "only", "--scheme", "nf4", "--no-judge", "--json")
    record = json.loads(written.out)
    assert written.code == 0
    assert record["recipe"]["targets"] == ["bitwright"]
    assert not record.get("evaluation")
    assert "Budget met" not in (here / "only" / "report.html").read_text()
    found = json.loads(run("analyze", tiny_llama, "--scheme", "w8a8", "--json").out)
    assert len(found["layers"]) == 14
    assert run("compare", "out", "only").code == 0


@pytest.mark.usefixtures("unverified")
@pytest.mark.parametrize(("accept", "code"), [((), 3), (("--accept-point-estimate",), 0)])
def test_undecided_budget(tiny_model: TinyModel, here: Path, run: Run, accept: tuple[str, ...], code: int) -> None:
    (here / "one.py").write_text(
        "def number(encode):\n    return float(encode(['a list', 'a class'])[0, 0]) ** 2 + 1\n"
    )
    outcome = run(
        "quantize", tiny_model("bert"), "--out", "out", "--metric", "one.py:number", "--max-loss", "50%", "--samples",
        "30", "--no-speed", "--no-sensitivity", "--json", *accept,
    )  # fmt: skip
    assert outcome.code == code
    record = json.loads(outcome.out)
    assert record["evaluation"]["verdict"] == "undecided"
    assert record["exit_code"] == code
    assert any("single number" in text for text in record["warnings"])
    assert any(line.startswith("bitwright: budget undecided: loss") for line in outcome.remarks) == (code == 3)


def test_bench_hands_on_what_was_asked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def bench(directory: Path, **options: Any) -> dict[str, Any]:
        asked.update(options)
        return {"rows": [], "ratio": float("inf"), "too_busy": True, "other_load_cores": 0.9}

    monkeypatch.setattr("bitwright.pipeline.bench", bench)
    outcome = run("bench", "d", "--shape", "1x2", "--shape", "3x4", "--rounds", "2", "--no-rivals", "--json")
    assert json.loads(outcome.out)["ratio"] == "inf"
    assert outcome.code == 3
    assert "other programs kept 0.9 cores busy" in outcome.err
    assert asked["shapes"] == ((1, 2), (3, 4))
    assert (asked["rounds"], asked["rivals"], asked["threads"]) == (2, False, None)


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_is_complete_and_fits(command: tuple[str, ...], run: Run) -> None:
    outcome = run(*command, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert max(map(len, lines)) <= 80
    first = next(i for i, line in enumerate(lines) if line.rstrip(":") in ("Options", *GROUPS))
    described = lines[first + 1 :]
    names = [i for i, line in enumerate(described) if line.startswith("  -")]
    assert names
    for i in names:  # a text beside each option, or on the line below it
        assert len(described[i].strip().split("  ", 1)) == 2 or described[i + 1].startswith(" " * 10), described[i]
    if not command:
        assert all(f"  {name}  " in outcome.out for name in COMMANDS)


def test_every_option_of_every_command_is_in_its_help(run: Run) -> None:
    for name in COMMANDS:
        shown = run(name, "--help").out
        command = app.get_command(click.Context(app), name)
        for option in command.params:
            if isinstance(option, click.Option):
                assert any(f"{typed}" in shown for typed in (*option.opts, *option.secondary_opts)), option.name


def test_a_switch_that_is_on_shows_how_it_is_turned_off(run: Run) -> None:
    shown = run("quantize", "--help").out
    assert "  --no-judge " in shown
    assert "  --judge" not in shown
    assert "  --sensitivity " in shown


def test_results_can_be_had_as_json_and_work_without_progress(run: Run) -> None:
    """Each command that prints results takes --json, and each that shows progress takes --quiet."""
    with_json, with_quiet = (
        {name for name in COMMANDS if f"{option} " in run(name, "--help").out} for option in ("--json", "--quiet")
    )
    assert set(COMMANDS) - with_json == {"report", "completion", "chat", "registry"}
    assert with_quiet == {
        "quantize", "tune", "train", "plan", "analyze", "eval", "generate", "encode", "bench", "convert", "export",
        "verify", "fleet", "drift",
    }  # fmt: skip


def test_no_arguments_show_where_to_begin(run: Run) -> None:
    outcome = run()
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert max(map(len, lines)) <= 80
    commands = [line for line in lines if line.startswith("  bitwright ")]
    assert len(commands) == 3
    for line in commands:
        assert line.split()[1] in COMMANDS
    assert "--dry-run" in commands[0]
    assert "bitwright --help" in lines[-1]


def test_help_is_quick() -> None:
    times = []
    for _ in range(3):
        before = getrusage(RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "bitwright", "--help"], check=True, capture_output=True)
        after = getrusage(RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < HELP_CPU_S


def test_help_of_no_command_imports_torch() -> None:
    code = (
        "import sys\n"
        "from bitwright.cli import COMMANDS, main\n"
        "for name in COMMANDS:\n"
        "    sys.argv = ['bitwright', name, '--help']\n"
        "    try:\n        main()\n    except SystemExit as stop:\n        assert not stop.code\n"
        "assert not {'torch', 'transformers', 'bokeh', 'scipy'} & set(sys.modules)\n"
    )
    child = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr


def test_module_is_the_command_line() -> None:
    child = subprocess.run([sys.executable, "-m", "bitwright", "--version"], check=True, capture_output=True, text=True)
    assert child.stdout == f"bitwright, version {bitwright.__version__}\n"
    assert child.stderr == ""
