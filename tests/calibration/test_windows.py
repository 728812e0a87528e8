"""Windows are runs of the text's own tokens: disjoint, in proportion, and the same for the same seed."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bitwright.calibration import tokens
from bitwright.calibration.columns import Source
from bitwright.calibration.windows import mix_windows, running_text, token_windows
from bitwright.errors import DataError


class _Words:
    """A tokenizer that gives every word its number."""

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}


def _file(path: Path, numbers: range) -> Source:
    path.write_text(" ".join(map(str, numbers)))
    return Source(str(path))


def test_windows_are_the_texts_tokens_in_order(tmp_path: Path) -> None:
    text = running_text(_file(tmp_path / "a.utf8", range(10)))
    assert token_windows(_Words(), text, 3, "a") == [(0, 1, 2), (3, 4, 5), (6, 7, 8)]


def test_a_text_shorter_than_a_window_is_refused_with_both_numbers() -> None:
    with pytest.raises(DataError, match="a: the text has 4 tokens, but a window needs 5"):
        token_windows(_Words(), "1 2 3 4", 5, "a")


def test_windows_are_drawn_in_proportion_and_never_twice(tmp_path: Path) -> None:
    small = _file(tmp_path / "a.txt", range(1000))
    large = Source(_file(tmp_path / "b.txt", range(1000, 9000)).name, weight=3.0)
    drawn = mix_windows(_Words(), [small, large], 40, 10, seed=1)
    assert len(set(drawn)) == 40
    assert sum(window[0] < 1000 for window in drawn) == 10
    assert drawn == mix_windows(_Words(), [small, large], 40, 10, seed=1)
    assert drawn != mix_windows(_Words(), [small, large], 40, 10, seed=2)


def test_a_source_that_is_too_small_gives_all_it_has(tmp_path: Path) -> None:
    small, large = _file(tmp_path / "a.txt", range(20)), _file(tmp_path / "b.txt", range(1000, 2000))
    drawn = mix_windows(_Words(), [small, large], 30, 10)
    assert len(drawn) == 30
    assert sum(window[0] < 1000 for window in drawn) == 2


def test_a_long_text_read_in_pieces_gives_the_tokens_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    text = running_text(Source("builtin"))[:60_000]
    tokenizer = _byte_level(text)
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    asked: list[int] = []

    class Counting:
        is_fast = True

        def __call__(self, piece: str, **options: object) -> object:
            asked.append(len(piece))
            return tokenizer(piece, **options)

    monkeypatch.setattr(tokens, "_PIECE", 5000)
    monkeypatch.setattr(tokens, "_OVERLAP", 400)
    assert tokens.token_ids(Counting(), text) == whole
    assert max(asked) == 5400
    assert len(asked) == 12


def test_pieces_that_never_agree_are_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """One long word, of which every piece starts anew."""
    text = "abcdefghi" * 1000
    tokenizer = _byte_level(text)
    monkeypatch.setattr(tokens, "_PIECE", 1000)
    monkeypatch.setattr(tokens, "_OVERLAP", 40)
    assert tokens.token_ids(tokenizer, text) == tokenizer(text, add_special_tokens=False)["input_ids"]


def _byte_level(text: str) -> PreTrainedTokenizerFast:
    """A small byte-level BPE, trained on the text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(vocab_size=600, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_a_built_in_kind_is_its_own_text():
    law, documentation = (running_text(Source("builtin", field=kind)) for kind in ("law", "documentation"))
    assert law != documentation == running_text(Source("builtin"))
    with pytest.raises(DataError, match="no built-in kind of text with this name"):
        running_text(Source("builtin", field="lawn"))
