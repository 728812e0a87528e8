"""bitwright fleet: many models by one command."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitwright.cli.command import Choice, Command
from bitwright.cli.options import json_option, quiet_option, worker_options
from bitwright.cli.terminal import FAILURE, err, out, print_json, remark

if TYPE_CHECKING:
    from bitwright.fleet.config import Fleet
    from bitwright.fleet.rows import Row


ACTIONS = ("run", "status")


@click.command("fleet", cls=Command)
@click.argument("action", type=Choice(ACTIONS), metavar="run|status")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--only", multiple=True, metavar="NAME", help="Do only this model. Repeat it for several.")
@worker_options("Use so many processes, each on its share of the processors.", " All must see the same files.")
@click.option("--memory", metavar="SIZE", help="Keep all workers together within this, such as 8GB.")
@click.option(
    "--queue",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Follow the requests for new calibrations in this folder, where `bitwright.Watch` puts them.",
)
@json_option("what fleet.json holds")
@quiet_option
def command(
    action: str, file: Path, only: tuple[str, ...], workers: int | None, ray: str | None, memory: str | None,
    queue: Path | None, as_json: bool, quiet: bool,
) -> int:  # fmt: skip
    """Quantize the models of FILE, a fleet.yaml, that changed since last time.

    \b
      bitwright fleet run fleet.yaml       do what changed since last time
      bitwright fleet status fleet.yaml    show how far it is

    A model that fails leaves the others alone. A command that was stopped goes on
    where it stopped when it is run again. fleet.html, in the fleet's folder, shows
    all verdicts.

    \b
    Exit codes: 0 every model is inside its budget; 1 a model has no result, or
    none to be used; 2 wrong input; 3 a model is not shown to be inside its
    budget.
    """
    from bitwright.fleet.config import parse_bytes, read_fleet
    from bitwright.fleet.run import FleetRun, Where

    fleet = read_fleet(file)
    if action == "status":
        return _show_status(fleet, as_json=as_json)
    where = Where(workers, ray, None if memory is None else parse_bytes(memory, "--memory"))
    live = err.is_terminal and not quiet
    going = FleetRun(fleet, where, only=only, queue=queue, told=None if quiet or live else _tell)
    for request in going.strangers:
        remark(f"{request.file}: {file} has no model {request.model!r}, so this request stays where it is")
    if live:
        from bitwright.cli.fleet_table import live_table

        with live_table(going.rows):
            rows = going.go()
    else:
        rows = going.go()
    return _show_result(fleet, rows, as_json=as_json)


def _show_result(fleet: "Fleet", rows: "list[Row]", *, as_json: bool) -> int:
    """Write the page, and print what became of each model. Returns the exit code."""
    from bitwright.cli.fleet_table import rows_table
    from bitwright.fleet.page import FLEET_PAGE, headline, write_summary

    data = write_summary(fleet, rows)
    code = int(data["exit_code"])
    if as_json:
        print_json(data)
        return code
    out.print(rows_table(rows))
    out.print(headline(rows), markup=False)
    out.print(f"{fleet.out / FLEET_PAGE}", markup=False, soft_wrap=True)
    for row in rows:
        if row.outcome and row.outcome.error:
            remark(f"{row.name}: {row.outcome.error}", FAILURE)
    return code


def _show_status(fleet: "Fleet", *, as_json: bool) -> int:
    from bitwright.cli.fleet_table import rows_table
    from bitwright.fleet.page import summary
    from bitwright.fleet.receipts import FOLDER
    from bitwright.fleet.rows import is_at_work, status_rows

    rows, at_work = status_rows(fleet), is_at_work(fleet.out / FOLDER)
    if as_json:
        print_json(summary(fleet.out, rows) | {"at_work": at_work})
        return 0
    out.print(rows_table(rows))
    out.print("A run is at work." if at_work else "No run is at work.", markup=False)
    return 0


def _tell(row: "Row") -> None:
    """One line on stderr for a model that is settled."""
    from bitwright.fleet.page import line

    shown = line(row)
    text = row.state if row.state == "unchanged" else f"{shown.state[2]}; {shown.loss}; took {shown.took}"
    err.print(f"{row.name}: {text}", markup=False, soft_wrap=True)
