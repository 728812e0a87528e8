"""What the README shows exists: commands with their options, Python names, files."""

import ast
import re

import pytest

import bitwright
from tests.pages import MAKEFILE, ROOT, broken_links, make_targets, read, shown_commands, unknown_options

README = read("README.md")
SHOWN = shown_commands(README)


@pytest.mark.parametrize("line", SHOWN)
def test_command_exists_with_its_options(line: str) -> None:
    assert unknown_options(line) == set()


def test_commands_were_found() -> None:
    assert len(SHOWN) >= 8


def test_make_targets_exist() -> None:
    found = make_targets(README)
    assert found >= {"demo", "test"}
    assert {target for target in found if f"\n{target}:" not in MAKEFILE} == set()


def test_python_names_exist() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    used = {
        node.attr
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "bitwright"
    }
    assert used == {"quantize", "load"}
    assert used <= set(bitwright.__all__)


def test_links_lead_somewhere() -> None:
    assert broken_links("README.md") == []


def test_named_programs_exist() -> None:
    for path in re.findall(r"python ((?:benchmarks|examples)/\S+\.py)", README):
        assert (ROOT / path).exists(), path
