"""bitwright completion: what makes a shell complete our commands and options."""

import os
from pathlib import PurePath

import click
from click.shell_completion import get_completion_class

from bitwright.cli.command import Choice, Command
from bitwright.errors import InputError

# shell -> where its users put the line that loads the script.
SHELLS = {
    "bash": 'eval "$(bitwright completion bash)"   # in ~/.bashrc',
    "zsh": 'eval "$(bitwright completion zsh)"    # in ~/.zshrc',
    "fish": "bitwright completion fish | source    # in ~/.config/fish/config.fish",
}
_VARIABLE = "_BITWRIGHT_COMPLETE"  # click's own: the script asks us with it


@click.command("completion", cls=Command, epilog="\b\n" + "\n".join(SHELLS.values()))
@click.argument("shell", type=Choice(tuple(SHELLS)), required=False, metavar="[SHELL]")
def command(shell: str | None) -> None:
    """Print the script with which SHELL completes commands and options.

    SHELL is bash, zsh or fish. Default: the shell that you use. Load it by one
    line in your shell's own file, and open a new shell:
    """
    name = shell or PurePath(os.environ.get("SHELL", "")).name
    if name not in SHELLS:
        raise InputError(f"no script for the shell {name or 'in use'!r}; name one: {', '.join(SHELLS)}")
    made = get_completion_class(name)
    assert made is not None
    root = click.get_current_context().find_root().command
    click.echo(made(root, {}, "bitwright", _VARIABLE).source())
