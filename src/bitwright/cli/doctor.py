"""bitwright doctor: what this machine can run."""

from typing import Any

import click

from bitwright.cli.terminal import out, print_json, table


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
def command(as_json: bool) -> None:
    """Show the processor, the kernel variants, and which libraries are found."""
    from bitwright.kernels import dispatch
    from bitwright.runtime.environment import OPTIONAL, environment, version_of

    found: dict[str, Any] = {
        "environment": environment(),
        "cpu_features": list(dispatch.cpu_features()),
        "kernels": [
            {"isa": name, "compiled": compiled, "supported": supported, "active": active}
            for name, compiled, supported, active in dispatch.isa_table()
        ],
        "optional": {name: version_of(name) for name in OPTIONAL},
    }
    if as_json:
        print_json(found)
        return
    machine = [[key, str(value)] for key, value in found["environment"].items()]
    machine.append(["features", " ".join(found["cpu_features"])])
    out.print(table("This machine", ["", ("", "prose")], machine, header=False), "")
    facts = ("compiled", "supported", "active")
    kernels = [[row["isa"], *("yes" if row[fact] else "–" for fact in facts)] for row in found["kernels"]]
    out.print(table("Kernel variants, best first; BITWRIGHT_ISA=<isa> forces one", ["isa", *facts], kernels), "")
    packages = [[name, version or "not installed", OPTIONAL[name]] for name, version in found["optional"].items()]
    out.print(table("Optional packages", ["package", "version", ("used for", "prose")], packages))
