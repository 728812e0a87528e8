"""vLLM's server with our kernels: completions, embeddings and a reranker, over HTTP; the examples."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pages import blocks, read
from tests.vllm.engines import ENCODER_SIZES, OURS, ROOT, TIMEOUT_S, environment, serving

pytestmark = pytest.mark.full
Ask = Callable[..., dict[str, Any]]
INT8 = "BitwrightInt8LinearKernel"
PROMPTS = [[5, 9, 20, 33, 70, 8, 100], [12, 13, 14, 9, 8, 7, 60, 61, 62, 63]]
TEXTS = ["slicing a list makes a new one", "the sky is blue", "a statement is a line"]


def post(address: str, **body: Any) -> dict[str, Any]:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        return dict(json.load(answer))


def run(program: Path, *arguments: str) -> str:
    """What it prints, run in its own folder."""
    settings = environment(VLLM_CPU_KVCACHE_SPACE="1")
    command = [sys.executable, str(program), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=settings, cwd=program.parent, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_completions_are_those_of_the_engine(checkpoint: Callable[[str], Path], worker: Ask, tmp_path: Path) -> None:
    directory = checkpoint("w8a8")
    worker(OURS, "open_model", path=str(directory), dtype="bfloat16")
    expected = worker(OURS, "generate", prompts=PROMPTS, tokens=8)["tokens"]
    with serving(directory, tmp_path / "log") as address:
        asked = {"model": "tiny", "max_tokens": 8, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        answer = post(f"{address}/v1/completions", prompt=PROMPTS, **asked)
        shown = run(ROOT / "examples" / "vllm_server.py", address)
    assert [choice["token_ids"] for choice in answer["choices"]] == expected
    assert shown.startswith("Slicing a list makes a new one.")
    assert f"Selected {INT8}" in (tmp_path / "log").read_text()


@pytest.mark.filterwarnings("ignore")  # of libraries older than those of .venv
def test_embeddings_are_those_of_sentence_transformers(quantized: Callable[..., Path], tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    directory = quantized("bert", "w8a8", pooling="mean_tokens", **ENCODER_SIZES)
    with serving(directory, tmp_path / "log") as address:
        rows = post(f"{address}/v1/embeddings", model="tiny", input=TEXTS)["data"]
        shown = run(ROOT / "examples" / "vllm_server.py", address, "--embed")
    found = np.array([row["embedding"] for row in rows])
    expected = sentence_transformers.SentenceTransformer(str(directory)).encode(TEXTS, normalize_embeddings=True)
    assert (found * expected).sum(axis=1).min() > 0.999
    assert "64 numbers" in shown
    assert f"Selected {INT8}" in (tmp_path / "log").read_text()


@pytest.mark.filterwarnings("ignore")
def test_scores_are_those_of_transformers(quantized: Callable[..., Path], tmp_path: Path) -> None:
    import torch
    import transformers

    directory = quantized("bert", "w8a8", "sequence-classification", num_labels=1, **ENCODER_SIZES)
    query = "how do i copy a list"
    with serving(directory, tmp_path / "log") as address:
        rows = post(f"{address}/rerank", model="tiny", query=query, documents=TEXTS)["results"]
    found = {row["document"]["text"]: row["relevance_score"] for row in rows}
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    batch = tokenizer([query] * len(TEXTS), TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**batch).logits[:, 0].sigmoid().tolist()
    np.testing.assert_allclose([found[text] for text in TEXTS], expected, atol=0.02)
    assert f"Selected {INT8}" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("name", [None, "w8a8", "w4a16_g32"])
def test_the_same_program_runs_float_int8_and_int4(
    name: str | None, float_model: Path, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """The page's, or for the float model the example's, in the processes that vLLM starts by default, compiled."""
    if name is None:
        shown = run(ROOT / "examples" / "vllm_offline.py", str(float_model))
    else:
        (block,) = [block for block in blocks(read("docs/vllm.md")) if block.title == "offline.py"]
        (tmp_path / "offline.py").write_text(block.text)
        (tmp_path / "DIR").symlink_to(checkpoint(name))
        shown = run(tmp_path / "offline.py")
    assert "Slicing a list makes" in shown
    assert ("LinearKernel for CompressedTensors" in shown) == (name is not None)
    assert shown.count("Bitwright") >= (name is not None)
