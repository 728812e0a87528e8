"""Small quantized checkpoints, written once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.families import DECODERS
from tests.rounded import write_rounded

_WIDER = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 96, "moe_intermediate_size": 32}


@pytest.fixture(scope="session")
def quantized(tiny_model: Callable[..., Path], once: Callable[..., Path]) -> Callable[..., Path]:
    """`quantized(family, scheme, task=None, transformed=False, half=(), tables=False, heads=(), pooling=None,
    settings={}, **config)`: the directory of a small model with rounded linears, as `write_rounded` writes it.
    pooling: of sentence-transformers, whose files are then there, with `settings` in the one for the whole model.
    """

    def make(
        family: str = "bert", scheme: str = "w8a8", task: str | None = None, *, transformed: bool = False,
        half: tuple[str, ...] = (), tables: bool = False, heads: tuple[str, ...] = (), pooling: str | None = None,
        settings: dict[str, Any] | None = None, **config: Any,
    ) -> Path:  # fmt: skip
        source = tiny_model(family, task, **(_WIDER if family in DECODERS else {"hidden_size": 64}) | config)

        def write(out: Path) -> None:
            write_rounded(source, out, scheme, transformed=transformed, half=half, tables=tables, heads=heads)
            if pooling is not None:
                write_sentence_files(out, pooling, settings or {})

        return once(
            ("quantized", str(source), scheme, transformed, half, tables, heads, pooling, repr(settings)), write
        )

    return make


def write_sentence_files(out: Path, pooling: str, settings: dict[str, Any]) -> None:
    """Transformer, Pooling, Normalize. settings: what they hold under "pooling" goes into that module's file."""
    settings = dict(settings)
    kinds = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
    rows = [
        {"idx": int(name), "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for name, path, kind in kinds
    ]
    mode = {"word_embedding_dimension": 64, f"pooling_mode_{pooling}": True}
    mode |= {"pooling_mode_mean_tokens": pooling == "mean_tokens"} | settings.pop("pooling", {})
    files = {
        "modules.json": rows,
        "sentence_bert_config.json": {"max_seq_length": 32, "do_lower_case": False},
        "config_sentence_transformers.json": settings,
        "1_Pooling/config.json": mode,
    }
    for name, content in files.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(json.dumps(content))
    (out / "2_Normalize").mkdir(exist_ok=True)
