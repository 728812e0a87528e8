"""Patterns of names are a stranger's: none runs without end."""

import time

import pytest

from bitwright.checkpoints import module_patterns
from bitwright.checkpoints.module_patterns import bounded, matcher
from bitwright.errors import CheckpointError


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"([a-z.0-9]+)+!", "a group is repeated"),
        (r"(?:a|a)*b", "a group is repeated"),
        (r"(a?){50}a", "a group is repeated"),
        (r".*.*.*.*.*x", "5 repeats, more than 4"),
        ("a" * 70_000, "70000 characters"),
        ("(", "not a regular expression"),
        ("a{2}{3}", "not a regular expression"),
        ("(" * 3000 + ")" * 3000, "not a regular expression"),
    ],
)
def test_patterns_that_could_take_for_ever(pattern: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        bounded(f"re:{pattern}")


@pytest.mark.parametrize(
    "pattern",
    [
        r".*lm_head", r".*mlp\.gate$", r"^(?!.*(self_attn|mlp)).*$", r"model\.layers\.(?:0|1|20)\.mlp\..*",
        r"(?:bert\.)?encoder\.layer\.(?:0|1)\.output\.dense$",
        r"model\.layers\.\d+\.block_sparse_moe\.experts\.\d+\.w[123]",
    ],
)  # fmt: skip
def test_patterns_of_other_tools(pattern: str) -> None:
    assert bounded(f"re:{pattern}").pattern == pattern


def test_no_name_and_no_number_of_names_takes_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    find = matcher([("re:.*a.*a.*a.*b$", 1)])
    with pytest.raises(CheckpointError, match="a name of 201 characters"):
        find("a" * 201)
    monkeypatch.setattr(module_patterns, "_MOST_SECONDS", 0.2)
    begun = time.monotonic()
    with pytest.raises(CheckpointError, match="take over"):
        list(map(find, ("a" * 150 + str(number) for number in range(10_000))))
    assert time.monotonic() - begun < 5
