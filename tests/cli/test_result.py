"""What a run prints when it is done: at most twelve lines, the verdict first, and nothing that was not measured."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bitwright.cli import result
from bitwright.cli.result import print_result
from bitwright.record import record_of
from tests.cli.conftest import lines_of

LINES_OF_A_RESULT = 12
SENTENCE = "A model is 2.7 times smaller and twice as fast. It loses 1.23 % of its search quality, more than you allow."


def result_lines(
    record: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """What a run that made this record prints, with a headline as long as one may be: twelve lines at most."""
    monkeypatch.setattr("bitwright.report.verdict_sentence", lambda record: SENTENCE)
    print_result(record_of(record), Path("out"))
    lines = lines_of(capsys)
    assert len(lines) <= LINES_OF_A_RESULT
    assert lines[-1] == "out/report.html"
    return lines


def test_result_fits(
    record: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = result_lines(record | {"verify": record["verify"][:2]}, capsys, monkeypatch)
    text = " ".join(" ".join(lines).split()).replace("\u00a0", " ")
    assert lines[0] == "✕ Budget not met"
    assert text.startswith(f"{lines[0]} {SENTENCE}")
    assert "loss 1.23 %; 95 % sure: at most 1.49 %; 1 % allowed" in text
    assert "size 1.11 GB → 412 MB" in text
    assert "speed 2.4× at 64 × 512 tokens; against the original in torch" in text
    assert "checked in bitwright" in text
    assert "not in transformers: compressed_tensors not installed" in text


def test_the_fullest_result_fits(
    record: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "outputs differ by 0.5 where 0.1 is allowed, on a text of the hardest kind, and more of it in the report"
    targets = ("bitwright", "transformers", "sentence-transformers", "vllm")
    checks = [{"target": t, "ok": ok, "checks": {}, "detail": long} for t in targets for ok in (False, True, None)]
    rows = record["speed"]["rows"]
    shapes = [row | {"batch": n} for row in rows for n in (1, 8, 32)]
    full = {"verify": checks, "smallest": {"bytes": 9, "int8_bytes": 10}, "speed": record["speed"] | {"rows": shapes}}
    for kinds in ([{"kind": "news", "n": 5, "loss": 0.01}] * 18, None):
        judged = record["evaluation"] | {"kinds": kinds, "languages": ["Portuguese"] * 9}
        lines = result_lines(record | full | {"evaluation": judged}, capsys, monkeypatch)
        text = " ".join(" ".join(lines).split())
        assert "FAILED in bitwright, transformers" in text
        assert "loss" in text


def test_result_by_kinds_of_text_names_the_worst(
    record: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = record["speed"]["rows"]
    kinds = [{"kind": kind, "n": 55, "loss": loss} for kind, loss in (("news", 0.001), ("queries", 0.002))]
    languages = ["English", "German", "Spanish", "Italian", "Polish"]
    judged = record["evaluation"] | {"kinds": kinds, "languages": languages, "verdict": "met"}
    changed = {"evaluation": judged, "verify": record["verify"][:2], "speed": record["speed"] | {"rows": rows * 2}}
    text = " ".join(" ".join(result_lines(record | changed, capsys, monkeypatch)).split()).replace("\u00a0", " ")
    assert "95 % sure: at most 1.49 % on a new kind; 1 % allowed" in text
    assert "worst kind queries, 0.2 %" in text
    assert "judged on 500 built-in texts of 2 kinds" in text


def test_result_of_a_language_model_fits(
    language_record: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = result_lines(language_record | {"verify": language_record["verify"][:2]}, capsys, monkeypatch)
    text = " ".join(" ".join(lines).split()).replace("\u00a0", " ")
    assert "score perplexity 24.13 → 24.50" in text
    assert "judged on 20 held-out windows" in text


def test_a_failed_check_is_never_beside_a_budget_that_is_met(
    record: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    met = record | {"evaluation": record["evaluation"] | {"verdict": "met"}}
    lines = result_lines(met, capsys, monkeypatch)
    assert lines[0] == "✕ Check failed: do not use it"
    text = " ".join(" ".join(lines).split())
    assert "FAILED in sentence-transformers: loading or running failed" in text
    assert "met" not in re.findall(r"\w+", text)


@pytest.mark.parametrize(("verdict", "style"), [("met", "1;32m"), ("not met", "1;31m"), ("undecided", "1;33m")])
def test_the_verdict_comes_first_and_in_its_colour(
    verdict: str, style: str, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for there in (True, False):
        file = io.StringIO()
        screen = Console(file=file, width=80, force_terminal=there, color_system="standard" if there else "auto")
        monkeypatch.setattr(result, "out", screen)
        judged = record["evaluation"] | {"verdict": verdict}
        print_result(record_of(record | {"evaluation": judged, "verify": []}), Path("out"))
        assert file.getvalue().startswith(f"\x1b[{style}") == there


def test_what_was_not_judged_claims_nothing(
    language_record: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    judged = ("evaluation", "verify", "speed")
    unjudged = {key: value for key, value in language_record.items() if key not in judged}
    print_result(record_of(unjudged), Path("out"))
    text = " ".join(" ".join(lines_of(capsys)).split())
    assert "loss not measured" in text
    assert "budget" not in text
    assert "checked" not in text
