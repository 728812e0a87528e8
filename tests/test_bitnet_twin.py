"""`benchmarks/bitnet_twin.py` on tiny models: what it trains, what it prints, and that nothing is trained twice."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
TINY = ["--width", "32", "--layers", "1", "--context", "16", "--batch", "4", "--steps", "4", "--rates", "1e-3", "4e-3"]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bitnet_twin", ROOT / "benchmarks" / "bitnet_twin.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_twins_are_trained_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    twin, text = script(), tmp_path / "text.txt"
    text.write_text("The mill turns the river, and the river turns the mill. " * 40)
    command = [str(text), *TINY, "--json", str(tmp_path / "twin.json"), "--folder", str(tmp_path / "runs")]
    twin.main(command)
    printed = capsys.readouterr().out
    kept = json.loads((tmp_path / "twin.json").read_text())
    assert kept["steps"] == 4
    assert len(kept["runs"]) == 2 + 2 + 1 + 1
    wide = next(run for name, run in kept["runs"].items() if "width × 2" in name)
    equal = next(run for name, run in kept["runs"].items() if name.startswith("ternary, width × 1"))
    assert wide["parameters"] > 2 * equal["parameters"]
    assert all(run["curve"][-1][1] < run["curve"][0][1] for run in kept["runs"].values())
    assert "ternary, double width" in printed
    monkeypatch.delattr(twin, "train")
    twin.main(command)
    assert capsys.readouterr().out == printed
    with pytest.raises(SystemExit, match="is of other settings"):
        twin.main([*command, "--width", "64"])


def test_the_minutes_give_the_steps(tmp_path: Path) -> None:
    twin, text = script(), tmp_path / "text.txt"
    text.write_text("All that is gold does not glitter. " * 40)
    asked = twin.asked_for([str(text), *TINY])
    rows, count = twin.windows([text], asked.context)
    assert rows.shape[1] == asked.context + 1
    assert 0 < count < len(rows)
    run = twin.Run(ternary=True, rate=1e-3)
    model = twin.model_of(run, asked)
    steps = twin.steps_in(model, twin.data_of(model, rows, count, 4), twin.settings_of(run, model, asked, 10), 0.1)
    assert steps > 1
