"""The user's own library in a process of its own: its answers, its failures, and what is left of it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import transformers
from sentence_transformers import CrossEncoder, SentenceTransformer

from bitwright.errors import LibraryError
from bitwright.families.tasks import AUTO_CLASSES
from bitwright.runtime import library, library_server
from bitwright.runtime.library import Library
from tests.forks import FORKING, ended_well, in_child
from tests.nested import FOLDER, flat_embedder, flat_reranker, nested

TEXTS = ["The Quick brown fox", "a", "of a longer list of words than the others are"]
PAIRS = [("a list", text) for text in TEXTS]


def opened(path: Path, task: str) -> Library:
    return Library(path, task, threads=1, limit=64)


@pytest.fixture
def forked_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The servers of a test that kills them are forks, beside the one that all others ask: that imports for seconds."""
    monkeypatch.setattr(library, "_server", [])
    monkeypatch.setattr(library, "subprocess", FORKING)
    yield
    library.stop_library()


def test_embeddings_and_tokens(minilm_dir: Path) -> None:
    theirs = SentenceTransformer(str(minilm_dir), device="cpu")
    with opened(minilm_dir, "embedding") as one:
        assert one.name.startswith("sentence-transformers ")
        np.testing.assert_allclose(one.encode(TEXTS), theirs.encode(TEXTS), atol=1e-6)
        ids = [row[0].tolist() for row in one.read(TEXTS)]
    assert ids == [theirs.tokenizer(text)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("sequence-classification", transformers.AutoModelForSequenceClassification),
        ("token-classification", transformers.AutoModelForTokenClassification),
        ("question-answering", transformers.AutoModelForQuestionAnswering),
    ],
)
def test_heads(tiny_model: Callable[..., Path], task: str, kind: type) -> None:
    path = tiny_model("bert", task)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    theirs = kind.from_pretrained(path).eval()  # type: ignore[attr-defined]
    with opened(path, task) as one, torch.inference_mode():
        for items in (TEXTS, PAIRS):
            for item, row in zip(items, one.encode(items), strict=True):
                given = [item] if isinstance(item, str) else item
                out = theirs(**tokenizer(*given, return_tensors="pt"))
                plain = (
                    torch.stack((out.start_logits[0], out.end_logits[0]))
                    if task == "question-answering"
                    else out.logits[0]
                )
                np.testing.assert_allclose(row, plain, atol=1e-5)


def test_a_cross_encoder_without_its_activation(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_model("bert", "sequence-classification", num_labels=1), tmp_path / "one"))
    CrossEncoder(str(path), device="cpu").save_pretrained(str(tmp_path / "saved"))
    theirs = CrossEncoder(str(tmp_path / "saved"), device="cpu")
    expected = theirs.predict(PAIRS, activation_fn=torch.nn.Identity())
    with opened(tmp_path / "saved", "sequence-classification") as one:
        np.testing.assert_allclose(one.encode(PAIRS)[:, 0], expected, atol=1e-5)


