"""`bitwright plan`: evidence, decision and bytes within 80 columns; sizes of a config alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TinyModel = Callable[..., Path]
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tiny_model: TinyModel) -> Path:
    return tiny_model("bert")


def width(text: str) -> int:
    return max(map(len, text.splitlines()))


def test_plan_shows_evidence_decision_and_bytes(model: Path, run: Run) -> None:
    outcome = run("plan", model, "--scheme", "w4a16", "--max-loss", "0.0001%")
    assert outcome.code == 0, outcome.err
    assert width(outcome.out) <= 80
    for words in (
        "Evidence",
        "kurtosis",
        "Expected error",
        "decision",
        "not rtn",
        "not smoothquant",
        "cost",
        "Plan for",
    ):
        assert words in outcome.out
    assert "16bit" in outcome.out  # the embeddings


def test_json_holds_what_is_shown(model: Path, run: Run) -> None:
    found = json.loads(run("plan", model, "--scheme", "w4a16", "--max-loss", "0.0001%", "--json").out)
    assert found["decision"]["reason"]
    assert found["decision"]["units"]
    assert {row["method"] for row in found["plan"]} & {"gptq", "awq_gptq"}
    assert "method: auto" not in found["recipe"]


@pytest.mark.parametrize(
    ("options", "groups"), [(("--method", "gptq"), 3), (("--recipe", "encoder-int8"), 0)], ids=["method", "recipe"]
)
def test_the_choice_can_be_overruled(
    model: Path, run: Run, monkeypatch: pytest.MonkeyPatch, options: tuple[str, str], groups: int
) -> None:
    """And how fast the machine is, or how busy, is then of no account: it is not timed."""
    monkeypatch.setattr("bitwright.pipeline.resources.resources", None)
    outcome = run("plan", model, *options)
    assert outcome.code == 0, outcome.err
    assert "Nothing to decide" in outcome.out
    assert outcome.out.count(" gptq ") == groups, outcome.out


def test_limits_decide(model: Path, run: Run) -> None:
    outcome = run("plan", model, "--hours", "1e-12")
    assert "round to nearest (rtn) for everything" in " ".join(outcome.out.split())
    assert "Evidence" not in outcome.out
    outcome = run("plan", model, "--memory", "1e-6")
    assert "GB of memory" in " ".join(outcome.out.split())


def test_a_config_alone_is_sized(model: Path, run: Run, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_bytes((model / "config.json").read_bytes())
    (tmp_path / "of another matter").symlink_to("/etc/passwd")  # no model directory: it is not looked through
    outcome = run("plan", config)
    assert outcome.code == 0, outcome.err
    assert width(outcome.out) <= 80
    assert all(f"\n{name} " in outcome.out for name in ("fp32", "16bit", "w8a8", "w4a16", "w3a16", "nf4", "ternary"))
    assert "keys and values" not in outcome.out  # an encoder has no cache
    rows = json.loads(run("plan", config, "--recipe", "tiny-nf4", "--json").out)["rows"]
    assert rows[-1]["scheme"] == "recipe"
    assert rows[-1]["bytes"] < rows[1]["bytes"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scheme", "w5a16"], "scheme 'w5a16' is unknown"),
        (["--method", "gtpq"], "did you mean 'gptq'"),
        (["--hours", "0"], "--hours"),
        (["--max-loss", "2"], "must lie between"),
    ],
)
def test_what_makes_no_sense_is_told(model: Path, run: Run, options: list[str], words: str) -> None:
    outcome = run("plan", model, *options)
    assert outcome.code == 2
    assert words in outcome.remarks[0]
