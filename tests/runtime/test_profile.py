"""Where the time goes: every operator once, shares that add up, operations that are those of the model."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bitwright.cli import app
from bitwright.runtime.profile import profile


def test_shares_and_operations(tiny_model: Callable[..., Path]) -> None:
    rows = profile(tiny_model("bert"), [(2, 16), (1, 5)])
    for batch, tokens in ((2, 16), (1, 5)):
        here = [row for row in rows if (row["batch"], row["tokens"]) == (batch, tokens)]
        assert sum(row["share"] for row in here) == pytest.approx(1.0)
        operations = sum(row["gops"] * row["ms"] * 1e6 for row in here if row["gops"] is not None)
        linears = 2 * (4 * 32 * 32 + 2 * 32 * 64) * tokens
        assert all(0 < row["of_peak"] < 2 for row in here if row["gops"] is not None)
        assert operations == pytest.approx(2 * batch * (linears + 4 * tokens * tokens * 32))  # 2 blocks
    assert {row["operator"] for row in rows} >= {"embed", "norm", "attention", "linear 32 → 64, bf16, gelu"}


def test_the_command_prints_them(tiny_model: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    app.main(["bench", str(tiny_model("bert")), "--profile", "--shape", "1x8"], standalone_mode=False)
    assert "1 × 8 tokens, 1 thread" in capsys.readouterr().out
    app.main(["inspect", str(tiny_model("bert"))], standalone_mode=False)
    assert "bert, embedding" in capsys.readouterr().out
    app.main(["inspect", "--program", str(tiny_model("bert"))], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith("attention.self.query, key, value") for line in lines)
    assert max(map(len, lines)) <= 90
