"""Whether messages can be read at once: their sentences are short, and phrases that nobody understood stay away.

A message may be put together from literals in several places. So every literal counts that is long enough to be one and
is not a docstring: what is raised, warned of, said on the way, or given as a reason.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import bitwright

SRC = Path(bitwright.__file__).parent
ROOT = Path(__file__).parents[1]

MEAN = 18  # words of a sentence
MOST = 35
LEAST = 5  # words of a literal that may be a message

# Files whose literals are not messages, with the reason.
OTHER = {
    "pipeline/hard_texts.py": "texts that tokenizers read differently",
}
# Sentences that may be longer than MOST, by their beginning, with the reason. None is, now.
LONG: dict[str, str] = {}
# What readers stumbled over, under what to write instead.
PHRASES = {
    "does not support": r"\bha(s|ve) no builder",
    "subject first": r"^Of (a|an|the) ",
    "not, or there is no": r"\bit is none\b",
    "for whom": r"\bfor who\b",
    "Pareto front": r"(?<!Pareto )\bfront of speed",
    "run it again to continue": r"\bgo(es|ing)? on from there\b",
    "but, or because": r"\bwhich is meant\b",
}


def literals(tree: ast.Module) -> Iterator[str]:
    """Every literal of a module but docstrings; a value in it is one word."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    skipped = {
        id(node.body[0].value)  # type: ignore[attr-defined]
        for node in ast.walk(tree)
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "VALUE" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value


def messages(file: Path) -> list[str]:
    """The literals of a file that may be messages, or parts of one."""
    found = literals(ast.parse(file.read_text(encoding="utf-8")))
    return [text for text in found if len(words(text)) >= LEAST and not re.search(r"\\[sdwb]|\n\s*\n|</", text)]


def words(text: str) -> list[str]:
    return re.findall(r"\w[\w'.,/=-]*", text)


def sentences(text: str) -> list[str]:
    """A text cut at the ends of its sentences. Semicolons and colons end none, so that they cannot hide long ones."""
    parts = re.split(r"[.?!]+(?=\s|$)", text)
    return [part.strip() for part in parts if words(part)]


def prose(markdown: str) -> str:
    """The running text of a page: no code, tables, headings or addresses; each item of a list is a sentence."""
    text = re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not re.match(r"\s*(\||#|    |<|!\[)", line)]
    text = "\n".join(re.sub(r"^\s*([-*]|\d+\.) ", ". ", line) for line in lines)
    return re.sub(r"\n\s*\n", ".\n\n", re.sub(r"\]\([^)]*\)", "]", text))


def mean_length(found: list[str]) -> float:
    return sum(len(words(sentence)) for sentence in found) / len(found)


@pytest.fixture(scope="module")
def told() -> dict[str, str]:
    """Every message of the program, by the file that has it and itself."""
    return {
        f"{name}: {text}": text
        for file in sorted(SRC.rglob("*.py"))
        if (name := str(file.relative_to(SRC))) not in OTHER
        for text in messages(file)
    }


def test_sentences_of_messages_are_short(told: dict[str, str]) -> None:
    assert len(told) > 500
    assert mean_length([sentence for text in told.values() for sentence in sentences(text)]) <= MEAN


def test_no_sentence_of_a_message_is_very_long(told: dict[str, str]) -> None:
    found = {name for name, text in told.items() for one in sentences(text) if len(words(one)) > MOST}
    assert {name for name in found if not told[name].startswith(tuple(LONG))} == set()


@pytest.mark.parametrize("pattern", PHRASES.values(), ids=PHRASES)
def test_messages_are_free_of(told: dict[str, str], pattern: str) -> None:
    found = [name for name, text in told.items() if re.search(pattern, text)]
    assert found == []


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "src/bitwright/texts/README.md"])
def test_sentences_of_pages_are_short(page: str) -> None:
    found = sentences(prose((ROOT / page).read_text(encoding="utf-8")))
    assert len(found) > 5
    assert mean_length(found) <= MEAN


def test_what_is_counted() -> None:
    tree = ast.parse('"""Doc of a module here now."""\nraise E(f"{where}: a b {c!r} d; do e")\n')
    assert list(literals(tree)) == ["VALUE: a b VALUE d; do e"]
    assert sentences("a.py: b c; do e. So f") == ["a.py: b c; do e", "So f"]
    assert mean_length(["one two", "one two three four"]) == 3
    assert sentences(prose("# Title\n\nA b.\n\n- c d\n- e\n\n```sh\nx\n```\n| t |\n")) == ["A b", "c d", "e"]
