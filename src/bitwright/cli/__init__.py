"""The command line: one thin file per command. Only this layer prints and exits."""

import signal
import sys
import traceback
import warnings
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

import bitwright
from bitwright.cli.command import nearest
from bitwright.errors import BitwrightError, ExitCode, InputError

# name -> one line of help. The module of a command is imported when it runs, so that --help answers at once.
COMMANDS = {
    "quantize": "Make a model smaller and faster within an accuracy budget.",
    "tune": "Find the settings that lose least, and quantize by them.",
    "train": "Quantize a model, then train it to lose less.",
    "plan": "Show how a model would be quantized, and why.",
    "analyze": "Show which layers lose most when they are quantized.",
    "eval": "Score a model, alone or against its original.",
    "compare": "Put two results side by side.",
    "bench": "Time a result against its original.",
    "inspect": "Show what a checkpoint holds, and how it runs here.",
    "verify": "Check a result in runtimes, each in a clean process.",
    "convert": "Write a quantized checkpoint in another format.",
    "export": "Write an encoder as an ONNX graph, and prove it.",
    "generate": "Let a language model continue or answer prompts.",
    "chat": "Talk with a language model.",
    "encode": "Turn every text of files into a vector, in many processes.",
    "fleet": "Quantize many models by one command.",
    "registry": "Keep versions of models, and decide which one is served.",
    "drift": "Tell whether texts are like those of the calibration.",
    "report": "Write report.html of a result again.",
    "recipes": "List the recipes that come with Bitwright.",
    "doctor": "Show what this machine can run, and how fast it can be.",
    "completion": "Print the script that completes commands in your shell.",
}

# Those that go on where they were stopped.
RESUMES = ("encode", "fleet", "quantize", "train", "tune")

# Where a newcomer begins.
FIRST_STEPS = """\
Bitwright makes a transformer model smaller and faster, and measures what that
costs in accuracy. To start with, give it a model directory or a hub name:

  bitwright quantize MODEL --dry-run    show what would be done; write nothing
  bitwright quantize MODEL --out DIR    do it, and write DIR/report.html
  bitwright compare DIR OTHER           put two results side by side

`bitwright --help` lists the commands, `bitwright quantize --help` options."""

# What is wrong with the world rather than with this program: told in one line.
_TOLD = (click.ClickException, click.Abort, KeyboardInterrupt, BitwrightError, OSError, MemoryError)


class _Commands(click.Group):
    """Commands that are imported only when used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = import_module(f"bitwright.cli.{name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names of commands from the table: a key press imports none of them."""
        names = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            hint = nearest(args[0], list(COMMANDS)) or f" (there are {', '.join(COMMANDS)})"
            raise InputError(f"no such command {args[0]!r}{hint}; `bitwright --help` describes them")
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
@click.version_option(bitwright.__version__, prog_name="bitwright")
@click.option("--debug", is_flag=True, help="Show the traceback of an error. It may stand anywhere.")
@click.pass_context
def app(ctx: click.Context, debug: bool) -> None:
    """Make a transformer model smaller and faster, within a loss that you set.

    \b
      bitwright quantize MODEL --dry-run
      bitwright quantize MODEL --max-loss 1% --out DIR

    `bitwright COMMAND --help` describes a command.

    \b
    Exit codes: 0 done; 1 failed; 2 wrong input; 3 the result is not shown to be
    inside the budget; 130 stopped by Ctrl-C or SIGTERM.
    """
    if ctx.invoked_subcommand is None:
        click.echo(FIRST_STEPS)


def main() -> None:
    """Run the command line and exit. An error is one line on stderr; --debug adds the traceback."""
    debug = "--debug" in sys.argv
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop cleans up as Ctrl-C does
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = app.main(args=arguments, prog_name="bitwright", standalone_mode=False)
    except _TOLD as error:
        if debug:
            traceback.print_exc()
        text, code = _told(error, arguments)
        _say(text, failed=True)
    sys.exit(code or 0)


def _told(error: BaseException, arguments: list[str]) -> tuple[str, int]:
    """(what to tell a person, exit code)."""
    match error:
        case KeyboardInterrupt() | click.Abort():
            resumes = arguments and arguments[0] in RESUMES
            goes_on = "; the same command goes on where this one stopped" if resumes else ""
            return f"stopped; nothing half-written is left{goes_on}", ExitCode.STOPPED
        case click.NoSuchOption() | click.MissingParameter():
            path = error.ctx.command_path if error.ctx else "bitwright"
            return f"{error.format_message().rstrip('.')} (`{path} --help` lists what can be given)", error.exit_code
        case click.BadParameter(param=click.Option() as option):
            return f"{max(option.opts, key=len)}: {error.message.rstrip('.')}", error.exit_code
        case click.ClickException():
            return error.format_message(), error.exit_code
        case BitwrightError():
            return str(error), error.exit_code
        case MemoryError():
            return "not enough memory; free some, or choose a smaller model", ExitCode.FAILED
        case OSError(filename=str() as name, strerror=str() as why):
            return f"{name}: {why}", ExitCode.FAILED
        case _:
            return f"{type(error).__name__}: {error}", ExitCode.FAILED


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: Any = None,
) -> None:
    _say(f"warning: {message}", failed=False)


def _say(text: str, *, failed: bool) -> None:
    from bitwright.cli.terminal import FAILURE, WARNING, remark  # rich: --help does without

    remark(text, FAILURE if failed else WARNING)
