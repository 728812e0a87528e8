"""bitwright doctor: what this machine can run."""

from typing import Any

import click

from bitwright.cli.terminal import out, print_json, table


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
def command(as_json: bool) -> None:
    """Show the processor, the kernel variants, and which libraries are found."""
    from bitwright.kernels import cpu
    from bitwright.runtime.environment import OPTIONAL, environment, version_of

    found: dict[str, Any] = {
        "environment": environment(),
        "cpu_features": list(cpu.cpu_features()),
        "kernels": [
            {"isa": name, "compiled": compiled, "supported": supported, "active": active}
            for name, compiled, supported, active in cpu.isa_table()
        ],
        "optional": {name: version_of(name) for name in OPTIONAL},
    }
    if as_json:
        print_json(found)
        return
    settings = found["environment"]
    out.print(table("This machine", ["", ""], [[key, str(value)] for key, value in settings.items()]))
    out.print(f"features     {' '.join(found['cpu_features'])}\n", markup=False)
    rows = [
        [k["isa"], *("yes" if k[c] else "–" for c in ("compiled", "supported", "active"))] for k in found["kernels"]
    ]
    out.print(table("Kernel variants, best first", ["isa", "compiled", "supported", "active"], rows))
    out.print("BITWRIGHT_ISA=<isa> forces one.\n", markup=False)
    rows = [[name, version or "not installed", OPTIONAL[name]] for name, version in found["optional"].items()]
    out.print(table("Optional packages", ["package", "version", "used for"], rows))