def test_each_library_is_given_its_root(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """sentence-transformers the directory, transformers the folder of the Transformer in it."""
    flat = flat_embedder(tiny_model("bert"), tmp_path / "flat")
    apart = nested(flat, tmp_path / "apart")
    with opened(apart, "embedding") as one:
        theirs = SentenceTransformer(str(apart), device="cpu").encode(TEXTS)
        np.testing.assert_allclose(one.encode(TEXTS), theirs, atol=1e-6)
    for path in (flat, apart):
        with Library(path, "embedding", threads=1, limit=64, runtime="transformers") as one:
            vectors = one.forward(np.array([[2, 9, 8, 3]]))
    model = transformers.AutoModel.from_pretrained(apart, subfolder=FOLDER).eval()
    with torch.inference_mode():
        expected = model(torch.tensor([[2, 9, 8, 3]])).last_hidden_state[0]
    np.testing.assert_allclose(vectors[0], expected, atol=1e-5)


def test_a_cross_encoder_in_a_folder(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    flat = flat_reranker(tiny_model("bert", "sequence-classification", num_labels=1), tmp_path / "flat")
    apart = nested(flat, tmp_path / "apart")
    expected = CrossEncoder(str(apart), device="cpu").predict(PAIRS, activation_fn=torch.nn.Identity())
    with opened(apart, "sequence-classification") as one:
        np.testing.assert_allclose(one.encode(PAIRS)[:, 0], expected, atol=1e-5)


def test_what_it_cannot_load_is_told_and_the_next_model_is_served(minilm_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    for _ in range(2):
        with pytest.raises(LibraryError, match="Error"):
            opened(tmp_path, "embedding")
    with opened(minilm_dir, "embedding") as one:
        assert one.encode(TEXTS).shape == (3, 384)


@pytest.mark.usefixtures("forked_server")
def test_a_server_that_is_gone_is_made_anew(minilm_dir: Path) -> None:
    with opened(minilm_dir, "embedding"):
        pass
    (server,) = library._server
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    with opened(minilm_dir, "embedding") as one:
        assert one.encode(TEXTS).shape == (3, 384)


@pytest.mark.usefixtures("forked_server")
def test_a_fork_has_a_server_of_its_own(minilm_dir: Path) -> None:
    def encodes() -> bool:
        with opened(minilm_dir, "embedding") as one:
            return bool(one.encode(TEXTS).shape == (3, 384))

    assert encodes()
    child = in_child(encodes, seconds=60)
    assert encodes()
    assert ended_well(child)


@pytest.mark.parametrize(
    "task",
    ["embedding", "sequence-classification", "token-classification", "question-answering", "text-generation"],
)
def test_a_runtime_is_given_ids(tiny_model: Callable[..., Path], task: str) -> None:
    path = tiny_model("llama" if task == "text-generation" else "bert", task)
    ids = np.random.default_rng(0).integers(5, 200, (3, 7))
    theirs = getattr(transformers, AUTO_CLASSES[task]).from_pretrained(path, dtype=torch.float32).eval()
    with torch.inference_mode():
        out = theirs(torch.from_numpy(ids), output_hidden_states=True)
    with Library(path, task, threads=1, limit=64, runtime="transformers") as one:
        rows = np.stack(one.forward(ids))
        if task == "embedding":
            states = np.stack(one.states(ids), axis=1)
            np.testing.assert_allclose(states, torch.stack(out.hidden_states), atol=1e-5)
    expected = {
        "embedding": lambda: out.last_hidden_state,
        "question-answering": lambda: torch.stack((out.start_logits, out.end_logits), dim=1),
        "text-generation": lambda: out.logits[:, -1],
    }.get(task, lambda: out.logits)()
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_sentence_transformers_is_given_ids(minilm_dir: Path) -> None:
    theirs = SentenceTransformer(str(minilm_dir), device="cpu")
    ids = np.array(theirs.tokenizer(TEXTS[0])["input_ids"])[None]
    with Library(minilm_dir, "embedding", threads=1, limit=64, runtime="sentence-transformers") as one:
        np.testing.assert_allclose(one.forward(ids), theirs.encode(TEXTS[:1]), atol=1e-6)


# Loads what each line of its input asks for in a child of its own, which prints what there is of ours then.
_LOADED = """
import json, os, sys, sentence_transformers, torch, transformers
from bitwright.runtime.library_server import _load
for line in sys.stdin:
    request, what, items = json.loads(line)
    child = os.fork()
    if child == 0:
        model = _load(request)
        with torch.inference_mode():
            list(getattr(model, what)(items))
        ours = {name.split('.')[1] for name in sys.modules if name.startswith('bitwright.')}
        print(*ours & {'models', 'kernels', 'checkpoints', 'engine', 'pipeline', 'quantizing'}, flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_nothing_of_ours_that_reads_a_model_is_there(tiny_model: Callable[..., Path]) -> None:
    """What is compared with our reading must not come of it."""
    asked = []
    for runtime, task in product((None, "transformers"), ("embedding", "text-generation")):
        path = tiny_model("llama" if task == "text-generation" else "bert", task)
        request = {
            "directory": str(path), "transformer": str(path), "task": task, "runtime": runtime, "limit": 9,
            "trust_remote_code": False, "blocks": None,
        }  # fmt: skip
        items = [[5, 6, 7]] if runtime or task == "text-generation" else ["a text"]
        asked.append([request, "forward" if runtime else "encode", items])
    lines = "".join(f"{json.dumps(each)}\n" for each in asked)
    done = subprocess.run([sys.executable, "-c", _LOADED], input=lines, capture_output=True, text=True, check=True)
    assert done.stdout == "\n" * len(asked)


def test_a_message_is_what_was_sent() -> None:
    sent = [np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((0, 5), np.int64), np.array(3.0), np.ones(4, bool)]
    ours, theirs = os.pipe()
    library_server.send(theirs, {"do": "é\ud800", "items": [1, None]}, sent)
    content, arrays = library_server.receive(ours)
    assert content == {"do": "é\ud800", "items": [1, None]}
    assert [each.dtype for each in arrays] == [each.dtype for each in sent]
    for one, other in zip(arrays, sent, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)
    arrays[0][0, 0] = 1.0  # they may be written
    os.close(theirs)
    with pytest.raises(EOFError):
        library_server.receive(ours)
    os.close(ours)


def test_a_server_ends_with_a_parent_that_is_killed() -> None:
    """Else it imports for seconds before it finds its input closed."""
    code = "from bitwright.runtime import library as l; l.start_library(); print(l._server[0].pid, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        server = Path("/proc") / parent.stdout.readline().decode().strip()
        deadline = time.monotonic() + 20
        while b"torch" not in (server / "maps").read_bytes() and time.monotonic() < deadline:
            time.sleep(0.05)
        parent.kill()
    deadline = time.monotonic() + 20
    while _runs(server) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(server)


def _runs(process: Path) -> bool:
    try:
        return "\nState:\tZ" not in (process / "status").read_text()
    except OSError:
        return False


@pytest.mark.usefixtures("forked_server")
def test_a_model_that_hangs_is_given_up(minilm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(minilm_dir, "embedding") as one:
        (server,) = library._server
        (child,) = psutil.Process(server.pid).children()
        child.suspend()
        monkeypatch.setattr(library, "seconds_allowed", lambda *work: 0.5)
        with pytest.raises(
            LibraryError, match=rf"no answer within 0 s and was killed: {minilm_dir}, encode, \d+ tokens"
        ):
            one.encode(TEXTS)
    assert not library._server
    child.wait(20)
    monkeypatch.undo()
    with opened(minilm_dir, "embedding") as one:
        assert one.encode(TEXTS).shape == (3, 384)
