"""What is built of a directory's files, and what is not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from bitwright.models.load import load_model


def test_a_tokenizer_class_that_is_none_builds_nothing(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """AutoTokenizer builds the class that is named, a model if it is one's."""
    path = Path(shutil.copytree(tiny_model("bert"), tmp_path / "model"))
    file = path / "tokenizer_config.json"
    settings = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(settings | {"tokenizer_class": "BertForSequenceClassification"}))
    loaded = load_model(path)
    assert loaded.tokenizer is None
    assert "tokenizer_class: 'BertForSequenceClassification' is not a tokenizer" in str(loaded.tokenizer_problem)
