"""What a message shows of a stranger's file, and that whatever a library raises becomes an error of ours."""

import pytest

from bitwright.errors import CheckpointError, EngineError, ModelError, brief, foreign, printable


class Panic(BaseException):
    """As pyo3's PanicException: no Exception."""


@pytest.mark.parametrize("error", [Panic("at the disco"), ValueError("a\nb"), MemoryError(), RecursionError("deep")])
def test_what_a_library_raises_is_ours(error: BaseException) -> None:
    with (
        pytest.raises(EngineError, match=rf"tokenizer\.json: .*{type(error).__name__}"),
        foreign("tokenizer.json: no", EngineError),
    ):
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), CheckpointError("ours")])
def test_these_pass(error: BaseException) -> None:
    with pytest.raises(type(error)), foreign("somewhere", ModelError):
        raise error


def test_controls_are_shown_not_obeyed() -> None:
    assert (
        printable("\x1b]0;pwned\x07 \x9b31m a\tb\nc é \u202eabc") == "\\x1b]0;pwned\\x07 \\x9b31m a\tb\nc é \\u202eabc"
    )


def test_a_value_is_shown_without_being_written_out() -> None:
    value: object = "x"
    for _ in range(40):
        value = [value] * 9
    assert len(brief(value)) <= 160
    assert len(brief("y" * 10**6)) <= 160


def test_what_an_error_says_is_short_and_escaped() -> None:
    assert str(CheckpointError("a\rb \x1b[31mred")) == "a\\rb \\x1b[31mred"
    long = str(ModelError("config.json: " + "x" * 10**6 + "; remove it"))
    assert len(long) < 2100
    assert long.startswith("config.json: xxx")
    assert long.endswith("xxx; remove it")
