"""The sentence, the state and the four numbers."""

import math

import pytest

from bitwright.report.verdict import facts, state, verdict_sentence


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def test_met(record):
    assert plain(verdict_sentence(record)) == (
        "all-MiniLM-L6-v2 is 3.9 times smaller and 2.4 times faster; "
        "it loses 0.08 % (at most 0.21 % with 95 % confidence) of its agreement with human judgement of similarity, "
        "inside the 1 % budget."
    )
    assert state(record)[0] == "met"


def test_not_met_names_the_lower_bound(not_met):
    sentence = plain(verdict_sentence(not_met))
    assert "2.0 times slower" in sentence
    assert "it loses 3.1 % (at least 2.2 % with 95 % confidence)" in sentence
    assert sentence.endswith("over the 1 % budget.")
    assert state(not_met)[0] == "not-met"


def test_undecided_says_how_much_data_would_decide(undecided):
    sentence = plain(verdict_sentence(undecided))
    assert "it appears to lose 0.6 % (at most 1.6 % with 95 % confidence)" in sentence
    assert "120 samples are too few" in sentence
    assert "about 620 would be enough" in sentence
    assert state(undecided)[0] == "undecided"


def test_undecidable_sample_has_no_bound(undecided):
    undecided["evaluation"] |= {"loss_lower": -math.inf, "loss_upper": math.inf, "needed_samples": None}
    sentence = plain(verdict_sentence(undecided))
    assert "∞" not in sentence
    assert "would be enough" not in sentence


def test_gain_is_no_loss(record):
    record["evaluation"] |= {"loss": -0.002}
    assert "it loses nothing measurable (at most 0.21 %" in plain(verdict_sentence(record))


def test_metric_where_lower_is_better_gets_worse(record):
    record["evaluation"]["metric"] = {"name": "perplexity", "higher_is_better": False}
    assert "its perplexity gets 0.08 % (at most" in plain(verdict_sentence(record))


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("speed", "is 3.9 times smaller; it"),
        ("size", "is 2.4 times faster; it"),
        ("evaluation", "its accuracy was not measured."),
    ],
)
def test_sentence_claims_only_what_was_measured(record, missing, says):
    record[missing] = None
    assert says in verdict_sentence(record)


def test_speed_is_that_of_bitwright_alone(record):
    for row in record["speed"]["rows"]:
        row["ratio_to_fp32"] = 4.0 if row["runtime"] == "bitwright" else 9.0
    assert "4.0 times faster" in verdict_sentence(record)
    assert facts(record)[1].value == "4.0×"


def test_no_budget(record):
    record["evaluation"] |= {"max_loss": None, "verdict": None}
    assert verdict_sentence(record).endswith("no budget was set.")
    assert state(record)[0] == "no-budget"


def test_facts(record, minimal):
    assert [plain(fact.value) for fact in facts(record)] == ["23.3 MB", "2.4×", "0.08 %", "1 %"]
    assert {fact.value for fact in facts(minimal)} == {"–"}
