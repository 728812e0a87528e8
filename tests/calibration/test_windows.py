"""Windows are runs of the text's own tokens: disjoint, in proportion, and the same for the same seed."""

from pathlib import Path

import pytest

from bitwright.calibration.data import Source
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
    with pytest.raises(DataError, match="a: 4 tokens, and a window takes 5"):
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
