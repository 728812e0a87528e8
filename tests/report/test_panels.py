"""The first screen's pictures: what is drawn is what was measured, to scale."""

import math

import pytest

from bitwright.record import record_of
from bitwright.report.panels import panels


def shown(record):
    return panels(record_of(record))


def test_values(record, minimal):
    values = [panel.value.replace("\u00a0", " ") for panel in shown(record)]
    assert values == ["23.3 MB", "2.4", "0.08 %"]
    assert {panel.value for panel in shown(minimal)} == {"–"}
    assert not any(panel.bars or panel.lines for panel in shown(minimal))


def test_bars_are_to_scale(record):
    size, speed, _ = shown(record)
    before, after = (bar.length for bar in size.bars)
    assert before == 100
    assert after == pytest.approx(100 * 23_300_000 / 90_868_376)
    (line,) = speed.lines
    ratios = [row["ratio_to_fp32"] for row in record["speed"]["rows"] if row["runtime"] == "bitwright"]
    assert [bar.length / line.at for bar in speed.bars] == pytest.approx(ratios)
    assert speed.bars[0].label == "1 text of 16 tokens"


def test_a_larger_or_slower_result_stays_on_the_scale(record):
    record["size"]["checkpoint_bytes"] = 4 * record["size"]["source_bytes"]
    for row in record["speed"]["rows"]:
        row["ratio_to_fp32"] = 0.25
    size, speed, _ = shown(record)
    assert [bar.length for bar in size.bars] == [25, 100]
    assert speed.bars[0].length == pytest.approx(speed.lines[0].at / 4)
    assert speed.lines[0].at <= 100


def test_each_kind_has_its_bar_with_its_bound_against_the_budget(record):
    kinds = [{"kind": "news", "n": 5, "loss": 0.002, "upper": 0.004}, {"kind": "law", "n": 5, "loss": -0.001}]
    record["evaluation"] |= {"kinds": kinds, "loss_upper": 0.02}
    loss = shown(record)[2]
    lines = {line.kind: line.at for line in loss.lines}
    assert lines["bound"] == pytest.approx(2 * lines["budget"])  # of 1 %
    assert lines["bound"] < 100
    news, law = loss.bars
    assert (news.label, law.label) == ("news", "law")
    assert news.length == pytest.approx(0.2 * lines["budget"])
    assert news.length + news.reach == pytest.approx(0.4 * lines["budget"])
    assert news.aside.replace("\u00a0", " ") == "at most 0.4 %"
    assert (law.length, law.reach) == (0, 0)
    assert "on average over 2 kinds of text" in loss.context


def test_what_is_infinite_fills_the_bar(record):
    record["evaluation"] |= {"loss": math.inf, "loss_upper": math.inf}
    (bar,) = shown(record)[2].bars
    assert (bar.length, bar.reach, bar.value) == (100, 0, "∞")


@pytest.mark.parametrize(
    ("verdict", "says"),
    [
        ("met", "is met, with 95 % confidence"),
        ("not met", "is not met"),
        ("undecided", "cannot tell"),
        ("not judged on pairs", "reads pairs"),
    ],
)
def test_the_budget_is_told_in_words(record, verdict, says):
    record["evaluation"]["verdict"] = verdict
    assert says in shown(record)[2].context.replace("\u00a0", " ")
    record["verify"][0]["ok"] = False
    assert "does not count" in shown(record)[2].context


def test_bits_per_weight_take_the_place_of_a_speed_that_was_not_measured(language, record):
    assert shown(language)[1].name == "Bits per weight"
    record["speed"]["too_busy"] = True
    assert shown(record)[1].name == "Bits per weight"
    assert "the machine was busy" in shown(record)[1].context
