"""docs/compatibility.md: each choice of the layouts, made alone and judged, between two texts by hand.

`python -m tests.differential.compatibility` writes it.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.differential.compare import REFUSED, RIGHT, Verdict, judge, reason_of
from tests.differential.layouts import DIMENSIONS, FAMILIES, Dimension, Layout, settle

DOCUMENT = Path(__file__).parents[2] / "docs" / "compatibility.md"
HEAD, TAIL = (Path(__file__).with_name(f"compatibility_{part}.md") for part in ("head", "tail"))
SECTIONS = {
    "task": "Tasks and families", "family": "Tasks and families", "labels": "Tasks and families",
    "items": "Tasks and families", "config": "config.json", "weights": "Weight files", "tokenizer": "Tokenizers",
    "sentence": "Files of sentence-transformers", "cross": "Files of CrossEncoder",
}  # fmt: skip
_WEIGHTLESS = ("tokenizer", "sentence", "cross")  # dimensions that say nothing of weights: 16 bit adds nothing
# What a dimension needs beside it to apply, the first that does.
_BASES: tuple[Layout, ...] = (
    {},
    {"sentence.dense": "Tanh"},
    {"sentence.prompts": "named"},
    {"sentence.modules": "absent"},
    {"task": "sequence-classification"},
    {"task": "sequence-classification", "labels": 1, "items": "pairs"},
    {"task": "sequence-classification", "labels": 1, "items": "pairs", "cross.form": "with modules.json"},
    *({"family": family} for family in FAMILIES),
)


class Row(NamedTuple):
    """A choice of a dimension, and what became of it."""

    section: str
    dimension: str
    choice: Any
    result: str


_HEAD: Layout = {"family": "qwen3", "sentence.modules": "absent", "weights.extra": "masked language model's head"}
# Choices that are refused only together: (dimension, words for the choice, layout).
_TOGETHER: tuple[tuple[str, str, Layout], ...] = (
    ("config.architectures", "named, and a language model's head beside it", _HEAD),
    ("config.architectures", "absent, and a language model's head", _HEAD | {"config.architectures": "absent"}),
    (
        "sentence.modules",
        "absent, and a chat template",
        {"family": "qwen3", "sentence.modules": "absent", "tokenizer.chat": True},
    ),
)


def rows() -> Iterator[Row]:
    """Each choice, judged: takes minutes."""
    layouts = [(each.name, choice, _alone(each, choice)) for each in DIMENSIONS for choice in each.choices]
    layouts += [(name, words, settle({"seed": 0} | layout)) for name, words, layout in _TOGETHER]
    judged: dict[str, Verdict] = {}  # the plain choice of every dimension is the same layout
    with tempfile.TemporaryDirectory(prefix="layout-") as folder:
        for name, choice, layout in layouts:
            key = repr(sorted(layout.items()))
            if key not in judged:
                judged[key] = judge(layout, Path(folder) / "of", sixteen_bits=not name.startswith(_WEIGHTLESS))
            verdict = judged[key]
            said = f"refused: {reason_of(verdict.reason)}" if verdict.kind == REFUSED else verdict.kind
            if verdict.kind not in (RIGHT, REFUSED):
                said = "the library itself does not load it" if verdict.stage == "library" else verdict.reason
            yield Row(SECTIONS[name.partition(".")[0]], name, choice, said)


def _alone(dimension: Dimension, choice: Any) -> Layout:
    """A layout that is plain but for one choice, and what that needs."""
    for base in _BASES:
        layout = settle({"seed": 0} | base | {dimension.name: choice})
        if layout.get(dimension.name, None) == choice and dimension.name in layout:
            return layout
    raise AssertionError(f"{dimension.name} applies to no base; add one")


def document(found: list[Row]) -> str:
    """The page."""
    parts = [HEAD.read_text(encoding="utf-8")]
    for section in dict.fromkeys(SECTIONS.values()):
        parts.append(f"## {section}\n\n| what | choice | result |\n|---|---|---|")
        parts[-1] += "".join(
            f"\n| {row.dimension.partition('.')[2] or row.dimension} | {_cell(row.choice)} | {_cell(row.result)} |"
            for row in found
            if row.section == section
        )
    return "\n\n".join([*(part.rstrip() for part in parts), TAIL.read_text(encoding="utf-8")])


def _cell(value: Any) -> str:
    shown = ", ".join(value) if isinstance(value, tuple) else str(value) or "(empty)"
    return shown.replace("|", "\\|")


if __name__ == "__main__":
    DOCUMENT.write_text(document(list(rows())), encoding="utf-8")
