"""bitwright generate: a language model continues or answers prompts."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitwright.cli.command import Command
from bitwright.cli.generating import has_chat_template, load_generator, streamed
from bitwright.cli.options import engine_options, json_option, quiet_option, sampling_options
from bitwright.cli.terminal import FAILURE, print_json, remark
from bitwright.errors import DataError, ExitCode, InputError, printable

if TYPE_CHECKING:
    from bitwright.generate.sequence import Generation

_TITLE = 60  # characters of a prompt that are shown above its answer


@click.command("generate", cls=Command)
@click.argument("directory", type=click.Path())
@click.option(
    "--prompt", "-p", "prompt", multiple=True, metavar="TEXT", help="Answer this prompt. Repeat it for several."
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Answer the prompts in this file: a line each; or in .jsonl an object with `prompt` or `messages` each.",
)
@click.option(
    "--chat",
    "form",
    flag_value="chat",
    help="Give the model each prompt as a question, by its chat template. Default, if it has one.",
)
@click.option("--raw", "form", flag_value="raw", help="Give the model each prompt as the beginning of a text.")
@click.option("--system", metavar="TEXT", help="With --chat, tell the model first how it should answer.")
@sampling_options
@engine_options
@json_option("prompts, answers, tokens and how each answer ended")
@quiet_option
def command(
    directory: str, prompt: tuple[str, ...], prompts: Path | None, form: str | None, system: str | None,
    threads: int | None, kv_cache: str | None, as_json: bool, quiet: bool, asked: dict[str, Any],
) -> int:  # fmt: skip
    """Let the language model in DIRECTORY answer prompts.

    \b
      bitwright generate DIR -p "Why is the sky blue?"
      bitwright generate DIR --prompts questions.txt --json > answers.json

    The answer to a single prompt is shown while it comes. Several are computed
    together, which takes less time for each.
    """
    given: list[str | list[Any]] = [*prompt, *([] if prompts is None else read_prompts(prompts))]
    if not given:
        raise InputError("there is no prompt; give one with -p, or a file with --prompts")
    model = load_generator(directory, threads=threads, kv_cache=kv_cache, asked=asked)
    templated = has_chat_template(model.path) if form is None else form == "chat"
    inputs = _inputs(model, given, templated=templated, system=system)
    if len(given) == 1 and not as_json:
        answer = streamed(model.stream(inputs[0], **asked), stops=False)
        if not quiet:
            remark(str(answer))
        return ExitCode.FAILED if answer.reason == "error" else ExitCode.DONE
    found = model.generate(inputs, **asked)
    if as_json:
        print_json([_plain(one, made) for one, made in zip(given, found, strict=True)])
    else:
        print_answers(given, found)
    failed = [number for number, made in enumerate(found, 1) if made.finish_reason == "error"]
    for number in failed:
        remark(f"prompt {number}: {found[number - 1].error}", FAILURE)
    return ExitCode.FAILED if failed else ExitCode.DONE


def read_prompts(file: Path) -> list[str | list[Any]]:
    """The prompts in a file: texts, or conversations (lists of messages). Empty lines are left out.

    Raises:
        DataError: a file that cannot be read, a line of .jsonl that holds neither, or no prompt at all.
    """
    from bitwright.parsing import parse_json

    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as UTF-8 text ({error})") from None
    found: list[str | list[Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if file.suffix != ".jsonl":
            found.append(line)
            continue
        try:
            value = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}: line {number} is not JSON ({error})") from None
        entry = value if isinstance(value, dict) else {"prompt": value}
        text, messages = entry.get("prompt"), entry.get("messages")
        if isinstance(messages, list) and text is None:
            found.append(messages)
        elif isinstance(text, str) and messages is None:
            found.append(text)
        else:
            raise DataError(
                f'{file}: line {number} must hold {{"prompt": "…"}} or {{"messages": [{{"role": …, "content": …}}]}}'
            )
    if not found:
        raise DataError(f"{file}: there is no prompt in it")
    return found


def _inputs(model: Any, given: list[str | list[Any]], *, templated: bool, system: str | None) -> list[Any]:
    """What the model gets: texts, or the tokens of conversations."""
    conversations = [one for one in given if isinstance(one, list)]
    if not templated:
        if conversations or system is not None:
            what = "--system" if system is not None else "a line with messages"
            raise InputError(f"{what} needs a chat template; leave out --raw, or give a model that has one")
        return given
    head = [] if system is None else [{"role": "system", "content": system}]
    asked = [one if isinstance(one, list) else [{"role": "user", "content": one}] for one in given]
    return [model.chat_prompt([*head, *messages]) for messages in asked]


def print_answers(given: list[str | list[Any]], found: "list[Generation]") -> None:
    """Each answer under the beginning of its prompt."""
    for number, (one, made) in enumerate(zip(given, found, strict=True), 1):
        last = one if isinstance(one, str) else str(one[-1].get("content", ""))
        title = " ".join(last.split())
        title = title if len(title) <= _TITLE else f"{title[: _TITLE - 1]}…"
        click.echo(printable(f"{number}. {title}\n{made.text}\n"))


def _plain(given: str | list[Any], made: "Generation") -> dict[str, Any]:
    """A prompt and its answer, for JSON."""
    scores = made.logprobs and [{"id": one.id, "logprob": one.logprob, "top": one.top} for one in made.logprobs]
    return {
        "prompt": given, "text": made.text, "ids": made.ids, "finish_reason": made.finish_reason, "logprobs": scores,
        "prompt_tokens": made.prompt_tokens, "error": made.error,
    }  # fmt: skip
