"""The command line: one thin file per command. Only this layer prints and exits."""

import sys
from importlib import import_module

import click

import bitwright
from bitwright.errors import BitwrightError

# name -> one line of help. The module of a command is imported when it runs, so that --help answers at once.
COMMANDS = {
    "quantize": "Quantize a model within an accuracy budget, and write a report.",
    "analyze": "Rank the layers of a model by what quantizing them does to its outputs.",
    "bench": "Measure a quantized model against its float original.",
    "report": "Rebuild report.html from the record of a result.",
    "compare": "Put two results side by side.",
    "doctor": "Show what this machine can run.",
}


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
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"There is no command {args[0]!r}.{hint} `bitwright --help` lists them.")
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(bitwright.__version__, prog_name="bitwright")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def app(debug: bool) -> None:
    """Make a transformer cheaper to serve, within an accuracy loss you set.

    \b
    bitwright quantize MODEL --max-loss 1% --out DIR
    """


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 wrong input, 3 budget not met, 130 stopped by Ctrl-C."""
    debug = "--debug" in sys.argv
    arguments = [word for word in sys.argv[1:] if word != "--debug"]  # allowed anywhere
    try:
        sys.exit(app.main(args=arguments, standalone_mode=False) or 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _say_error("stopped. Nothing half-written is left; the same command goes on where this one stopped")
        sys.exit(130)
    except BitwrightError as error:
        if debug:
            raise
        _say_error(str(error))
        sys.exit(error.exit_code)
    except (OSError, MemoryError) as error:
        if debug:
            raise
        _say_error(f"{type(error).__name__}: {error or 'not enough memory'}")
        sys.exit(1)


def _say_error(text: str) -> None:
    print(f"bitwright: {' '.join(text.split())}", file=sys.stderr)
