"""examples/with_*.py run, as far as what they need is installed; the others are at least Python."""

import importlib.util
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from bitwright.integrations.transformers import disable
from bitwright.kernels import dispatch
from tests.pages import ROOT

Quantized = Callable[..., Path]
EXAMPLES = {path.stem: path for path in sorted((ROOT / "examples").glob("with_*.py"))}
NEEDS = {
    "with_engine": "numpy",
    "with_transformers": "transformers",
    "with_sentence_transformers": "sentence_transformers",
    "with_langchain": "langchain_core",
    "with_llama_index": "llama_index",
    "with_haystack": "haystack",
}
OF_EMBEDDERS = ("with_langchain", "with_llama_index", "with_haystack")
EMBEDDER = ("bert", None, "mean_tokens")
MODELS = [EMBEDDER, ("bert", "sequence-classification", None), ("llama", None, None)]  # family, task, pooling
RUNS = [(name, model) for name in NEEDS for model in ([EMBEDDER] if name in OF_EMBEDDERS else MODELS)]


@pytest.mark.parametrize(("name", "model"), RUNS)
def test_runs(
    name: str, model: tuple[str, str | None, str | None], quantized: Quantized, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    family, task, pooling = model
    compile(EXAMPLES[name].read_text(encoding="utf-8"), str(EXAMPLES[name]), "exec")
    if importlib.util.find_spec(NEEDS[name]) is None or not dispatch.available():
        pytest.skip(f"needs {NEEDS[name]} and the native kernels")
    path = quantized(family, "w8a8" if family == "bert" else "w4a16_g32", task, pooling=pooling)
    monkeypatch.setattr("sys.argv", [name, str(path)])
    try:
        runpy.run_path(str(EXAMPLES[name]), run_name="__main__")
    finally:
        disable()
    assert capsys.readouterr().out.strip()


def test_a_corpus_is_searched(
    quantized: Quantized, tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if not dispatch.available():
        pytest.skip("needs the native kernels")
    (tmp_path / "corpus.txt").write_text("\n".join(texts[:20]))
    path = quantized("bert", "w8a8", None, pooling="mean_tokens")
    monkeypatch.setattr("sys.argv", ["encode_corpus", str(path), str(tmp_path / "corpus.txt"), texts[7]])
    runpy.run_path(str(ROOT / "examples" / "encode_corpus.py"), run_name="__main__")
    assert capsys.readouterr().out.startswith("1.000  text 7\n")


def test_each_has_a_test() -> None:
    assert set(EXAMPLES) == set(NEEDS)
