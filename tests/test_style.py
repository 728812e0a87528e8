"""How the code is written, as far as a test can tell: few parameters, nothing written twice."""

import ast
import io
import keyword
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import bitwright

SRC = Path(bitwright.__file__).parent
ROOT = Path(__file__).parents[1]

MOST_PARAMETERS = 8
# The keyword-only functions that users call from Python: their parameters are the options of a command.
PUBLIC = {
    ("pipeline/run.py", "quantize"),
    ("pipeline/study.py", "analyze"),
    ("pipeline/evaluation.py", "evaluate"),
    ("runtime/encoding.py", "encode"),  # as sentence-transformers has it
}

RUN = 12  # lines
FEWEST_SHAPES = 5  # of the lines of a run; with fewer it is a table
# Pairs of files whose runs may be alike, with the reason. Variants of one kernel would be one.
ALIKE = {
    ("src/bitwright/families/encoders.py", "src/bitwright/families/encoders.py"): "rows of one table",
}

Line = tuple[int, str]  # number and shape


def is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether click calls it: its parameters are options."""
    return any("click" in ast.unparse(one) or ".command" in ast.unparse(one) for one in function.decorator_list)


def test_no_function_has_many_parameters() -> None:
    found = set()
    for path in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_command(node):
                arguments = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                if len(set(arguments) - {"self", "cls"}) > MOST_PARAMETERS:
                    found.add((str(path.relative_to(SRC)), node.name))
    assert found == PUBLIC


def python_lines(text: str) -> Iterator[Line]:
    """Of each line of code: its tokens, names and literals alike. Docstrings, comments and imports are left out."""
    docstrings = {
        node.body[0].lineno + i
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node, clean=False) is not None
        for i in range((node.body[0].end_lineno or 0) - node.body[0].lineno + 1)
    }
    shapes: dict[int, list[str]] = defaultdict(list)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            shapes[token.start[0]].append(token.string if keyword.iskeyword(token.string) else "n")
        elif token.type in (tokenize.NUMBER, tokenize.STRING):
            shapes[token.start[0]].append("0")
        elif token.type == tokenize.OP:
            shapes[token.start[0]].append(token.string)
    for number, shape in sorted(shapes.items()):
        if number not in docstrings and shape[0] not in ("import", "from"):
            yield number, " ".join(shape)


_CPP_KEYWORDS = frozenset(
    [
        "if",
        "else",
        "for",
        "while",
        "do",
        "switch",
        "case",
        "return",
        "struct",
        "const",
        "constexpr",
        "static",
        "template",
        "auto",
    ]
)


def cpp_lines(text: str) -> Iterator[Line]:
    """The same of C++; directives of the preprocessor are left out."""
    text = re.sub(r"/\*.*?\*/", lambda found: "\n" * found[0].count("\n"), text, flags=re.DOTALL)
    for number, line in enumerate(text.splitlines(), 1):
        words = re.findall(r'"(?:\\.|[^"])*"|\w+|[^\s\w]', line.partition("//")[0])
        if words and words[0] != "#":
            yield number, " ".join(map(cpp_shape, words))


def cpp_shape(word: str) -> str:
    """A literal is 0, a name n; keywords and signs stay."""
    if word[0] in '"0123456789':
        return "0"
    return "n" if (word[0].isalpha() or word[0] == "_") and word not in _CPP_KEYWORDS else word


def code() -> dict[str, list[Line]]:
    """The lines that hold more than brackets, by file."""
    found = {path: python_lines(path.read_text(encoding="utf-8")) for path in SRC.rglob("*.py")}
    native = (path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".h"))
    found |= {path: cpp_lines(path.read_text(encoding="utf-8")) for path in native}
    return {
        str(path.relative_to(ROOT)): [line for line in lines if re.search(r"\w", line[1])]
        for path, lines in found.items()
    }


def repeated(files: dict[str, list[Line]]) -> Iterator[tuple[str, int, str, int]]:
    """(file, line, file, line): where the same run of shapes begins a second time, but not within one before it."""
    first: dict[tuple[str, ...], tuple[str, int]] = {}
    for file, lines in sorted(files.items()):
        for i in range(len(lines) - RUN + 1):
            run = tuple(shape for _, shape in lines[i : i + RUN])
            if len(set(run)) >= FEWEST_SHAPES:
                other, j = first.setdefault(run, (file, i))
                if other != file or i - j >= RUN:
                    yield other, files[other][j][0], file, lines[i][0]


def test_no_run_of_lines_stands_twice() -> None:
    found = [hit for hit in repeated(code()) if (hit[0], hit[2]) not in ALIKE]
    assert not found, "\n".join(f"{a}:{i} and {b}:{j}" for a, i, b, j in found)


def test_a_run_that_stands_twice_is_found() -> None:
    body = "\n".join(f"    x{i} = f{i}({', '.join('a' * i)})" for i in range(1, RUN + 1))
    lines = list(python_lines(f"def one():\n{body}\n\n\ndef two():\n{body.replace('x', 'y')}\n"))
    assert list(repeated({"file.py": lines})) == [
        ("file.py", 1, "file.py", RUN + 4),
        ("file.py", 2, "file.py", RUN + 5),
    ]
    native = "\n".join(f"x{i} = f{i}({', '.join('a' * i)});  // {i}" for i in range(1, RUN + 1))
    assert len(list(repeated({"a.cpp": list(cpp_lines(native)), "b.cpp": list(cpp_lines(native))}))) == 1
