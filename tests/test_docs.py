"""docs/: commands and snippets run, links lead somewhere, tables name all there is, and the site builds."""

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import bitwright
import bitwright.cli
from bitwright.calibration.passages import ROLES as PARTS
from bitwright.checkpoints.formats import FORMATS
from bitwright.cli import COMMANDS
from bitwright.errors import EXIT_MEANINGS, ExitCode
from bitwright.evaluate.loaders import KINDS
from bitwright.families.row import ROLES
from bitwright.methods import METHODS
from bitwright.recipe import Recipe, shipped_recipes
from bitwright.targets import TARGETS
from tests.forks import FORKING
from tests.pages import (
    MAKEFILE,
    ROOT,
    Block,
    blocks,
    broken_links,
    commands,
    make_targets,
    read,
    sentence_lengths,
    shown_commands,
    unknown_options,
    without_code,
)

PAGES = sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))
GUIDES = [page for page in PAGES if page not in ("docs/measurements.md", "docs/compatibility.md")]
SHOWN = [(page, line) for page in GUIDES for line in shown_commands(read(page))]

MEAN_WORDS = 18  # of a sentence
ROWS = 60  # of a file of which a page shows the beginning
MANY = {"calibration.txt": 600, "today.txt": 600}  # of these, more
_RUNS = ("bitwright", "pip install ")  # how a line of a shell block may begin; pip is not run

TinyModel = Callable[..., Path]
Make = Callable[[int, list[str]], str]

# A file of which a page shows the first lines -> its further lines.
FURTHER: dict[str, Make] = {
    "articles.csv": lambda i, texts: f'a-{i + 19},"{texts[i]}"',
    "labels.csv": lambda i, texts: f'"{texts[i]}",{("negative", "neutral", "positive")[i % 3]}',
    "mail.csv": lambda i, texts: f'{i},"{texts[i]}"',
    "calibration.txt": lambda i, texts: f"{texts[i % 240]} {i}",
    "today.txt": lambda i, texts: f"{i} (x) - 0x{i:x}, {i * 7}.{i} % , id = {i * i}",
    "mine.txt": lambda i, texts: texts[i],
    "pairs.tsv": lambda i, texts: "\t".join([texts[i], texts[-i - 1], f"{i % 6}"]),
    "scored.tsv": lambda i, texts: "\t".join([texts[i], texts[-i - 1], f"{i % 4}"]),
    "collection/corpus.jsonl": lambda i, texts: f'{{"_id": "t{i}", "text": {texts[i]!r}}}'.replace("'", '"'),
    "collection/queries.jsonl": lambda i, texts: f'{{"_id": "u{i}", "text": {texts[i][:30]!r}}}'.replace("'", '"'),
    "collection/qrels.tsv": lambda i, texts: f"u{i}\tt{i}\t1",
}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.pages.ROOT", tmp_path)
    (tmp_path / "a.md").write_text("# One thing\n[x](b.md) [y](#one-thing) [z](a.md#two) [web](https://example.org)\n")
    assert broken_links("a.md") == ["b.md", "a.md#two"]


@pytest.mark.parametrize(("page", "line"), SHOWN, ids=[line for _, line in SHOWN])
def test_command_exists_with_its_options(page: str, line: str) -> None:
    misspelt = {"--max-los"} if page == "docs/messages.md" else set()
    assert unknown_options(line) <= misspelt


def test_every_command_is_run_on_some_page() -> None:
    shell = [block for page in GUIDES for block in blocks(read(page)) if block.language == "sh"]
    assert {command.words[0] for block in shell for command in commands(block)} == set(COMMANDS)


def test_make_targets_exist() -> None:
    for page in GUIDES:
        assert {target for target in make_targets(read(page)) if f"\n{target}:" not in MAKEFILE} == set(), page


@pytest.mark.parametrize("page", GUIDES)
def test_sentences_are_short(page: str) -> None:
    lengths = sentence_lengths(read(page))
    assert sum(lengths) / len(lengths) <= MEAN_WORDS


@pytest.mark.parametrize("page", GUIDES)
def test_blocks_are_run_or_written(page: str) -> None:
    """What is in a block is a command, a snippet, or a file of which the commands read; nothing is only shown."""
    for block in blocks(read(page)):
        if block.language == "sh":
            lines = [line for line in block.text.splitlines() if line]
            assert lines, page
            assert all(line.startswith(_RUNS) for line in lines), block.text
        else:
            assert block.language == "python" or block.title, block.text
    assert "```" not in without_code(read(page))


def test_exit_codes_are_those_of_the_program() -> None:
    rows = [f"| {code:d} | {meaning} |" for code, meaning in EXIT_MEANINGS.items()]
    assert "\n".join(rows) in read("docs/messages.md"), "docs/messages.md: copy the meanings of errors.EXIT_MEANINGS"


def rows_of(page: str) -> set[str]:
    """The code spans that begin a row of a page's tables, or stand in its second cell."""
    cells = [line.split("|")[1:3] for line in read(page).splitlines() if line.startswith("|")]
    return {cell.strip().strip("`") for row in cells for cell in row}


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("docs/recipes.md", [*shipped_recipes(), *Recipe.model_fields, *METHODS]),
        ("docs/formats.md", [*FORMATS, *TARGETS]),
        ("docs/your-data.md", [kind for kind in KINDS if kind not in ("label-free", "custom")]),
    ],
)
def test_tables_name_all_there_is(page: str, names: list[str]) -> None:
    assert set(names) - rows_of(page) == set()


def test_roles_are_named() -> None:
    page = read("docs/recipes.md")
    assert [role for role in ROLES if f"`{role}`" not in page] == []


