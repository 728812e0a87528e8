"""docs/runtimes.md is what benchmarks/runtimes.py makes of its records, and these are true."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.pages import ROOT


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("runtimes", ROOT / "benchmarks" / "runtimes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_says_what_the_records_say(script: ModuleType) -> None:
    assert script.PAGE.read_text(encoding="utf-8") == script.page(script.saved_rows()), "run benchmarks/runtimes.py"


def test_a_failure_is_shown_with_its_reason(script: ModuleType) -> None:
    first = script.saved_rows()[0]
    page = script.page([first._replace(runtime="transformers", ok=False, detail="its outputs differ by 0.5")])
    assert "| no (1) |" in page
    assert "its outputs differ by 0.5" in page
    untried = script.page([first._replace(runtime="transformers", ok=None)])
    assert "yes |" not in untried


@pytest.mark.full
@pytest.mark.parametrize("i", [2, 5])
def test_a_result_does_what_the_page_says(script: ModuleType, tmp_path: Path, i: int) -> None:
    pytest.importorskip("compressed_tensors")
    (directory,) = script.small_results(tmp_path, [script.SMALL[i]])
    said = {row[:4]: row.ok for row in script.saved_rows()}
    found = list(script.rows_of(directory))
    assert {row.runtime for row in found} >= {"bitwright", "transformers, enabled"}
    assert {row[:4]: row.ok for row in found} == {row[:4]: said[row[:4]] for row in found}
