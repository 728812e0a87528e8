"""bitwright registry: a person's way from a new version to one that is served, and back."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bitwright.cli.registry import command
from bitwright.registry import mirror
from bitwright.registry.store import linked
from tests.conftest import Run
from tests.registry.conftest import plain

__all__ = ["plain"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the registry will be. MLflow does not follow it: tests/registry has that."""
    monkeypatch.setattr(mirror, "can_mirror", lambda registry: False)
    monkeypatch.setenv("BITWRIGHT_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setattr("bitwright.registry.add.sign_directory", lambda *args: False)
    return tmp_path / "registry"


def served(root: Path) -> int | None:
    return linked(root / "models" / "m" / "current")


def data(run: Run, *words: object) -> Any:
    outcome = run("registry", *words, "--json")
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_a_version_is_added_promoted_and_rolled_back(run: Run, root: Path, plain: Path) -> None:
    for _ in range(2):
        assert run("registry", "add", plain, "--name", "m", "--no-gates").code == 0
    outcome = run("registry", "promote", "m", "1", "--force", "--reason", "the first")
    assert (outcome.code, served(root)) == (0, 1)
    assert outcome.out.startswith("m: version 1 is served, since ")
    assert data(run, "promote", "m", "--force", "--reason", "newer")["replaces"] == 1
    assert data(run, "rollback", "m", "--reason", "slow")["version"] == served(root) == 1
    (listed,) = data(run, "list")
    assert (listed["champion"], listed["previous"], listed["challenger"]) == (1, None, None)
    history = data(run, "history", "m")
    assert [(one["what"], one["version"], one["reason"]) for one in history] == [
        ("promote", 1, "the first"), ("promote", 2, "newer"), ("rollback", 1, "slow")
    ]  # fmt: skip
    assert [one["version"] for one in data(run, "history", "--at", history[1]["since"])] == [2]
    assert data(run, "history", "--at", "2001-01-01") == []
    assert data(run, "verify")["damage"] == []
    assert {row["name"] for row in data(run, "diff", "m", "1", "2")} >= {"files", "vectors"}
    for words in (("list",), ("list", "m"), ("history",), ("verify",), ("diff", "m", "1", "2")):
        outcome = run("registry", *words)
        assert outcome.code == 0
        assert max(map(len, outcome.out.splitlines())) <= 80


def test_what_did_not_pass_is_not_promoted(run: Run, root: Path, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitwright.registry import gates

    table = {"size": lambda trial: ("failed", "it is too large", {}), "space": lambda trial: ("skipped", "none", {})}
    monkeypatch.setattr(gates, "GATES", table)
    outcome = run("registry", "add", plain, "--name", "m")
    assert outcome.code == 3
    assert "it is too large" in outcome.out
    outcome = run("registry", "promote", "m")
    assert outcome.code == 2
    assert "did not pass size against no champion" in outcome.err
    assert served(root) is None
    assert run("registry", "promote", "m", "--force").code == 2
    assert run("registry", "promote", "m", "--force", "--reason", "it is small enough").code == 0
    monkeypatch.setitem(table, "size", lambda trial: ("passed", "small", {}))
    assert run("registry", "add", plain, "--name", "m", "--no-gates").code == 0
    outcome = run("registry", "promote", "m")  # the gates run now
    assert (outcome.code, served(root)) == (0, 2)
    assert "passed" in outcome.out


def test_damage_is_told_and_the_exit_code_is_1(run: Run, root: Path, plain: Path) -> None:
    run("registry", "add", plain, "--name", "m", "--no-gates")
    shutil.rmtree(root / "models" / "m" / "versions" / "1")
    outcome = run("registry", "verify", "--quick")
    assert (outcome.code, outcome.remarks) == (1, ["bitwright: m: the files of version 1 are gone"])
    assert run("registry", "verify", "--json").code == 1
    (root / "log.jsonl").write_text("")
    outcome = run("registry", "list")
    assert outcome.code == 1
    assert "the log was cut: its signed head counts 2 entries, and there are 0" in outcome.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("list",), "there is no registry here"),
        (("promote", "m"), "there is no registry here"),
        (("add", "PLAIN", "--name", "a/b"), "cannot name a model"),
        (("ad",), "no command 'ad' (did you mean 'add'?)"),
        (("promote", "m", "0"), "0 is not in the range"),
    ],
)
def test_wrong_input_is_told(run: Run, root: Path, plain: Path, words: tuple[str, ...], said: str) -> None:
    outcome = run("registry", *(str(plain) if word == "PLAIN" else word for word in words))
    assert outcome.code == 2
    assert said in " ".join(outcome.err.split())
    assert not root.exists()


def test_mlflow_is_chosen_once(run: Run, root: Path, plain: Path) -> None:
    run("registry", "add", plain, "--name", "m", "--no-gates", "--mlflow", "none")
    assert json.loads((root / "registry.json").read_text())["mlflow"] is None
    outcome = run("registry", "add", plain, "--name", "m", "--no-gates", "--mlflow", "http://elsewhere")
    assert outcome.code == 2
    assert "is for a new registry" in outcome.err


def test_without_mlflow_the_pip_line_is_told(
    run: Run, root: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlflow" else find(name))
    outcome = run("registry", "add", plain, "--name", "m", "--mlflow", "http://elsewhere")
    assert outcome.code == 2
    assert "pip install 'bitwright[platform]'" in outcome.err
    assert not root.exists()


LIGHT = """
import sys
from bitwright.cli import main
sys.argv = ["bitwright", "registry", *sys.argv[1:]]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print([name for name in ("torch", "numpy", "mlflow", "model_signing", "transformers") if name in sys.modules])
"""


def test_changes_import_no_library(run: Run, root: Path, plain: Path) -> None:
    """Milliseconds count here, and a machine without torch may promote."""
    for mirrored in (("--mlflow", "none"), ()):
        assert run("registry", "add", plain, "--name", "m", "--no-gates", *mirrored).code == 0
    forced = ("--force", "--reason", "a test")
    for words in (("promote", "m", "1", *forced), ("promote", "m", "2", *forced), ("rollback", "m"), ("list",)):
        done = subprocess.run([sys.executable, "-c", LIGHT, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "[]", words


def test_texts_that_cannot_be_used_are_told_before_anything_is_copied(run: Run, root: Path, plain: Path) -> None:
    outcome = run("registry", "add", plain, "--name", "m", "--texts", "nowhere.txt")
    assert outcome.code == 2
    assert "nowhere.txt" in outcome.err
    assert not root.exists()


def test_a_process_that_cannot_be_started_fails_nothing(
    run: Run, root: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    def fail(registry: object) -> None:
        raise OSError("no memory")

    monkeypatch.setattr(mirror, "start", fail)
    assert run("registry", "add", plain, "--name", "m", "--no-gates").code == 0
    assert run("registry", "promote", "m", "--force", "--reason", "a test").code == 0
    assert served(root) == 1


def test_every_command_has_json_and_its_help_fits(run: Run) -> None:
    for name in command.commands:
        shown = run("registry", name, "--help").out
        assert "--json " in shown
        assert max(map(len, shown.splitlines())) <= 80
    assert set(command.commands) == {"add", "list", "promote", "rollback", "history", "verify", "diff"}
