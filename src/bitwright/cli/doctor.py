"""bitwright doctor: what this machine can run, and what that means."""

import os
from typing import Any

import click

from bitwright.cli.command import Command
from bitwright.cli.options import json_option
from bitwright.cli.terminal import SUCCESS, WARNING, Column, out, print_json, table

# Instruction set in use -> (style, what it means for someone who read our measurements).
MEANINGS = {
    "amx": (
        SUCCESS,
        "8-bit linears run on AMX, the matrix unit of the processor. This machine is like those that our figures "
        "with AMX come from.",
    ),
    "avx512vnni": (
        SUCCESS,
        "8-bit linears run on AVX-512 VNNI. This machine is like those that our figures without AMX come from: "
        "expect less than with AMX, and still several times the speed of float32.",
    ),
    "avxvnni": (
        WARNING,
        "8-bit linears run on AVX-VNNI, without AVX-512. Every model runs, but slower than in our figures.",
    ),
    "avx2": (
        WARNING,
        "8-bit linears run on AVX2, without instructions for 8 bits. Every model runs, but slower than in our figures.",
    ),
    "scalar": (WARNING, "No vector instructions are in use: results are right, and slow. This is for tests."),
}


@click.command("doctor", cls=Command)
@json_option("the same")
def command(as_json: bool) -> None:
    """Show what this machine can run, and how fast it can be.

    The first lines say what the processor means for speed. The tables below
    list kernels, and the libraries that other options need.
    """
    found = _found()
    if as_json:
        print_json(found)
        return
    active = found["environment"]["isa"]
    style, meaning = MEANINGS[active]
    out.print(f"This machine uses the {active} kernels", style=style)
    out.print(f"{meaning}\n", markup=False)
    if forced := os.environ.get("BITWRIGHT_ISA"):
        out.print(f"BITWRIGHT_ISA={forced} forces that; without it the best that the processor has is used.\n")
    machine = [[key, str(value)] for key, value in found["environment"].items() if value is not None]
    machine.append(["features", " ".join(found["cpu_features"])])
    out.print(table("Processor and software", ["", ("", "prose")], machine, header=False), "")
    facts = ("compiled", "supported", "active")
    columns: list[Column] = ["kernels", "built in", "runs here", "in use"]
    kernels = [[row["isa"], *("yes" if row[fact] else "–" for fact in facts)] for row in found["kernels"]]
    out.print(table("Kernels, fastest first (BITWRIGHT_ISA=avx2 forces another set)", columns, kernels), "")
    readers: dict[str, list[str]] = {}
    for row in found["operators"]:
        readers.setdefault(row["kernel"] or "torch", []).append(row["operator"])
    chosen = [[kernel, ", ".join(names)] for kernel, names in readers.items()]
    out.print(table("Which kernel each operator gets here", ["kernel", ("operators", "prose")], chosen), "")
    packages = [[row["package"], row["version"] or "not installed", row["use"]] for row in found["packages"]]
    out.print(table("Optional packages", ["package", "version", ("used for", "prose")], packages))


def _found() -> dict[str, Any]:
    from bitwright.kernels import dispatch
    from bitwright.runtime.environment import OPTIONAL, environment, version_of

    return {
        "environment": environment(),
        "cpu_features": [name for name, there in dispatch.cpu_features().items() if there],
        "kernels": [row._asdict() | {"isa": row.name} for row in dispatch.isa_table()],
        "operators": [{"operator": name, "kernel": dispatch.chosen(name)} for name in dispatch.operators()],
        "packages": [{"package": name, "version": version_of(name), "use": use} for name, use in OPTIONAL.items()],
    }
