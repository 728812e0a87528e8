"""One corpus under several names is refused; corpora that share a few texts are not."""

from pathlib import Path

import pytest

from bitwright.calibration.data import mix, parse_sources
from bitwright.errors import DataError


def lines(path: Path, start: int, stop: int) -> str:
    path.write_text("\n".join(f"the text number {i}" for i in range(start, stop)), encoding="utf-8")
    return str(path)


def test_the_same_corpus_twice_is_refused(tmp_path: Path) -> None:
    one, copy = (lines(tmp_path / name, 0, 300) for name in ("one.txt", "copy.txt"))
    for other in (copy, one, f"{one}:3"):
        with pytest.raises(DataError, match=r"share 100 of 100 texts, so they are the same corpus"):
            mix(parse_sources([one, other]), 100)


def test_a_part_of_a_corpus_is_refused_and_another_corpus_is_not(tmp_path: Path) -> None:
    whole, part = lines(tmp_path / "whole.txt", 0, 300), lines(tmp_path / "part.txt", 250, 300)
    near = lines(tmp_path / "near.txt", 260, 360)  # 40 of its 100 are in the other
    with pytest.raises(DataError, match="50 of 50 texts"):
        mix(parse_sources([whole, part]), 400)
    assert len(mix(parse_sources([whole, near]), 400)) == 360
