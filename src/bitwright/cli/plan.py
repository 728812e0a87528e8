"""bitwright plan: what would be done with a model, and why."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click

from bitwright.cli.command import Command
from bitwright.cli.options import (
    build_recipe,
    json_option,
    max_loss_option,
    model_options,
    quiet_option,
    scheme_options,
)
from bitwright.cli.progress import shown_progress
from bitwright.cli.terminal import Column, out, print_json, print_warnings, table
from bitwright.families.tasks import TaskName
from bitwright.record import Evidence, PlanRow, UnitEvidence

_SHORT = {"attention_output": "attn. output", "expert": "experts"}  # roles in columns
_METHODS = {"smoothquant": "smooth", "smoothquant_gptq": "smooth+gptq", "awq_gptq": "awq+gptq"}


@click.command("plan", cls=Command)
@click.argument("model", type=click.Path())
@scheme_options
@max_loss_option
@click.option(
    "--data", multiple=True, metavar="FILE[:WEIGHT]", help="Calibrate on these texts. Default: built-in ones."
)
@click.option(
    "--hours",
    type=click.FloatRange(min=0, min_open=True),
    metavar="H",
    help="Choose methods whose calibration takes no longer. Default: 6.",
)
@click.option(
    "--memory",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GB",
    help="Choose methods that need no more memory. Default: what is free.",
)
@model_options
@json_option("the plan and its evidence")
@quiet_option
def command(
    model: str, max_loss: float | None, data: tuple[str, ...], hours: float | None, memory: float | None,
    task: TaskName | None, trust_remote_code: bool, as_json: bool, quiet: bool, **schemes: Any,
) -> None:  # fmt: skip
    """Show how MODEL would be quantized, and why. Nothing is written.

    A small sample of text runs through the model. The tables show what was seen
    there, the error that each method would leave, the choice, and the size.

    Without --recipe and --method, the method is auto: the evidence decides.
    MODEL may be a config.json alone; then its size in every form is shown.
    """
    asked = {key: value for key, value in schemes.items() if value}
    if not asked.keys() & {"recipe", "method"}:
        schemes["method"] = "auto"
    recipe = build_recipe(seed=None, max_loss=max_loss, **schemes)
    if Path(model).is_file():
        from bitwright.pipeline.size import size_plan

        sizes = size_plan(Path(model), recipe if asked else None, task)
        print_json(sizes) if as_json else print_sizes(sizes)
        return
    with shown_progress(quiet=quiet) as progress:
        progress.say(f"loading {model}")
        from bitwright.pipeline import decision
        from bitwright.pipeline.request import Texts
        from bitwright.pipeline.resources import resources

        available = None
        if decision.is_open(recipe):  # else nothing depends on them, and the machine need not be timed
            available = resources(
                memory_bytes=None if memory is None else int(memory * 1e9),
                seconds=None if hours is None else hours * 3600,
            )
        found = decision.plan(
            model, recipe=recipe, texts=Texts(data=data), available=available, trust_remote_code=trust_remote_code,
            task=task, progress=progress,
        )  # fmt: skip
    print_json(found) if as_json else print_plan(found)


def print_plan(found: dict[str, Any]) -> None:
    """The decision, what was rejected, the plan by group, and the evidence."""
    decision: Evidence | None = found["decision"]
    if decision is None:
        out.print("Nothing to decide: the recipe names every method (`--method auto` lets the model decide).\n")
    else:
        rows = [["decision", decision.reason]]
        if decision.overruled:
            rows.append(["overruled", f"the recipe itself names the method of {decision.overruled} linears"])
        rows += [[f"not {row.method}", row.why] for row in decision.rejected]
        out.print(table("", ["", ("", "prose")], [*rows, ["cost", _cost(decision)]], header=False), "")
    print_groups(found["model"], found["plan"])
    if decision is not None and decision.units:
        out.print()
        _print_evidence(decision.units)
    print_warnings(found["warnings"])


def _print_evidence(units: Sequence[UnitEvidence]) -> None:
    """What was seen, by role: features, and the error that each method would leave."""
    from bitwright.report.wording import fixed, percent, words

    roles = list(dict.fromkeys(unit.role for unit in units))
    of = {role: [unit for unit in units if unit.role == role] for role in roles}
    columns: list[Column] = ["groups of linears", *((title, "right") for title in (
        "groups", "weights", "tail", "kurtosis", "channel", "INT4", "INT8"
    ))]  # fmt: skip
    rows = [
        [
            words(role), str(len(group)), f"{sum(unit.n_weights for unit in group) / 1e6:.3g} M",
            *(fixed(max(getattr(unit, key) for unit in group), 1) for key in ("tail", "kurtosis", "channel_ratio")),
            *(percent(median(getattr(unit, key) for unit in group)) for key in ("error_int4", "error_int8")),
        ]
        for role, group in of.items()
    ]  # fmt: skip
    out.print(table("Evidence", columns, rows))
    out.print(
        "A group is the linears that read one input. In the worst group, tail is the\n"
        "largest input over the 99.9th percentile, channel the largest feature over the\n"
        "median one. "
        "INT4 and INT8: how far rounding the weights moves the outputs.\n",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    chosen = Counter((unit.role, unit.method) for unit in units)
    methods = list(dict.fromkeys(method for unit in units for method in unit.expected))
    columns = ["method", *((_SHORT.get(role, words(role)), "right") for role in roles), ("chosen for", "right")]
    rows = [
        [
            _METHODS.get(method, method),
            *(percent(median(u.expected[method] for u in of[role] if method in u.expected)) for role in roles),
            f"{sum(chosen[role, method] for role in roles)} groups",
        ]
        for method in methods
    ]
    out.print(table("Expected error of outputs, weights and inputs together (median)", columns, rows), "")


def _cost(decision: Evidence) -> str:
    from bitwright.report.wording import seconds, size

    cost, there = decision.cost, decision.resources
    took, had = (f"{seconds(found['seconds'])} and {size(found['memory_bytes'])}" for found in (cost, there))
    return f"calibration takes about {took} of memory, for at most {cost['n_tokens']:,} tokens; {had} are there"


def print_groups(model: str, plan: Sequence[PlanRow]) -> None:
    """The plan by role, scheme and method."""
    from bitwright.report.wording import size, words

    groups: dict[tuple[str, str, str], list[PlanRow]] = {}
    for row in plan:
        groups.setdefault((row.role, row.scheme, row.method), []).append(row)
    rows = [
        [words(role), str(len(members)), scheme, method, size(sum(row.bytes_before for row in members)),
         size(sum(row.bytes_after for row in members))]
        for (role, scheme, method), members in groups.items()
    ]  # fmt: skip
    total = [size(sum(row.bytes_before for row in plan)), size(sum(row.bytes_after for row in plan))]
    columns: list[Column] = ["layers", ("number", "right"), "scheme", "method", ("before", "right"), ("after", "right")]
    out.print(table(f"Plan for {model}", columns, [*rows, ["all", str(len(plan)), "", "", *total]]))


def print_sizes(sizes: dict[str, Any]) -> None:
    """The bytes of every scheme, by group."""
    from bitwright.report.wording import fixed, size, words

    groups = list(sizes["rows"][0]["groups"])
    columns: list[Column] = ["scheme", ("total", "right"), ("bits", "right"), *((words(g), "right") for g in groups)]
    rows = [
        [
            row["scheme"],
            size(row["bytes"]),
            fixed(row["bits_per_parameter"], 2),
            *(size(row["groups"][g]) for g in groups),
        ]
        for row in sizes["rows"]
    ]
    size_of, name = next((s, n) for s, n in ((1e9, "billion"), (1e6, "million"), (1, "")) if sizes["n_parameters"] >= s)
    title = f"{sizes['model_type']}, {sizes['n_parameters'] / size_of:.3g} {name} parameters"
    out.print(table(title, columns, rows))
    out.print("\nSizes include scales. From w8a8 on, embeddings, head and norms are in 16 bit.", soft_wrap=True)
    if (cache := sizes["kv_cache_bytes_per_token"]) is not None:
        out.print(f"Each token of context adds {size(cache)} of keys and values in 16 bit.", soft_wrap=True)
