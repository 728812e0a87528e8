"""bitwright chat: a conversation with a language model in the terminal."""

import json
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from bitwright.cli.command import Command, nearest
from bitwright.cli.generating import has_chat_template, load_generator, streamed
from bitwright.cli.options import engine_options, sampling_options
from bitwright.cli.terminal import FAILURE, out, remark, table
from bitwright.errors import BitwrightError, ExitCode, InputError, ModelError

_MAX_TOKENS = 1024  # of an answer, unless asked: a person can stop it
_PROMPT = "> "


@dataclass
class Talk:
    """A conversation: the model, what is asked of its answers, all messages, and the files that it was saved to."""

    model: Any
    asked: dict[str, Any]
    messages: list[dict[str, str]] = field(default_factory=list)
    saved: set[Path] = field(default_factory=set)

    def set_system(self, text: str) -> None:
        """Begin the conversation with this system message, or with none."""
        rest = [message for message in self.messages if message["role"] != "system"]
        self.messages = [*([{"role": "system", "content": text}] if text else []), *rest]


@click.command("chat", cls=Command)
@click.argument("directory", type=click.Path())
@click.option("--system", metavar="TEXT", help="Tell the model first how it should answer.")
@sampling_options
@engine_options
def command(
    directory: str, system: str | None, threads: int | None, kv_cache: str | None, asked: dict[str, Any]
) -> None:
    """Talk with the language model in DIRECTORY.

    The model sees the whole conversation each time. Ctrl-C stops an answer,
    Ctrl-D ends the chat, and /help lists the commands.
    """
    model = load_generator(directory, threads=threads, kv_cache=kv_cache, asked=asked)
    if not has_chat_template(model.path):
        raise ModelError(
            f"{directory}: the model has no chat template, so it was not trained to talk; `bitwright generate --raw` "
            "lets it continue a text"
        )
    talk = Talk(model, {"max_tokens": _MAX_TOKENS} | asked)
    talk.set_system(system or "")
    signal.signal(signal.SIGTERM, _end)  # Ctrl-C stops an answer, but this must end the program
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        with suppress(ImportError):
            import readline  # noqa: F401  # lets `input` edit lines and recall earlier ones
        out.print(f"{model.path.name} on {model.backend}. /help lists the commands.", style="dim", markup=False)
    while True:
        try:
            line = input(_PROMPT if at_terminal else "").strip()
        except EOFError:
            break
        except KeyboardInterrupt:
            click.echo("\nCtrl-D or /exit ends the chat.")
            continue
        if line == "/exit":
            break
        try:
            _obey(talk, line) if line.startswith("/") else _answer(talk, line)
        except (BitwrightError, OSError) as error:
            remark(str(error), FAILURE)


def _answer(talk: Talk, text: str) -> None:
    """Show the answer to a message. Both stay in the conversation, unless there is no answer."""
    if not text:
        return
    messages = [*talk.messages, {"role": "user", "content": text}]
    answer = streamed(talk.model.stream(talk.model.chat_prompt(messages), **talk.asked), stops=True)
    if answer.text:
        talk.messages = [*messages, {"role": "assistant", "content": answer.text}]
    ended = {"length": "; at the limit of tokens", "error": "; the model failed", None: "; stopped"}
    out.print(f"[{answer}{ended.get(answer.reason, '')}]", style="dim", markup=False)


def _obey(talk: Talk, line: str) -> None:
    name, _, argument = line.partition(" ")
    if name not in _COMMANDS:
        raise InputError(f"no such command {name!r}{nearest(name, list(_COMMANDS))}; /help lists them")
    _COMMANDS[name][2](talk, argument.strip())


def _help(talk: Talk, argument: str) -> None:
    out.print(table("", ["", ("", "prose")], [[usage, text] for usage, text, _ in _COMMANDS.values()], header=False))


def _reset(talk: Talk, argument: str) -> None:
    talk.messages = [message for message in talk.messages if message["role"] == "system"]
    click.echo("A new conversation begins.")


def _system(talk: Talk, argument: str) -> None:
    talk.set_system(argument)
    click.echo("The model is told this first from now on." if argument else "There is no system message any more.")


def _save(talk: Talk, argument: str) -> None:
    """Write the messages as JSON, as `bitwright generate --prompts` and other programs read them."""
    from bitwright.atomic import write_text_atomically

    if not argument:
        raise InputError("/save needs the name of a file")
    path = Path(argument).expanduser().absolute()
    if path.exists() and path not in talk.saved:
        raise InputError(f"{path}: there is such a file; give another name")
    write_text_atomically(path, json.dumps({"messages": talk.messages}, ensure_ascii=False) + "\n")
    talk.saved.add(path)
    click.echo(f"Saved {len(talk.messages)} messages.")


def _exit(talk: Talk, argument: str) -> None:
    raise EOFError


# name -> usage, help, what it does.
_COMMANDS: dict[str, tuple[str, str, Callable[[Talk, str], None]]] = {
    "/help": ("/help", "list the commands", _help),
    "/reset": ("/reset", "forget the conversation, but not the system message", _reset),
    "/system": ("/system TEXT", "tell the model first how it should answer; without TEXT, nothing", _system),
    "/save": ("/save FILE", "write the conversation into a file, as JSON", _save),
    "/exit": ("/exit", "end the chat, as Ctrl-D does", _exit),
}


def _end(number: int, frame: Any) -> None:
    raise SystemExit(ExitCode.STOPPED)
