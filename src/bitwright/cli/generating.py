"""What `generate` and `chat` share: a model that generates, and text that is shown while it comes."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from bitwright.errors import ModelError, printable

if TYPE_CHECKING:
    from bitwright.generate.sequence import FinishReason, Step


class Answer(NamedTuple):
    """What was streamed. reason: as in `Step`; None: Ctrl-C stopped it. waited: seconds until the first token.
    seconds: from there to the last one.
    """

    text: str
    tokens: int
    reason: "FinishReason | None"
    waited: float
    seconds: float

    def __str__(self) -> str:
        rate = f", {(self.tokens - 1) / self.seconds:.1f} tokens/s" if self.tokens > 1 and self.seconds > 0 else ""
        word = "token" if self.tokens == 1 else "tokens"
        return f"{self.tokens} {word}{rate}, the first after {self.waited:.2f} s"


def load_generator(directory: str, *, threads: int | None, kv_cache: str | None, asked: dict[str, Any]) -> Any:
    """The model of a directory on the engine, quantized or float, if it is one that generates text.

    asked: checked before the model is loaded.

    Raises:
        InputError: a wrong value in `asked`. ModelError: a model for something else. EngineError: one that the engine
            does not run. And what `bitwright.load` raises.
    """
    from bitwright import load
    from bitwright.generate.sampling import Sampling

    Sampling.of({}, **asked)
    options: dict[str, Any] = {"threads": threads, "kv_cache": kv_cache, "compute": "engine"}
    model = load(directory, **{name: value for name, value in options.items() if value is not None})
    if getattr(model, "generate", None) is None:
        raise ModelError(f"{directory}: this model generates no text, it is for {model.task}; give a language model")
    return model


def has_chat_template(directory: Path) -> bool:
    """Whether a model's files say how a conversation is written."""
    from bitwright.files.opening import open_path
    from bitwright.generate.chat import ChatTemplates

    return bool(ChatTemplates(open_path(directory)).templates)


def streamed(steps: "Iterator[Step]", *, stops: bool) -> Answer:
    """Write an answer to stdout while it comes. stops: Ctrl-C ends the answer, not the program."""
    begin = time.monotonic()
    first = last = begin
    pieces: list[str] = []
    tokens, reason = 0, None
    try:
        with closing(steps):  # type: ignore[type-var]
            for step in steps:
                last = time.monotonic()
                first = first if tokens else last
                tokens += step.id is not None
                pieces.append(step.text)
                click.echo(printable(step.text), nl=False)
                reason = step.finish_reason
    except KeyboardInterrupt:
        if not stops:
            raise
    finally:
        click.echo()  # what follows, an error too, begins on a line of its own
    return Answer("".join(pieces), tokens, reason, first - begin, last - first)
