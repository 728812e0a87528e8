"""The headline, the notes under it and the state."""

import itertools
import math

import pytest

from bitwright.record import record_of
from bitwright.report.verdict import (
    LONGEST,
    bits_per_weight,
    next_step,
    speed_by_shape,
    state,
    verdict_notes,
    verdict_sentence,
)


def headline(record) -> str:
    return verdict_sentence(record_of(record)).replace("\u00a0", " ")


def notes(record) -> str:
    return " ".join(verdict_notes(record_of(record))).replace("\u00a0", " ")


def by_kind(record, verdict="met"):
    """The record of a run that judged on built-in texts of 18 kinds."""
    kinds = [{"kind": f"kind {i}", "n": 55, "loss": 0.001 + 0.0001 * i, "upper": 0.003} for i in range(18)]
    record["evaluation"] |= {"kinds": kinds, "loss": 0.0018, "loss_lower": 0.0011, "loss_upper": 0.0123}
    record["evaluation"]["verdict"] = verdict
    return record


def test_met(record):
    assert headline(record) == (
        "all-MiniLM-L6-v2 is 3.9 times smaller and 2.4 times as fast. "
        "It loses 0.08 % on 1,379 held-out samples, at most 0.21 %."
    )
    assert state(record_of(record))[0] == "met"
    assert notes(record) == ""


def test_kinds_of_text_are_counted_and_the_bound_is_for_another_one(record):
    assert headline(by_kind(record)).endswith("It loses 0.18 % on 18 kinds of text, at most 1.23 % on a new kind.")
    assert headline(by_kind(record, "undecided")).endswith(
        "It loses about 0.18 % on 18 kinds of text, but a new kind may lose 1.23 %."
    )
    assert headline(by_kind(record, "not met")).endswith("It loses 0.18 % on 18 kinds of text, over the 1 % allowed.")


@pytest.mark.parametrize("name", ["tiny", "an-organisation/" + "a-very-long-name-" * 9])
@pytest.mark.parametrize("model", ["record", "language"])
@pytest.mark.parametrize("verdict", ["met", "not met", "undecided", "not judged on pairs", None])
def test_a_headline_is_two_short_plain_sentences(name, model, verdict, request):
    made = request.getfixturevalue(model)
    made["model"]["name"] = name
    made |= dict.fromkeys(("layers", "distributions", "sensitivity"))  # of which it tells nothing; reading them is slow
    for kinds, loss, upper, smaller, busy, failed in itertools.product(
        (False, True), (0.0123, -0.001, 1.234, None), (0.0234, math.inf), (True, False), (False, True), (False, True)
    ):
        if kinds:
            by_kind(made)
        made["evaluation"] |= {"verdict": verdict, "loss": loss, "loss_upper": upper, "n_held_out": 123_456}
        made["size"]["checkpoint_bytes"] = 23_300_000 if smaller else 190_300_000
        if made["speed"]:
            made["speed"]["too_busy"] = busy
        made["verify"] = [{"target": t, "ok": not failed, "checks": {}, "detail": "x"} for t in ("bitwright", "vllm")]
        said = headline(made)
        assert len(said) <= LONGEST, said
        assert not set("()`\n") & set(said), said
        assert said.replace("0.", "0,").replace("1.", "1,").endswith(".")
        assert said.count(". ") == 1, said


@pytest.mark.parametrize("verdict", ["met", "undecided", "not met"])
def test_a_failed_check_is_the_headline_whatever_was_judged(record, verdict):
    record["evaluation"]["verdict"] = verdict
    record["verify"][0] |= {"ok": False, "detail": "its outputs are 0.2 away"}
    target = record["verify"][0]["target"]
    assert headline(record) == (
        f"all-MiniLM-L6-v2 must not be used. It gives other outputs in {target} than those that were judged."
    )
    assert f"The check in {target} failed: its outputs are 0.2 away." in notes(record)
    assert "0.08 %" in notes(record)
    assert state(record_of(record)) == ("failed", "✕", "Check failed: do not use it")


def test_the_goal_smallest_is_held_beside_int8(record):
    record["smallest"] = {"bytes": 700, "int8_bytes": 1000}
    assert notes(record) == "Its linears take 30 % fewer bytes than in INT8."
    ours = [row for row in record["speed"]["rows"] if row["runtime"] == "bitwright"]
    said = {1.6: "0.6 times as fast as that", 1.0: "as fast as that", 0.5: "2.0 times as fast as that"}
    for factor, words in said.items():
        int8 = [row | {"runtime": "all-INT8", "ratio_to_fp32": factor * row["ratio_to_fp32"]} for row in ours]
        timed = record | {"speed": record["speed"] | {"rows": [*record["speed"]["rows"], *int8]}}
        assert notes(timed) == f"Its linears take 30 % fewer bytes than in INT8, and it is {words}."
        assert "2.4 times as fast" in headline(timed)  # ours, not the other's


