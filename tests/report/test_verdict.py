"""The sentence, the state and the four numbers."""

import math

import pytest

from bitwright.record import record_of
from bitwright.report.verdict import bits_per_weight, facts, state, verdict_sentence


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def test_met(record):
    assert plain(verdict_sentence(record_of(record))) == (
        "all-MiniLM-L6-v2 is 3.9 times smaller and 2.4 times faster; "
        "it loses 0.08 % (at most 0.21 % with 95 % confidence) of its agreement with human judgement of similarity, "
        "inside the 1 % budget."
    )
    assert state(record_of(record))[0] == "met"


@pytest.mark.parametrize("verdict", ["met", "undecided", "not met"])
def test_a_failed_check_is_the_headline_whatever_was_judged(record, verdict):
    record["evaluation"]["verdict"] = verdict
    record["verify"][0] |= {"ok": False, "detail": "its outputs are 0.2 away"}
    target = record["verify"][0]["target"]
    sentence = plain(verdict_sentence(record_of(record)))
    assert f"is not usable as it was written: it failed the check in {target} (its outputs are 0.2 away)" in sentence
    assert "it loses 0.08 %" in sentence or verdict == "undecided"
    assert "budget" not in sentence
    kind, symbol, heading = state(record_of(record))
    assert (kind, symbol, heading) == ("not-met", "✕", "Check failed: do not use it")
    assert facts(record_of(record))[3].context.startswith("not usable: ")


def test_the_goal_smallest_is_held_beside_all_int8(record):
    record["smallest"] = {"bytes": 700, "int8_bytes": 1000}
    sentence = plain(verdict_sentence(record_of(record)))
    assert sentence.endswith("inside the 1 % budget; its linears take 30 % fewer bytes than in all-INT8.")
    ours = [row for row in record["speed"]["rows"] if row["runtime"] == "bitwright"]
    said = {1.6: "1.6 times slower than that", 1.0: "about as fast as that", 0.5: "2.0 times faster than that"}
    for factor, words in said.items():
        int8 = [row | {"runtime": "all-INT8", "ratio_to_fp32": factor * row["ratio_to_fp32"]} for row in ours]
        timed = record | {"speed": record["speed"] | {"rows": [*record["speed"]["rows"], *int8]}}
        sentence = plain(verdict_sentence(record_of(timed)))
        assert sentence.endswith(f"30 % fewer bytes than in all-INT8, and it is {words}.")
        assert "2.4 times faster" in sentence  # ours, not the other's


def test_not_met_names_the_lower_bound(not_met):
    sentence = plain(verdict_sentence(record_of(not_met)))
    assert "2.0 times slower" in sentence
    assert "it loses 3.1 % (at least 2.2 % with 95 % confidence)" in sentence
    assert sentence.endswith("over the 1 % budget.")
    assert state(record_of(not_met))[0] == "not-met"


def test_undecided_says_how_much_data_would_decide(undecided):
    sentence = plain(verdict_sentence(record_of(undecided)))
    assert "it appears to lose 0.6 % (at most 1.6 % with 95 % confidence)" in sentence
    assert "120 samples are too few" in sentence
    assert "about 620, half of which judge, would be enough" in sentence
    assert state(record_of(undecided))[0] == "undecided"


def test_single_texts_are_no_verdict_on_a_model_that_reads_pairs(record):
    record["evaluation"] |= {"verdict": "not judged on pairs"}
    sentence = plain(verdict_sentence(record_of(record)))
    assert sentence.endswith("on single texts, but it reads pairs, so that says nothing about the 1 % budget.")
    kind, symbol, heading = state(record_of(record))
    assert (kind != "met", symbol, heading) == (True, "?", "Not judged on pairs")
    assert facts(record_of(record))[3].context.startswith("not judged: ")


def test_undecidable_sample_has_no_bound(undecided):
    undecided["evaluation"] |= {"loss_lower": -math.inf, "loss_upper": math.inf, "needed_samples": None}
    sentence = plain(verdict_sentence(record_of(undecided)))
    assert "∞" not in sentence
    assert "would be enough" not in sentence


def test_gain_is_no_loss(record):
    record["evaluation"] |= {"loss": -0.002}
    assert "it loses nothing measurable (at most 0.21 %" in plain(verdict_sentence(record_of(record)))


def test_perplexity_rises(language):
    sentence = plain(verdict_sentence(record_of(language)))
    assert "its perplexity rises from 24.10 to 24.82, by 3 % (at most 4 % with 95 % confidence)" in sentence
    assert sentence.endswith("inside the 5 % budget.")
    language["evaluation"] |= {"verdict": "undecided"}
    sentence = plain(verdict_sentence(record_of(language)))
    assert "appears to rise" in sentence
    assert "20 windows are too few" in sentence
    language["evaluation"] |= {"verdict": "met", "loss": -0.01, "quantized_score": 23.859}
    assert "does not rise, going from 24.10 to 23.86 (at most" in plain(verdict_sentence(record_of(language)))


def test_scores_may_be_missing_where_lower_is_better(record):
    record["evaluation"]["metric"] = {"name": "perplexity", "higher_is_better": False}
    record["evaluation"] |= {"float_score": None}
    assert "its perplexity rises by 0.08 % (at most" in plain(verdict_sentence(record_of(record)))


def test_what_was_not_evaluated_is_never_met(unjudged, language):
    for evaluation in (None, {}, {"verdict": "met"}):
        assert state(record_of(unjudged | {"evaluation": evaluation}))[0] == "no-budget"
    assert state(record_of(unjudged))[2] == "Not evaluated"
    assert "not evaluated" in verdict_sentence(record_of(unjudged))
    assert "budget" not in verdict_sentence(record_of(unjudged))
    assert state(record_of(language))[0] == "met"


def test_bits_per_weight_take_the_place_of_an_unmeasured_speed(language, record):
    assert bits_per_weight(record_of(language).plan) == 8 * 2320 / 64**2
    assert [fact.label for fact in facts(record_of(language))] == ["Size on disk", "Bits per weight", "Loss", "Budget"]
    assert facts(record_of(record))[1].label == "Speed"
    assert bits_per_weight([row for row in record_of(record).plan if row.role == "embedding"]) is None


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("speed", "is 3.9 times smaller; it"),
        ("size", "is 2.4 times faster; it"),
        ("evaluation", "it was not evaluated"),
    ],
)
def test_sentence_claims_only_what_was_measured(record, missing, says):
    record[missing] = None
    assert says in verdict_sentence(record_of(record))


def test_speed_is_that_of_bitwright_alone(record):
    for row in record["speed"]["rows"]:
        row["ratio_to_fp32"] = 4.0 if row["runtime"] == "bitwright" else 9.0
    assert "4.0 times faster" in verdict_sentence(record_of(record))
    assert facts(record_of(record))[1].value == "4.0×"


def test_no_budget(record):
    record["evaluation"] |= {"max_loss": None, "verdict": None}
    assert verdict_sentence(record_of(record)).endswith("no budget was set.")
    assert state(record_of(record))[0] == "no-budget"


def test_facts(record, minimal):
    assert [plain(fact.value) for fact in facts(record_of(record))] == ["23.3 MB", "2.4×", "0.08 %", "1 %"]
    assert {fact.value for fact in facts(record_of(minimal))} == {"–"}


def test_a_busy_machine_is_told(record):
    record["speed"]["other_load_cores"] = 0.1
    assert "busy" not in verdict_sentence(record_of(record))
    record["speed"]["other_load_cores"] = 0.98
    assert "times faster (timed while other programs kept 1.0 cores busy" in plain(verdict_sentence(record_of(record)))
