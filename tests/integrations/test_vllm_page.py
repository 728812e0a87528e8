"""docs/vllm.md has the table that benchmarks/vllm_kernels.py makes of what the tests of the plug-in recorded."""

import json
from importlib import import_module
from typing import Any

import pytest

from tests.pages import ROOT


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module("vllm_kernels")


def test_the_page_says_what_the_tests_saw(script: Any) -> None:
    page = script.PAGE.read_text(encoding="utf-8")
    assert page == script.with_table(page, script.saved_rows()), "run benchmarks/vllm_kernels.py"


def test_releases_that_choose_alike_share_a_line(script: Any) -> None:
    rows = [
        {"name": "w8a8", "format": "ct", "release": release, "side": side, "kernels": {kernel: 8}, "apart": 0.04}
        for release, mine in (("0.31.0", "A"), ("0.32.0", "A"), ("0.33.0", "B"))
        for side, kernel in (("bitwright", mine), ("vllm", "C"))
    ]
    lines = script.table(script.taken(map(json.dumps, rows))).splitlines()[2:]
    assert lines == [
        "| ct | `w8a8` | `A` (8) | `C` (8) | 0.31.0, 0.32.0 | 0.040 |",
        "| ct | `w8a8` | `B` (8) | `C` (8) | 0.33.0 | 0.040 |",
    ]
    assert script.taken([json.dumps(rows[0])]) == []
