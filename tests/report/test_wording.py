"""Numbers as a reader sees them."""

import math

import pytest

from bitwright.report.wording import (
    alike,
    breakable,
    companion,
    fixed,
    moment,
    number,
    percent,
    ratio,
    seconds,
    short_name,
    size,
    times,
    with_code,
)


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (0.0008, "0.08 %"),
        (0.01, "1 %"),
        (0.1234, "12.3 %"),
        (-0.0005, "−0.05 %"),
        (0.0, "0 %"),
        (-1e-9, "> −0.001 %"),
        (1e-9, "< 0.001 %"),
        (math.inf, "∞"),
        (math.nan, "NaN"),
        (None, "–"),
    ],
)
def test_percent(fraction, text):
    assert plain(percent(fraction)) == text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (9_999, "10.0 kB"),
        (90_868_376, "90.9 MB"),
        (999_600, "1.00 MB"),
        (4e15, "4000 TB"),
        (None, "–"),
    ],
)
def test_size(n_bytes, text):
    assert plain(size(n_bytes)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.98765, "0.9877"),
        (1234567, "1,234,567"),
        (1234.5, "1,234"),
        (-3, "−3"),
        (0.0000123, "1.23e−5"),
        (-math.inf, "−∞"),
        (True, "True"),
        ("text", "text"),
        ("", "–"),
    ],
)
def test_number(value, text):
    assert number(value) == text


def test_factors():
    assert ratio(3.876) == "3.88×"
    assert times(3.88, "smaller", "larger") == "3.9 times smaller"
    assert times(0.5, "faster", "slower") == "2.0 times slower"
    assert times(1.01, "faster", "slower") == "about as fast"
    assert fixed(-0.001, 2) == "0.00"


def test_durations_and_moments():
    assert [plain(seconds(s)) for s in (0.25, 42, 75, 3700)] == ["0.25 s", "42 s", "1 min 15 s", "1 h 1 min"]
    assert moment("2025-03-04T10:20:30.123+00:00") == "2025-03-04 10:20 UTC"
    assert moment("yesterday") == "yesterday"


def test_names():
    assert short_name("org/model") == short_name("/some/where/model/") == "model"
    assert short_name(None) == "The model"
    assert breakable("a.<b>.c") == "a.<wbr>&lt;b&gt;.<wbr>c"
    assert companion("sqnr_db")[0] == "SQNR, dB"
    assert companion("my_measure") == ("my measure", "")


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ((44.2287, 44.4), ("44.23", "44.40")),
        ((1.0, 0.99913), ("1.0000", "0.9991")),
        ((0.0, 0.5), ("0.0000", "0.5000")),
        ((12345.6, 2.0), ("12,346", "2")),
        ((math.inf, 24.1), ("∞", "24.10")),
        ((None, None), ("–", "–")),
    ],
)
def test_numbers_to_be_compared_look_alike(values, texts):
    assert alike(*values) == texts


def test_commands_and_options_of_a_sentence_are_code() -> None:
    said = str(with_code("Use <b> bitwright eval DIR --max-loss 1%, or --data."))
    assert said == ("Use &lt;b&gt; <code>bitwright eval</code> DIR <code>--max-loss</code> 1%, or <code>--data</code>.")
