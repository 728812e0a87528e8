"""`benchmarks/vllm_speed.py` and `vllm_agreement.py`, without vLLM: what a ratio is of, what the sides differ in."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def row(run: str, number: int, per_s: float, *, others: float = 0.0) -> dict[str, Any]:
    return {
        "model": "tiny", "threads": 2, "preload": "libgomp", "cell": "4", "round": number, "run": run, "others": others,
        "per_s": per_s, "decode_per_s": 2 * per_s,
    }  # fmt: skip


def test_ratios_are_taken_within_a_round_and_to_the_best_rival() -> None:
    speed = import_module("vllm_speed")
    rows = []
    for number, (ours, native, zen) in enumerate([(30, 10, 15), (40, 20, 10), (90, 10, 30)]):
        rows += [row("bf16", number, 10), row("int4 bitwright", number, ours)]
        rows += [row("int4 vllm", number, native), row("int4 zentorch", number, zen), row("int8 vllm", number, 1000)]
    rows += [row("bf16", 9, 1, others=1.0), row("int4 bitwright", 9, 1000)]  # a loud round
    lines = {line.split("|")[5].strip(): line for line in speed.table(rows).splitlines()}
    assert lines["int4 bitwright"].endswith("| 40.0 | 80.0 | 4.00 | 3.50 | 4.00 | 2.00 | 2.00 | 3 |")
    assert lines["int4 vllm"].endswith("| 1.00 | 1.00 | 1.00 | – | – | 3 |")


def test_sides_differ_in_nothing_but_what_they_name() -> None:
    speed = import_module("vllm_speed")
    settings = {(side.bits, side.zentorch, *side.environment().items()) for side in speed.SIDES.values()}
    assert len(settings) == len(speed.SIDES)
    assert {key for side in speed.SIDES.values() for key in side.environment()} == {
        "BITWRIGHT_VLLM", "VLLM_CPU_INT4_W4A8",
    }  # fmt: skip
    assert all(len(side) == 2 for side in import_module("vllm_agreement").PAIRS.values())
    assert {speed.SIDES[own].ours for own, _ in import_module("vllm_agreement").PAIRS.values()} == {False}


def test_windows_do_not_overlap_and_are_all_there(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = [f"w{i}" for i in range(30)]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text").write_text(" ".join(words))
    agreement = import_module("vllm_agreement")
    found = agreement.windows_of(tmp_path / "text", tmp_path / "tokenizer.json", 3, 10)
    assert found == [list(range(at, at + 10)) for at in (0, 10, 20)]
    with pytest.raises(SystemExit, match="30 tokens, and 4 windows of 10"):
        agreement.windows_of(tmp_path / "text", tmp_path / "tokenizer.json", 4, 10)
    assert agreement.agreement([1, 2, 3, 4], [1, 2, 0, 4]) == 0.75
