"""What a page of Markdown shows: blocks, commands, links, headings, sentences. For the tests of README and docs."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import click

from bitwright.cli import COMMANDS, app

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

_FENCED = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_EXPECTED = re.compile(r"exit code (\d+)")


class Block(NamedTuple):
    """A fenced block. title: the file that it is, if it is one."""

    language: str
    title: str | None
    text: str


class Command(NamedTuple):
    """A command line of `bitwright`. words: its arguments. into: the file that its output goes to. expected: the exit
    code that its comment names.
    """

    words: tuple[str, ...]
    into: str | None
    expected: int | None


def read(page: str) -> str:
    """The text of a page, by its path from the root. Lines that a backslash continues are one."""
    return re.sub(r" \\\n\s*", " ", (ROOT / page).read_text(encoding="utf-8"))


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [Block(language, title or None, body) for language, title, body in _FENCED.findall(text)]


def commands(block: Block) -> list[Command]:
    """The lines of `bitwright` in a shell block, in order."""
    found = []
    for line in block.text.splitlines():
        code, _, comment = line.partition(" #")
        words = shlex.split(code)
        if words[:1] == ["bitwright"]:
            into = words.pop() if words[-2:-1] == [">"] else None
            expected = _EXPECTED.search(comment)
            found.append(
                Command(tuple(words[1:-1] if into else words[1:]), into, int(expected[1]) if expected else None)
            )
    return found


def shown_commands(text: str) -> list[str]:
    """Every command line of `bitwright` that a page shows: in blocks, indented, or within a line."""
    found = re.findall(r"(?:^|`|    )(bitwright [a-z][^`\n]*)", text, re.MULTILINE)
    return sorted({line.split(" #")[0].split(" > ")[0].strip(" |") for line in found})


def unknown_options(line: str) -> set[str]:
    """The options of a command line that the command does not have.

    Raises:
        AssertionError: there is no such command.
    """
    _, name, *words = shlex.split(line)
    assert name in COMMANDS, line
    command = app.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    if isinstance(command, click.Group) and words and not words[0].startswith("-"):
        assert words[0] in command.commands, line
        command = command.commands[words[0]]
    known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)} | {"--help", "--debug"}
    return {word for word in words if word.startswith("--")} - known


def make_targets(text: str) -> set[str]:
    """The targets of make that a page names, in blocks or as code."""
    return set(re.findall(r"(?:^|`|    )make ([a-z-]+)(?=`|$|  +#)", text, re.MULTILINE))


def without_code(text: str) -> str:
    """A page without its fenced blocks."""
    return _FENCED.sub("", text)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them; `{#name}` after a heading names its own."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE):
        named = re.search(r"\{#([\w-]+)\}$", heading)
        found.add(named[1] if named else re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-"))
    return found


def broken_links(page: str) -> list[str]:
    """The links of a page to files or anchors that do not exist; those to other hosts are not followed."""
    text, folder = read(page), (ROOT / page).parent
    broken = []
    for target in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", without_code(text)):
        path, _, anchor = target.partition("#")
        file = folder / path if path else ROOT / page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(target)
    return broken


def sentence_lengths(text: str) -> list[int]:
    """Words in each sentence of a page's prose. Headings, tables and blocks are left out; a code span is a word."""
    prose = re.sub(r"^(?:#|\||:::|!!!|    options:).*$", "", without_code(text), flags=re.MULTILINE)
    prose = re.sub(r"\]\([^)]*\)", "", re.sub(r"`[^`]*`", "code", prose))
    parts = re.split(r"(?<=[.!?])\s+|\n\s*\n|^\s*(?:[-*]|\d+\.) ", prose, flags=re.MULTILINE)
    return [len(words) for part in parts if (words := re.findall(r"\w[\w'’-]*", part))]
