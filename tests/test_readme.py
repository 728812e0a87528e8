"""What the README shows exists: commands with their options, Python names, files."""

import ast
import re
import shlex
from pathlib import Path

import pytest

import bitwright
from bitwright.cli import COMMANDS, app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
SHOWN = sorted(
    {line.split("#")[0].strip(" `|") for line in re.findall(r"(?:^|[`| ])(bitwright [a-z].*)", README, re.MULTILINE)}
)


@pytest.mark.parametrize("line", SHOWN)
def test_command_exists_with_its_options(line: str) -> None:
    _, name, *words = shlex.split(line.partition("`")[0])
    assert name in COMMANDS
    command = app.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= known


def test_commands_were_found() -> None:
    assert len(SHOWN) >= 8


def test_make_targets_exist() -> None:
    for target in re.findall(r"make ([a-z]+)  +#", README):
        assert f"\n{target}:" in MAKEFILE


def test_python_names_exist() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    used = {
        node.attr
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "bitwright"
    }
    assert used == {"quantize", "load"}
    assert used <= set(bitwright.__all__)


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README) + re.findall(
        r"python ((?:benchmarks|examples)/\S+\.py)", README
    ):
        path, _, section = target.partition("#")
        assert (ROOT / path).exists(), target
        headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE) if section else []
        assert section in {"", *(re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings)}
