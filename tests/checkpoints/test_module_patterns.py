"""Names as patterns: ours mean these modules and no others; a stranger's cannot run without end."""

import random
import re
import time

import pytest

from bitwright.checkpoints import module_patterns
from bitwright.checkpoints.module_patterns import bounded, matcher, patterns
from bitwright.errors import CheckpointError

ALL = [
    f"model.layers.{block}.mlp.experts.{expert}.{part}" for block in range(4) for expert in range(5) for part in "ab"
]
ALL += [f"model.layers.{block}.self_attn.q_proj" for block in range(12)] + ["lm_head", "model.norm.1"]


@pytest.mark.parametrize("seed", range(20))
def test_patterns_match_these_modules_and_no_others(seed: int) -> None:
    chosen = set(random.Random(seed).sample(ALL, 1 + 2 * seed))
    find = matcher((pattern, True) for pattern in patterns(chosen, "model"))
    for name in ALL:
        assert (find(name) is True) == (name in chosen)
        assert (find(name.removeprefix("model.")) is True) == (name in chosen)
        assert find(f"{name}.bias") is None
        assert find(f"x{name}") is None


def test_whole_products_are_one_pattern() -> None:
    experts = [name for name in ALL if "experts" in name]
    assert len(patterns(experts, "model")) == 2
    assert len(patterns(experts[1:], "model")) == 3
    assert patterns(["b.1", "a.2"], "") == ["a.2", "b.1"]


def test_a_name_wins_over_a_pattern() -> None:
    find = matcher([("re:a.*", 1), ("re:a[.]b", 2), ("a.b", 3)])
    assert (find("a.b"), find("a.c"), find("b")) == (3, 1, None)
    assert re.fullmatch(r"re:.*\$", patterns(["a.0"], "model")[0])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"([a-z.0-9]+)+!", "a group is repeated"),
        (r"(?:a|a)*b", "a group is repeated"),
        (r"(a?){50}a", "a group is repeated"),
        (r".*.*.*.*.*x", "ways to match, more than"),
        ("a?" * 30 + "a" * 30, "ways to match, more than"),
        ("(?:a|a)" * 30 + "b", "ways to match, more than"),
        (r"((a|a)|(a|a))" * 15 + "b", "ways to match, more than"),
        ("[)]" + "a?" * 30 + "a" * 30, "ways to match, more than"),
        ("(?x)([a-z]+) +!", "the flag x"),
        ("(?i:(?sx)([a-z]+) +!)", "the flag x"),
        ("(?#[)([a-z]+)+!(?#])", "comments"),
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
    with pytest.raises(CheckpointError, match="this name has 201 characters"):
        find("a" * 201)
    monkeypatch.setattr(module_patterns, "_SECONDS", 0.1)
    monkeypatch.setattr(module_patterns, "_SECONDS_EACH", 0.0)
    begun = time.monotonic()
    with pytest.raises(CheckpointError, match="s to match against the names"):
        list(map(find, ("a" * 150 + str(number) for number in range(10_000))))
    assert time.monotonic() - begun < 5


def test_the_patterns_of_a_large_mixture_of_experts_may_be_tried() -> None:
    """Ten thousands of linears, each tried by every pattern: it takes seconds, and is no attack."""
    names = [
        f"model.layers.{i}.mlp.experts.{j}.{part}_proj"
        for i in range(48)
        for j in range(128)
        for part in ("up", "gate")
    ]
    ours = patterns(random.Random(0).sample(names, len(names) // 2), "model")
    find = matcher((pattern, True) for pattern in ours)
    assert sum(find(name) is True for name in names) == len(names) // 2
