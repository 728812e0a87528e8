"""Numbers of tokens in side files: one number, none, or an error that names file and key."""

import json
from pathlib import Path
from typing import Any

import pytest

from bitwright.errors import ModelError
from bitwright.files.directory import ModelDirectory
from bitwright.files.limits import tokenizer_limit
from bitwright.files.sentences import read_sentences


def opened(path: Path, file: str, content: dict[str, Any]) -> ModelDirectory:
    (path / file).write_text(json.dumps(content))
    return ModelDirectory(path)


@pytest.mark.parametrize(
    ("length", "limit"), [(512, [512]), (512.0, [512]), (None, []), (1e30, []), (float("inf"), []), (10**400, [])]
)
def test_a_limit_of_a_tokenizer(tmp_path: Path, length: Any, limit: list[int]) -> None:
    assert tokenizer_limit(opened(tmp_path, "tokenizer_config.json", {"model_max_length": length})) == limit


@pytest.mark.parametrize("length", ["dynamic", [512], True, 0, -1, float("nan"), {"a": "b" * 1000}])
def test_what_is_no_number_of_tokens_is_refused(tmp_path: Path, length: Any) -> None:
    directory = opened(tmp_path, "tokenizer_config.json", {"model_max_length": length})
    with pytest.raises(
        ModelError, match=r"tokenizer_config\.json: model_max_length is .*; it must be a number of tokens"
    ):
        tokenizer_limit(directory)
    directory = opened(tmp_path, "config.json", {})
    (tmp_path / "modules.json").write_text(
        json.dumps([{"type": "sentence_transformers.models.Transformer", "path": ""}])
    )
    directory = opened(tmp_path, "sentence_bert_config.json", {"max_seq_length": length})
    with pytest.raises(
        ModelError, match=r"sentence_bert_config\.json: max_seq_length is .*; it must be a number of tokens"
    ):
        read_sentences(directory, "embedding")
