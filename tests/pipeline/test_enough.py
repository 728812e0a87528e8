"""A run whose texts cannot decide says so before the work, and searches nothing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

import bitwright
from bitwright.evaluate import Task
from bitwright.evaluate.kinds import Classification, Custom
from bitwright.pipeline.enough import given
from bitwright.pipeline.scored import Scored
from bitwright.progress import Quiet
from bitwright.recipe import make_recipe

TinyModel = Callable[..., Path]


class Told(Quiet):
    """Progress that remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def scored(tuning: Task, held_out: Task) -> Scored:
    return Scored(tuning, held_out, (), (), "")


def test_what_was_given_is_the_rows_of_the_file() -> None:
    task = Task("reviews", tuple("abcd"), Classification(np.arange(4) % 2))
    found = given(scored(task, task), 4)
    assert (found.n, found.noun, found.enough(10, 4)) == (8, "rows of reviews (half of them judge)", 20)
    own = Task("own", (), Custom(lambda encode: 1.0, "metric.py:own"))
    assert given(scored(own, own), 30).n == 30


def test_too_few_labels_are_said_before_the_work_and_nothing_is_searched(
    tiny_model: TinyModel, tmp_path: Path, texts: list[str]
) -> None:
    rows = "".join(f"{text}\t{i % 2}\n" for i, text in enumerate(texts[:60]))
    (tmp_path / "reviews.tsv").write_text(f"text\tlabel\n{rows}", encoding="utf-8")
    progress = Told()
    found = bitwright.quantize(
        tiny_model("bert", "sequence-classification"), out=tmp_path / "out", evaluation=tmp_path / "reviews.tsv",
        recipe=make_recipe({"scheme": "w4a16_channel", "targets": ["bitwright"]}), sensitivity=False, speed=False,
        progress=progress,
    )  # fmt: skip
    (said,) = [line for line in progress.lines if "would decide" in line]
    assert said.startswith(
        "reviews: only 30 examples are used to judge. Even if none of them changed, the loss could be up to "
    )
    assert "rows of reviews (half of them judge) would decide" in said
    assert said in found.record["warnings"]
    assert found.record["steps"] == []
    assert found.record["evaluation"]["verdict"] in ("undecided", "not met")
    assert found.exit_code == 3
