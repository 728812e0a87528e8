import random
import re

import pytest

from bitwright.checkpoints.module_patterns import matcher, patterns

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
