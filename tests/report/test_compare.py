"""Two records side by side."""

import copy

from bitwright.record import record_of
from bitwright.report import ComparisonRow, compare_records, render_comparison


def rows_of(a, b):
    return {row.name: row for row in compare_records(record_of(a), record_of(b))}


def test_a_record_equals_itself(record):
    for row in compare_records(record_of(record), record_of(record)):
        assert row.a == row.b
        assert row.change.replace("\u00a0", " ") in ("same", "1.00×", "0", "0 %"), row


def test_ratios_and_differences(record):
    other = copy.deepcopy(record)
    other["size"]["checkpoint_bytes"] *= 2
    other["evaluation"]["loss"] += 0.01
    other["verify"][0]["ok"] = False
    other["plan"][0]["scheme"] = "16bit"
    rows = rows_of(record, other)
    assert rows["size on disk"].change == "2.00×"
    assert rows["loss"].change.replace("\u00a0", " ") == "+1 %"
    assert rows["verified in bitwright"] == ComparisonRow("verified in bitwright", "passed", "failed", "differs")
    assert rows["layers stored as w8a8"].change == "−1"


def test_language_models_compare_by_protocol_method_and_error(language, experts, unjudged):
    other = copy.deepcopy(language)
    other["evaluation"]["metric"]["protocol"] = "another"
    for row in (*other["plan"], *other["layers"]):
        row["method"] = "awq"
    for row in other["layers"]:
        row["error"] /= 2
    rows = rows_of(language, other)
    assert rows["protocol"].change == "differs"
    assert rows["layers by gptq"].change == f"−{len(language['plan'])}"
    assert rows["layers by awq"].change == f"+{len(language['plan'])}"
    assert rows["error of the worst layer"].change == "0.50×"
    assert rows["bits per weight"].change == "0"
    assert "experts starved" not in rows
    assert rows_of(language, experts)["experts starved"].b == "8"
    assert rows_of(language, unjudged)["loss"].b == "–"


def test_what_was_not_checked_did_not_fail(record):
    assert rows_of(record, record)["verified in vllm"].a == "not checked"


def test_what_one_lacks_is_a_dash_and_what_both_lack_is_no_row(record, minimal):
    rows = rows_of(record, minimal)
    assert (rows["size on disk"].b, rows["size on disk"].change) == ("–", "–")
    assert compare_records(record_of(minimal), record_of(minimal)) == []


def test_page_escapes_and_shows_both(record, undecided):
    record["model"]["name"] = "<img src=x>"
    page = render_comparison(record_of(record), record_of(undecided))
    assert "<img" not in page
    assert "<script" not in page
    assert "&lt;img src=x&gt;" in page
    assert "too few to be sure" in page
