"""bitwright chat: what is said, what is kept, and what the commands do."""

import io
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Signals as they were."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def talk(run: Run, speaker: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`talk("Hello", "/reset", options=[…])`: a chat in which a person types these lines."""

    def call(*lines: str, options: tuple[str, ...] = ()) -> Any:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return run("chat", "DIR", *options)

    return call


def said(*parts: str) -> list[dict[str, str]]:
    """Messages, of user and assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": part} for i, part in enumerate(parts)]


def test_the_conversation_is_kept(talk: Callable[..., Any], speaker: Any) -> None:
    outcome = talk("Hello", "", "And now?")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0] == lines[2] == "Yes, I do."
    assert lines[1].startswith("[10 tokens, ")
    assert "tokens/s, the first after" in lines[1]
    assert speaker.conversations == [said("Hello"), said("Hello", "Yes, I do.", "And now?")]
    assert [asked for _, asked in speaker.asked] == [{"max_tokens": 1024}] * 2


def test_options_reach_the_model(talk: Callable[..., Any], speaker: Any) -> None:
    talk("Hello", options=("--max-tokens", "3", "--seed", "1", "--system", "Be kind.", "--threads", "1"))
    assert speaker.asked == [([2, 5], {"max_tokens": 3, "seed": 1})]
    assert speaker.conversations == [[{"role": "system", "content": "Be kind."}, *said("Hello")]]
    assert speaker.loaded == ("DIR", {"threads": 1, "compute": "engine"})


def test_commands(talk: Callable[..., Any], speaker: Any) -> None:
    system = [{"role": "system", "content": "Be kind, and brief."}]
    outcome = talk("a", "/system Be kind, and brief.", "b", "/reset", "c", "/system", "d", "/help", "/exit", "e")
    assert (outcome.code, outcome.err) == (0, "")
    assert speaker.conversations == [
        said("a"),
        [*system, *said("a", "Yes, I do.", "b")],
        [*system, *said("c")],
        said("c", "Yes, I do.", "d"),
    ]
    for name in ("/help", "/reset", "/system TEXT", "/save FILE", "/exit"):
        assert f"{name} " in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_an_unknown_command_is_answered_with_the_nearest(talk: Callable[..., Any], speaker: Any) -> None:
    outcome = talk("/rest", "/save")
    assert outcome.remarks == [
        "bitwright: no such command '/rest' (did you mean '/reset'?); /help lists them",
        "bitwright: /save needs the name of a file",
    ]
    assert speaker.asked == []


def test_a_conversation_is_saved(talk: Callable[..., Any], speaker: Any, here: Path) -> None:
    (here / "old.json").write_text("kept")
    outcome = talk("Grüße", "/save talk.json", "b", "/save talk.json", "/save old.json", "/save no/such.json", "c")
    assert json.loads((here / "talk.json").read_text()) == {"messages": said("Grüße", "Yes, I do.", "b", "Yes, I do.")}
    assert (here / "old.json").read_text() == "kept"
    assert "there is such a file" in outcome.remarks[0]
    assert "no" in outcome.remarks[1]
    assert len(speaker.asked) == 3  # the chat goes on


def test_ctrl_c_stops_the_answer_alone(talk: Callable[..., Any], speaker: Any) -> None:
    speaker.stopped_after = 3
    outcome = talk("a", "b")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0] == lines[2] == "Yes"
    assert lines[1].endswith("; stopped]")
    assert speaker.conversations[1] == said("a", "Yes", "b")
    speaker.conversations.clear()
    speaker.stopped_after = 0
    talk("a", "b")
    assert speaker.conversations == [said("a"), said("b")]  # a question without an answer is not kept


def test_ctrl_c_at_the_prompt_says_how_to_leave(run: Run, speaker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [KeyboardInterrupt(), "Hello", EOFError()]

    def read(prompt: str) -> str:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return str(answer)

    monkeypatch.setattr("builtins.input", read)
    outcome = run("chat", "DIR")
    assert outcome.code == 0
    assert "Ctrl-D or /exit ends the chat." in outcome.out
    assert "Yes, I do." in outcome.out


def test_an_error_does_not_end_the_chat(
    talk: Callable[..., Any], speaker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitwright.errors import InputError

    def full(messages: list[dict[str, Any]]) -> list[int]:
        speaker.conversations.append(messages)
        if len(messages[-1]["content"]) > 5:
            raise InputError("the prompt has 99 tokens")
        return [1]

    monkeypatch.setattr(speaker, "chat_prompt", full)
    outcome = talk("too long", "b")
    assert (outcome.code, outcome.remarks) == (0, ["bitwright: the prompt has 99 tokens"])
    assert speaker.conversations[1] == said("b")


@pytest.mark.parametrize(("reason", "says"), [("length", "at the limit of tokens"), ("error", "the model failed")])
def test_how_an_answer_ended_is_told(talk: Callable[..., Any], speaker: Any, reason: str, says: str) -> None:
    speaker.reason = reason
    assert f"; {says}]" in talk("a").out


def test_what_a_terminal_would_obey_is_shown(talk: Callable[..., Any], speaker: Any) -> None:
    speaker.says = "\x1b[31mred\x07"
    assert talk("a").out.startswith("\\x1b[31mred\\x07\n")


def test_a_model_that_cannot_talk_is_refused(talk: Callable[..., Any], speaker: Any) -> None:
    (speaker.path / "chat_template.jinja").unlink()
    outcome = talk("a")
    assert (outcome.code, outcome.out) == (1, "")
    assert "has no chat template" in outcome.err
    assert "bitwright generate --raw" in outcome.err


def test_a_scheduler_can_end_it(talk: Callable[..., Any], speaker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speaker, "stream", lambda *args, **asked: signal.raise_signal(signal.SIGTERM))
    assert talk("a", "b").code == 130
