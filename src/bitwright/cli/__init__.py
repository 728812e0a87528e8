"""The command line: one thin file per command. Only this layer prints and exits."""

import signal
import sys
import traceback
import warnings
from importlib import import_module
from typing import Any

import click

import bitwright
from bitwright.errors import BitwrightError, ExitCode, InputError, printable

# name -> one line of help. The module of a command is imported when it runs, so that --help answers at once.
COMMANDS = {
    "quantize": "Quantize a model within an accuracy budget, and write a report.",
    "plan": "Decide how to quantize a model, and show why; or its size by config.json.",
    "analyze": "Rank the layers of a model by what quantizing them does to it.",
    "eval": "Score a model: perplexity, or a task; with a reference, what it lost.",
    "inspect": "Show the program of native operators that a checkpoint runs as.",
    "bench": "Measure a quantized model against its float original.",
    "recipes": "List the recipes that come with Bitwright.",
    "report": "Rebuild report.html from the record of a result.",
    "compare": "Put two results side by side.",
    "doctor": "Show what this machine can run.",
}

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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(COMMANDS)}"
            raise InputError(f"no such command {args[0]!r}; {hint} (`bitwright --help` describes them)")
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(bitwright.__version__, prog_name="bitwright")
@click.option("--debug", is_flag=True, help="Show the traceback of an error. Allowed anywhere.")
def app(debug: bool) -> None:
    """Make a transformer cheaper to serve, within an accuracy loss you set.

    \b
      bitwright quantize MODEL --max-loss 1% --out DIR

    \b
    Exit codes: 0 done; 1 failed; 2 wrong input; 3 budget not met, or the
    sample cannot decide it; 130 stopped by Ctrl-C or SIGTERM.
    """


def main() -> None:
    """Run the command line and exit. An error is one line on stderr; --debug adds the traceback."""
    debug = "--debug" in sys.argv
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop cleans up as Ctrl-C does
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = app.main(args=arguments, prog_name="bitwright", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except _TOLD as error:
        if debug:
            traceback.print_exc()
        text, code = _told(error, arguments)
        _say(text)
    sys.exit(code or 0)


def _told(error: BaseException, arguments: list[str]) -> tuple[str, int]:
    """(what to tell a person, exit code)."""
    match error:
        case KeyboardInterrupt() | click.Abort():
            resumes = arguments[:1] == ["quantize"]
            goes_on = "; the same command goes on where this one stopped" if resumes else ""
            return f"stopped; nothing half-written is left{goes_on}", ExitCode.STOPPED
        case click.NoSuchOption() | click.MissingParameter():
            path = error.ctx.command_path if error.ctx else "bitwright"
            return f"{error.format_message().rstrip('.')} (`{path} --help` lists what can be given)", error.exit_code
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
    _say(f"warning: {message}")


def _say(text: str) -> None:
    print(f"bitwright: {printable(' '.join(text.split()))}", file=sys.stderr)
