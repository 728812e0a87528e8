"""How the commands look: options in groups, one form of choice, and what a shell completes. Imports no torch."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import click
from click.shell_completion import CompletionItem

# Heading -> the parameters below it, in the order of the help. An option that no group names stands in the last one.
GROUPS: dict[str, tuple[str, ...]] = {
    "Prompts": ("prompt", "prompts", "form", "system"),
    "What to make": (
        "out_dir", "file_format", "rows", "overwrite", "dry_run", "recipe", "scheme", "method", "embeddings", "targets",
    ),
    "Accuracy and speed": ("max_loss", "goal", "min_speedup", "accept_point_estimate"),
    "Training": ("minutes", "steps", "train_texts", "labels", "teacher", "rate", "train_minutes"),
    "Texts and labels": (
        "reference", "data", "column", "id_column", "evaluation", "kind", "metric", "samples", "window", "windows",
        "bos",
    ),
    "Vectors": ("prompt_name", "normalize", "truncate_dim", "dtype"),
    "Answers": ("max_tokens", "stop", "temperature", "top_k", "top_p", "min_p"),
    "Search": ("trials", "sampler", "max_bytes", "max_work", "tune"),
    "Limits": ("hours", "memory", "workers", "ray"),
    "Output": ("as_json", "quiet", "top", "journal", "_click_default_help"),
    "Advanced": (),
}  # fmt: skip
_COLUMN = 21  # characters of the widest option that has its text beside it
_FEW = 8  # options that need no groups


class Command(click.Command):
    """A command whose help shows many options in groups, and of a switch only the form that changes something."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, in groups where there are many."""
        options = {option.name: option for option in self.get_params(ctx) if isinstance(option, click.Option)}
        groups = {
            heading: [options.pop(name) for name in names if name in options] for heading, names in GROUPS.items()
        }
        groups["Advanced"] += options.values()
        if sum(map(len, groups.values())) <= _FEW:
            groups = {"Options": [option for group in groups.values() for option in group]}
        rows = {heading: [_row(option, ctx) for option in group] for heading, group in groups.items() if group}
        room = max(len(typed) for group in rows.values() for typed, _ in group if len(typed) <= _COLUMN)
        for heading, lines in rows.items():
            with formatter.section(heading):  # one column for all groups
                formatter.write_dl([(typed.ljust(room), text) for typed, text in lines], col_max=room)


class Choice(click.Choice[str]):
    """A choice among names. A wrong one is answered with the nearest, and with all."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name, if it is one of the choices.

        Raises:
            click.BadParameter: it is none.
        """
        if value not in self.choices:
            known = ", ".join(self.choices)
            self.fail(f"{value!r} is unknown{nearest(str(value), self.choices)}; known: {known}")
        return str(value)


def nearest(name: str, known: Sequence[str]) -> str:
    """ " (did you mean 'mse'?)", or nothing where no known name is near."""
    near = get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def completes(names: Sequence[str]) -> Any:
    """The `shell_complete` of an option that takes one of these names, or something of another form."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]

    return complete


def _row(option: click.Option, ctx: click.Context) -> tuple[str, str]:
    """The option as it is typed, and its help with the default."""
    switches_off = option.is_bool_flag and option.default is True and option.secondary_opts
    names = sorted(option.secondary_opts if switches_off else option.opts, key=len)
    metavar = "" if option.is_flag else f" {option.make_metavar(ctx)}"
    default = option.default
    if option.show_default and default is not None:
        shown = ", ".join(map(str, default)) if isinstance(default, tuple) else default
        return ", ".join(names) + metavar, f"{option.help} Default: {shown}."
    return ", ".join(names) + metavar, option.help or ""