def test_not_met_names_what_was_allowed(not_met):
    assert "0.5 times as fast" in headline(not_met)
    assert headline(not_met).endswith("It loses 3.1 % on 1,379 held-out samples, over the 1 % allowed.")
    assert state(record_of(not_met))[0] == "not-met"


def test_undecided_says_how_much_data_would_decide(undecided):
    assert headline(undecided).endswith("It loses about 0.6 % on 120 held-out samples, too few to be sure.")
    assert "About 620 samples, half of which judge, would be enough" in notes(undecided)
    assert state(record_of(undecided))[0] == "undecided"
    undecided["evaluation"] |= {"loss_lower": -math.inf, "loss_upper": math.inf, "needed_samples": None}
    assert "∞" not in headline(undecided)
    assert notes(undecided) == ""


def test_single_texts_are_no_verdict_on_a_model_that_reads_pairs(record):
    record["evaluation"] |= {"verdict": "not judged on pairs"}
    assert headline(record).endswith("It loses 0.08 % on single texts, but it reads pairs, so it was not judged.")
    kind, symbol, heading = state(record_of(record))
    assert (kind != "met", symbol, heading) == (True, "?", "Not judged on pairs")


def test_gain_is_no_loss(record):
    record["evaluation"] |= {"loss": -0.002}
    assert "It loses nothing measurable on 1,379 held-out samples, at most 0.21 %" in headline(record)


def test_perplexity_rises(language):
    assert headline(language).endswith("Its perplexity rises by 3 % on 20 held-out windows, at most 4 %.")
    language["evaluation"] |= {"verdict": "undecided"}
    assert "rises by about 3 % on 20 held-out windows, too few to be sure." in headline(language)
    language["evaluation"] |= {"verdict": "met", "loss": -0.01}
    assert "Its perplexity does not rise on 20 held-out windows, at most 4 %." in headline(language)


def test_what_was_not_evaluated_is_never_met(unjudged, language):
    for evaluation in (None, {}, {"verdict": "met"}):
        assert state(record_of(unjudged | {"evaluation": evaluation}))[0] == "no-budget"
    assert state(record_of(unjudged))[2] == "Not evaluated"
    assert headline(unjudged).endswith("Its loss of accuracy was not measured.")
    assert state(record_of(language))[0] == "met"


def test_bits_per_weight(language, record):
    assert bits_per_weight(record_of(language).plan) == 8 * 2320 / 64**2
    assert bits_per_weight([row for row in record_of(record).plan if row.role == "embedding"]) is None


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("speed", "is 3.9 times smaller. It"),
        ("size", "is 2.4 times as fast. It"),
        ("evaluation", "loss of accuracy was not measured"),
    ],
)
def test_a_headline_claims_only_what_was_measured(record, missing, says):
    record[missing] = None
    assert says in headline(record)


def test_speed_is_that_of_bitwright_alone(record):
    for row in record["speed"]["rows"]:
        row["ratio_to_fp32"] = 4.0 if row["runtime"] == "bitwright" else 9.0
    assert "4.0 times as fast" in headline(record)


def test_speed_is_against_the_faster_of_both_precisions(record):
    for row in record["speed"]["rows"]:
        row |= {"ratio_to_fp32": 8.0, "ratio_to_bf16": 3.0 if row["batch"] < 8 else 12.0}
    assert set(speed_by_shape(record_of(record)).values()) == {3.0, 8.0}
    assert "4.9 times as fast" in headline(record)


def test_no_budget(record):
    record["evaluation"] |= {"max_loss": None, "verdict": None}
    assert state(record_of(record))[0] == "no-budget"


@pytest.mark.parametrize(
    ("verdict", "says"),
    [
        ("met", "README.md"),
        ("not met", "--max-loss"),
        ("undecided", "more rows"),
        ("not judged on pairs", "--data FILE#FIRST,SECOND"),
        (None, "bitwright eval"),
    ],
)
def test_a_reader_is_told_what_to_do_next(record, verdict, says):
    record["evaluation"]["verdict"] = verdict
    assert says in next_step(record_of(record))
    if verdict == "undecided":
        assert "text like yours" in next_step(record_of(by_kind(record, verdict)))
    record["verify"][0]["ok"] = False
    assert "Do not use these files" in next_step(record_of(record))


@pytest.mark.parametrize("busy", [{"too_busy": True, "rows": []}, {}])
def test_a_busy_machine_gives_no_speed(record, busy):
    record["speed"]["other_load_cores"] = 0.1
    assert "2.4 times as fast" in headline(record)
    record["speed"] |= {"other_load_cores": 0.98} | busy
    assert "fast" not in headline(record)
    assert "Its speed was not measured: other programs kept 1.0 cores busy." in notes(record)
