"""Completion of commands, options and names, without an import of what the commands do."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from bitwright.cli import COMMANDS

Run = Callable[..., Any]


def completed(words: str) -> list[str]:
    """What bash is offered for the last of the words. The process that click's script asks must not import torch."""
    code = (
        "import atexit, sys\n"
        "from bitwright.cli import main\n"
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
        "sys.argv = ['bitwright']\n"
        "main()\n"
    )
    asked = {"_BITWRIGHT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    child = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True, check=False
    )
    assert child.stderr == "False\n"
    return [line.partition(",")[2] for line in child.stdout.splitlines()]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("bitwright ", {*COMMANDS}),
        ("bitwright q", {"quantize"}),
        ("bitwright quantize --max", {"--max-loss"}),
        ("bitwright quantize m --scheme w4", {"w4a16", "w4a8"}),
        ("bitwright plan m --range m", {"min_max", "mse", "moving_average"}),
    ],
)
def test_names_are_completed(words: str, offered: set[str]) -> None:
    assert set(completed(words)) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    named = run("completion", shell)
    assert (named.code, named.err) == (0, "")
    assert f"_BITWRIGHT_COMPLETE={shell}_complete" in named.out
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    assert run("completion").out == named.out


def test_a_shell_without_a_script_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/ksh")
    outcome = run("completion")
    assert outcome.code == 2
    assert "'ksh'" in outcome.remarks[0]
    assert "bash, zsh, fish" in outcome.remarks[0]
    assert "did you mean 'fish'" in run("completion", "fisch").remarks[0]
