"""`benchmarks/ab.py` on one worktree beside itself: it measures every cell, and says what it found."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bitwright.pipeline import quantize
from bitwright.recipe import make_recipe

ROOT = Path(__file__).parents[1]


@pytest.mark.full
def test_a_worktree_beside_itself(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    if not (ROOT / ".venv" / "bin" / "python").exists():
        pytest.skip("this worktree has no .venv")
    recipe = make_recipe({"targets": ["bitwright"]})
    quantize(tiny_model("bert"), out=tmp_path / "int8", recipe=recipe, judged=False)
    command = [sys.executable, ROOT / "benchmarks" / "ab.py", ROOT, ROOT, tmp_path / "int8", "--rounds", "1"]
    command += ["--shape", "1x4", "--threads", "1", "--startup", "--json", tmp_path / "ab.json"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode in (0, 1), run.stderr  # nothing is said of tiny models on a busy machine
    assert "geometric mean" in run.stdout
    rows = json.loads((tmp_path / "ab.json").read_text())
    for part in ("noise", "measured"):
        measured = [row["what"] for row in rows if row["part"] == part]
        assert measured == ["engine", "generic", "load", "startup seconds", "startup MiB"]
    assert all(row["rounds"][0]["ratio"] > 0 for row in rows)
