"""bitwright compare: two results side by side."""

from dataclasses import asdict
from pathlib import Path

import click

from bitwright.atomic import write_text_atomically
from bitwright.cli.command import Command
from bitwright.cli.options import json_option
from bitwright.cli.terminal import out, print_json, table
from bitwright.errors import InputError
from bitwright.record import read_record

_ALWAYS = ("verdict", "size on disk", "loss")  # shown though both have the same


@click.command("compare", cls=Command)
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write the comparison as a page for a browser.",
)
@json_option("the rows")
def command(a: Path, b: Path, html: Path | None, as_json: bool) -> None:
    """Put two results side by side: directories that `bitwright quantize` wrote.

    The last column is how B differs from A: a factor, or a difference. What is
    the same in both is only named. A record.json may stand for its directory.
    """
    if html and not html.absolute().parent.is_dir():
        raise InputError(f"--html {html}: there is no directory {html.absolute().parent}; make it first")
    from bitwright.report import compare_records, render_comparison

    first, second = read_record(a), read_record(b)
    if html:
        write_text_atomically(html, render_comparison(first, second))
    rows = compare_records(first, second)
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    left, right = _names(a.resolve(), b.resolve())
    shown = [row for row in rows if row.a != row.b or row.name in _ALWAYS]
    cells = [[row.name, row.a, row.b, row.change] for row in shown]
    out.print(table("", [("", "prose"), (left, "prose"), (right, "prose"), ("change", "right")], cells))
    if same := [row.name for row in rows if row not in shown]:
        out.print(f"\nThe same in both: {'; '.join(same)}.", markup=False)


def _names(a: Path, b: Path) -> tuple[str, str]:
    """Headings: the names of the directories, with as many of their parents as it takes to tell them apart."""
    a, b = (path if path.is_dir() else path.parent for path in (a, b))
    depth = next((n for n in range(1, len(a.parts)) if a.parts[-n:] != b.parts[-n:]), 1)
    return "/".join(a.parts[-depth:]), "/".join(b.parts[-depth:])
