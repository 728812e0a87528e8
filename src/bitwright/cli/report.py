"""bitwright report: rebuild the page from the record."""

from pathlib import Path

import click

from bitwright.cli.command import Command
from bitwright.cli.terminal import out


@click.command("report", cls=Command)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
def command(directory: Path) -> None:
    """Write DIRECTORY/report.html again, from DIRECTORY/record.json."""
    from bitwright.report import write_report

    out.print(str(write_report(directory)), soft_wrap=True, markup=False)
