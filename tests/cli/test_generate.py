"""bitwright generate: what the model is asked, and how its answers are shown."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from bitwright.cli.options import CACHE_NAMES
from bitwright.engine.cache_layout import CacheKind
from bitwright.generate.sampling import RANGES

Run = Callable[..., Any]
TinyModel = Callable[..., Path]


def test_one_prompt_is_streamed(run: Run, speaker: Any) -> None:
    outcome = run("generate", "DIR", "-p", "Do you?")
    assert (outcome.code, outcome.out) == (0, "Yes, I do.\n")
    assert outcome.remarks[0].startswith("bitwright: 10 tokens, ")
    assert outcome.remarks[0].endswith(" s")
    assert speaker.conversations == [[{"role": "user", "content": "Do you?"}]]
    assert speaker.asked == [([1, 7], {})]
    assert speaker.loaded == ("DIR", {"compute": "engine"})
    assert run("generate", "DIR", "-p", "Do you?", "--quiet").err == ""


def test_options_reach_the_model(run: Run, speaker: Any) -> None:
    given = [
        "--max-tokens", 5, "--temperature", 0.5, "--top-k", 3, "--top-p", 0.9, "--min-p", 0.1, "--seed", 7,
        "--stop", "a", "--stop", "b", "--threads", 2, "--kv-cache", "bf16", "--raw",
    ]  # fmt: skip
    assert run("generate", "DIR", "-p", "x", *given).code == 0
    want = {"max_tokens": 5, "temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "seed": 7, "stop": ("a", "b")}
    assert speaker.asked == [("x", want)]
    assert speaker.loaded == ("DIR", {"threads": 2, "kv_cache": "bf16", "compute": "engine"})


def test_several_prompts_are_answered_together(run: Run, speaker: Any, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("How much?\n\nAnd " + "why " * 40 + "\n")
    outcome = run("generate", "DIR", "-p", "Do you?", "--prompts", file)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[:4] == ["1. Do you?", "Yes, I do.", "", "2. How much?"]
    assert lines[6].startswith("3. And why why")
    assert len(lines[6]) == 63
    assert speaker.asked == [([[1, 7], [1, 9], [1, 164]], {})]


def test_conversations_of_a_file(run: Run, speaker: Any, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    file.write_text("\n".join(map(json.dumps, [{"prompt": "c"}, {"messages": messages}, "d"])))
    outcome = run("generate", "DIR", "--prompts", file, "--json", "--system", "Be brief.")
    found = json.loads(outcome.out)
    assert [one["prompt"] for one in found] == ["c", messages, "d"]
    assert found[0] | {"prompt": ""} == {
        "prompt": "", "text": "Yes, I do.", "ids": [3, 4], "finish_reason": "stop", "logprobs": None,
        "prompt_tokens": 2, "error": None,
    }  # fmt: skip
    assert speaker.conversations[1] == [{"role": "system", "content": "Be brief."}, *messages]
    refused = run("generate", "DIR", "--prompts", file, "--raw")
    assert (refused.code, "a line with messages needs a chat template" in refused.err) == (2, True)


def test_a_model_without_a_template_continues_texts(run: Run, speaker: Any) -> None:
    (speaker.path / "chat_template.jinja").unlink()
    assert run("generate", "DIR", "-p", "x").code == 0
    assert speaker.asked == [("x", {})]
    outcome = run("generate", "DIR", "-p", "x", "--system", "y")
    assert (outcome.code, "--system needs a chat template" in outcome.err) == (2, True)


def test_what_a_terminal_would_obey_is_shown(run: Run, speaker: Any) -> None:
    speaker.says = "a\x1b]0;x\x07\r\tb\nc\u202e"
    shown = "a\\x1b]0;x\\x07\\r\tb\nc\\u202e"
    assert run("generate", "DIR", "-p", "x").out == f"{shown}\n"
    assert shown in run("generate", "DIR", "-p", "x\x1b[1m", "-p", "y").out


@pytest.mark.parametrize("prompts", [["-p", "x"], ["-p", "x", "-p", "y"], ["-p", "x", "--json"]])
def test_a_request_that_failed_is_told(run: Run, speaker: Any, prompts: list[str]) -> None:
    speaker.reason = "error"
    outcome = run("generate", "DIR", *prompts)
    assert outcome.code == 1
    assert "Yes, I do." in outcome.out
    if prompts != ["-p", "x"]:
        assert "bitwright: prompt 1: NaN" in outcome.remarks


def test_ctrl_c_ends_the_program(run: Run, speaker: Any) -> None:
    speaker.stopped_after = 3
    outcome = run("generate", "DIR", "-p", "x")
    assert (outcome.code, outcome.out) == (130, "Yes\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "there is no prompt; give one with -p, or a file with --prompts"),
        (["-p", "x", "--max-tokens", "0"], "--max-tokens: 0 is not in the range"),
        (["-p", "x", "--temperature", "nan"], "temperature is nan; it must be a number of at least 0"),
        (["-p", "x", "--top-p", "0"], "--top-p: 0"),
        (["-p", "x", "--stop", ""], "stop is ('',); it must be a string or several, none of them empty"),
        (["-p", "x", "--kv-cache", "int9"], "'int9' is unknown (did you mean 'int8'?)"),
    ],
)
def test_wrong_options_are_refused_before_the_model_is_loaded(
    run: Run, speaker: Any, arguments: list[str], says: str
) -> None:
    outcome = run("generate", "DIR", *arguments)
    assert outcome.code == 2
    assert says in outcome.err
    assert not hasattr(speaker, "loaded")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": 3}', "line 2 must hold"),
        ("a.jsonl", '{"prompt": "x", "messages": []}', "line 1 must hold"),
        ("a.jsonl", "nonsense", "line 1 is not JSON"),
        ("a.txt", " \n", "there is no prompt in it"),
        ("a.txt", "\udcff", "cannot be read as UTF-8 text"),
    ],
)
def test_a_file_without_prompts_is_refused(run: Run, tmp_path: Path, name: str, content: str, says: str) -> None:
    file = tmp_path / name
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    outcome = run("generate", "DIR", "--prompts", file)
    assert outcome.code == 2
    assert f"{name}: {says}" in outcome.err


def test_an_encoder_generates_nothing(run: Run, tiny_model: TinyModel) -> None:
    outcome = run("generate", tiny_model("bert"), "-p", "x")
    assert outcome.code == 1
    assert "this model generates no text, it is for embedding" in outcome.err


def test_a_language_model_that_is_not_on_the_engine_is_told(run: Run, tiny_model: TinyModel) -> None:
    outcome = run("generate", tiny_model("opt"), "-p", "x")
    assert outcome.code == 1
    assert "the engine does not run model_type 'opt'; it runs arcee, bitnet, cohere, cohere2, cwm" in outcome.err


def test_limits_are_those_of_sampling(run: Run) -> None:
    """Written twice, because the help must not wait for the import."""
    import click

    from bitwright.cli import app

    command = app.get_command(click.Context(app), "generate")
    assert command is not None
    for option in command.params:
        allowed = RANGES.get(str(option.name))
        if allowed is not None:
            kind: Any = option.type
            most = kind.max if kind.max is not None else float("inf")
            assert (kind.min, most, kind.min_open) == (allowed.least, allowed.most, allowed.above), option.name
    assert get_args(CacheKind) == CACHE_NAMES
