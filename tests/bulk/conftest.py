"""A small embedder on the engine, and texts for it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rounded import write_rounded

Written = Callable[..., Path]


@pytest.fixture(scope="session")
def embedder(tiny_model: Callable[..., Path], once: Callable[..., Path]) -> Path:
    """A small random encoder with int8 linears. It has prompts."""
    source = tiny_model("bert", hidden_size=64)

    def write(out: Path) -> None:
        write_rounded(source, out, "w8a8")
        modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
        rows = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ]
        (out / "modules.json").write_text(json.dumps(rows))
        (out / "1_Pooling").mkdir()
        (out / "1_Pooling" / "config.json").write_text(
            json.dumps({"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True})
        )
        (out / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"passage": "read this: "}}))

    return once(("bulk", str(source)), write)


@pytest.fixture
def corpus(tmp_path: Path, texts: list[str]) -> Path:
    """A .jsonl file of 50 texts of many lengths, with ids."""
    file = tmp_path / "corpus.jsonl"
    rows = [{"id": f"d{i}", "text": texts[i][: 5 + 7 * i]} for i in range(50)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
