"""bitwright recipes: the recipes that come with Bitwright."""

from pathlib import Path

import click

from bitwright.cli.command import Command, nearest
from bitwright.cli.options import json_option
from bitwright.cli.terminal import Column, out, print_json, table
from bitwright.errors import InputError


@click.command("recipes", cls=Command)
@click.argument("name", required=False)
@json_option("the same")
def command(name: str | None, as_json: bool) -> None:
    """List the recipes that come with Bitwright, or print the one called NAME.

    \b
      bitwright quantize MODEL --recipe llm-int4 --out DIR
      bitwright recipes llm-int4 > mine.yaml     # and change it
    """
    from bitwright.recipe import shipped_recipes

    files = shipped_recipes()
    if name is None:
        listed = [{"name": stem, "use": use(file), "file": str(file)} for stem, file in files.items()]
        rows = [[row["name"], row["use"]] for row in listed]
        print_json(listed) if as_json else _print_list(rows)
        return
    if name not in files:
        raise InputError(f"no recipe is called {name!r}{nearest(name, list(files))}; known: {', '.join(files)}")
    text = files[name].read_text(encoding="utf-8")
    print_json({"name": name, "use": use(files[name]), "text": text}) if as_json else click.echo(text, nl=False)


def _print_list(rows: list[list[str]]) -> None:
    columns: list[Column] = ["recipe", ("when to use it", "prose")]
    out.print(table("", columns, rows))
    out.print("\nbitwright quantize MODEL --recipe NAME --out DIR", markup=False)


def use(file: Path) -> str:
    """What the comment at the top of a recipe says, as one paragraph."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comment = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    return " ".join(comment)