def test_kinds_of_text_are_named_by_what_they_do() -> None:
    prose = " ".join(read("docs/verdict.md").lower().split())
    for part, verb in (("calibration", "calibrate."), ("tuning", "choose."), ("judging", "judge.")):
        sentence = prose[: prose.index(verb, prose.index("built-in text. "))].rpartition(". ")[2]
        assert set(re.findall(r"[a-z]+", sentence)) - {"and"} == {k for k, does in PARTS.items() if does == part}, part


def test_python_page_shows_every_public_name() -> None:
    page = read("docs/api.md")
    assert [name for name in bitwright.__all__ if name != "__version__" and f"::: bitwright.{name}\n" not in page] == []


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2].partition("plugins:")[0]
    assert [page for page in PAGES if f": {Path(page).name}\n" not in navigation] == []


# -- what the pages show is run ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a small random model of each sort, under the names that the pages have for them."""
    names = {0: "negative", 1: "neutral", 2: "positive"}
    models = {
        "MODEL": tiny_model("bert"),
        "CLASSIFIER": tiny_model("bert", "sequence-classification", id2label=names),
        "RERANKER": tiny_model("bert", "sequence-classification", num_labels=1),
        "LLM": tiny_model("llama", hidden_size=64, head_dim=16, intermediate_size=96, max_position_embeddings=64),
    }
    for name, path in models.items():
        shutil.copytree(path, tmp_path / name)
    (tmp_path / "LLM" / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message.content }}{% endfor %}"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(block: Block, texts: list[str]) -> None:
    """The file that a block is; of one that `FURTHER` knows the block is the beginning."""
    assert block.title is not None
    file, further = Path(block.title), FURTHER.get(block.title)
    file.parent.mkdir(exist_ok=True)
    plain = [text.replace('"', "").replace("'", "") for text in texts]
    lines = [] if further is None else [further(i, plain) for i in range(MANY.get(block.title, ROWS))]
    file.write_text(block.text + "".join(f"{line}\n" for line in lines), encoding="utf-8")


def run(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """The exit code of a command, and what it printed."""
    monkeypatch.setattr(sys, "argv", ["bitwright", *words])
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # nobody types
    written = io.StringIO()
    with redirect_stdout(written), pytest.raises(SystemExit) as stop:
        bitwright.cli.main()
    return int(stop.value.code or 0), written.getvalue()


def leave_out_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what quantizing checks and times in processes of its own, seconds each: tests/pipeline has it."""
    from bitwright.pipeline import run as pipeline

    asked = pipeline.Asked
    monkeypatch.setattr("bitwright.pipeline.facts.verify", lambda *args, **kwargs: [])
    monkeypatch.setattr("bitwright.registry.mirror.can_mirror", lambda registry: False)
    monkeypatch.setattr("bitwright.pipeline.training.steps_in", lambda *args: 2)  # whatever the minutes
    monkeypatch.setattr(pipeline, "Asked", lambda *args: replace(asked(*args), speed=False))


def allowed(words: tuple[str, ...], expected: int | None) -> set[int]:
    """The exit codes that a page may mean. A random model's result may well be outside the budget."""
    if expected is not None:
        return {expected}
    return (
        {ExitCode.DONE, ExitCode.NOT_SHOWN} if words[0] in ("quantize", "train", "tune", "fleet") else {ExitCode.DONE}
    )


@pytest.mark.full
@pytest.mark.parametrize("page", [page for page in GUIDES if blocks(read(page))])
def test_page_runs(page: str, folder: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if page != "docs/index.md":  # the one command is run whole
        leave_out_other_processes(monkeypatch)
        monkeypatch.setattr("bitwright.runtime.bench_process.subprocess", FORKING)
    names: dict[str, Any] = {}
    for block in blocks(read(page)):
        if block.title:
            write(block, texts)
        elif block.language == "python":
            exec(compile(block.text, page, "exec"), names)
        else:
            for words, into, expected in commands(block):
                code, written = run(words, monkeypatch)
                assert code in allowed(words, expected), f"bitwright {' '.join(words)}: exit code {code}"
                if into:
                    Path(into).write_text(written, encoding="utf-8")


# -- the site ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it: what would be a broken link or anchor ends the build."""
    pytest.importorskip("mkdocs", reason="needs mkdocs: pip install 'bitwright[docs]'")
    path = tmp_path_factory.mktemp("site")
    made = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", path],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, timeout=60, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    return path


@pytest.mark.full
def test_site_builds(site: Path) -> None:
    assert (site / "index.html").is_file()
    for page in PAGES:
        html = (site / Path(page).with_suffix(".html").name).read_text(encoding="utf-8")
        assert 'src="http' not in html, page
    assert "max_loss" in (site / "api.html").read_text(encoding="utf-8")


@pytest.mark.full
@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("page", ["index", "embedder", "api"])
def test_page_is_shown_without_errors_or_requests(site: Path, watched_page: Any, page: str, width: int) -> None:
    shown = watched_page((site / f"{page}.html").as_uri(), width)
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.problems == []
    assert [url for url in shown.requests if not url.startswith(("file:", "data:", "about:"))] == []


@pytest.mark.full
@pytest.mark.browser
def test_search_works_without_a_server(site: Path, watched_page: Any) -> None:
    shown = watched_page((site / "index.html").as_uri(), 1280)
    shown.locator("input[name=query]").press_sequentially("undecided")
    shown.locator(".md-search-result__link").first.wait_for(timeout=10_000)
    assert shown.problems == []


def test_navigation_is_yaml() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["strict"] is True
