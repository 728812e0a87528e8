"""bitwright registry: versions of models, which one is served, and the proof."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bitwright.cli.command import Command, nearest
from bitwright.cli.options import json_option
from bitwright.cli.terminal import FAILURE, SUCCESS, Column, out, print_json, remark, table
from bitwright.errors import ExitCode, InputError

if TYPE_CHECKING:
    from bitwright.registry.state import Change, Checked, Model, Version
    from bitwright.registry.store import Registry

F = TypeVar("F", bound=Callable[..., Any])


class _Group(click.Group):
    """A group whose unknown commands are answered with the nearest."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            hint = nearest(args[0], list(self.commands)) or f" (there are {', '.join(self.commands)})"
            raise InputError(f"registry has no command {args[0]!r}{hint}; `bitwright registry --help` describes them")
        return super().resolve_command(ctx, args)


@click.group("registry", cls=_Group)
def command() -> None:
    """Keep versions of models, and decide which one is served.

    \b
      bitwright registry add DIR --name minilm     a new version, and its gates
      bitwright registry promote minilm            serve it
      bitwright registry rollback minilm           serve the one before again

    Servers follow by themselves: `bitwright.follow(REGISTRY, "minilm")`.
    """


def registry_option(function: F) -> F:
    """--registry: where the registry lies."""
    return click.option(
        "--registry", "root", type=click.Path(path_type=Path, file_okay=False), default=Path("registry"),
        envvar="BITWRIGHT_REGISTRY", metavar="DIR",
        help="Use the registry in this folder. Default: BITWRIGHT_REGISTRY, or `registry`.",
    )(function)  # fmt: skip


def _gate_options(function: F) -> F:
    for option in (
        click.option(
            "--index", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="MODEL",
            help="Compare its vectors with those of this model, which made your index. Default: the version that "
            "was served first with these vectors, or the original.",
        ),
        click.option(
            "--texts", metavar="PATH",
            help="Compare them on these texts: a file, or a directory with corpus, queries and qrels. Default: "
            "built-in texts.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


@command.command("add", cls=Command)
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--name", required=True, metavar="NAME", help="Add it as a version of the model of this name.")
@click.option("--link", is_flag=True, help="Make hard links, which take no space, instead of copies.")
@click.option("--note", metavar="TEXT", help="Keep this remark in the log.")
@click.option("--gates/--no-gates", default=True, help="Do not let the version pass the gates now.")
@click.option(
    "--mlflow", metavar="ADDRESS",
    help="In a new registry: let this MLflow server follow, or `none`. Default: a database in the registry.",
)  # fmt: skip
@_gate_options
@registry_option
@json_option("the version")
def add_command(
    directory: Path, name: str, link: bool, note: str | None, gates: bool, mlflow: str | None, index: Path | None,
    texts: str | None, root: Path, as_json: bool,
) -> None:  # fmt: skip
    """Add a model directory as a new version, and let it pass the gates.

    The exit code is 3 if the version did not pass. It is added all the same.
    """
    from bitwright.registry import gates as gate_table
    from bitwright.registry.add import add
    from bitwright.registry.signing import installed
    from bitwright.registry.store import check_name, make_registry

    check_name(name)
    registry = make_registry(root, **_mirror(mlflow, root))
    version = add(registry, directory, name, link=link, note=note)
    if not version.signed and not installed():
        remark("the version is not signed by model-signing, which is not installed: pip install 'bitwright[platform]'")
    checked = gate_table.check(registry, name, version.number, index=index, texts=texts) if gates else None
    _let_follow(registry)
    if as_json:
        print_json({"name": name, **asdict(version), "gates": checked and asdict(checked)})
    else:
        out.print(f"{name} {version.number}: {version.bytes / 1e6:.1f} MB of weights", markup=False)
        _print_gates(checked)
    _exit(checked is None or checked.passed)


@command.command("promote", cls=Command)
@click.argument("name")
@click.argument("version", type=click.IntRange(min=1), required=False)
@click.option("--force", is_flag=True, help="Serve it though it did not pass the gates.")
@click.option("--reason", metavar="TEXT", help="Keep in the log why.")
@_gate_options
@registry_option
@json_option("the change")
def promote_command(
    name: str, version: int | None, force: bool, reason: str | None, index: Path | None, texts: str | None, root: Path,
    as_json: bool,
) -> None:  # fmt: skip
    """Serve VERSION, by default the newest one, from now on.

    It must have passed the gates against the version that is served now; they
    run first, if they have not yet.
    """
    from bitwright.registry.change import candidate, promote
    from bitwright.registry.store import open_registry

    registry = open_registry(root)
    model, number = candidate(registry, name, version)
    if not force and model.versions[number].checked_against(model.champion) is None:
        from bitwright.registry.gates import check

        checked = check(registry, name, number, index=index, texts=texts)
        if not as_json:
            _print_gates(checked)
    change = promote(registry, name, number, force=force, reason=reason)
    _print_change(change, as_json=as_json)
    _let_follow(registry)


@command.command("rollback", cls=Command)
@click.argument("name")
@click.option("--to", type=click.IntRange(min=1), metavar="VERSION", help="Go back to this one, which was served.")
@click.option("--reason", metavar="TEXT", help="Keep in the log why.")
@registry_option
@json_option("the change")
def rollback_command(name: str, to: int | None, reason: str | None, root: Path, as_json: bool) -> None:
    """Serve the version again that was served before this one."""
    from bitwright.registry.change import rollback
    from bitwright.registry.store import open_registry

    registry = open_registry(root)
    change = rollback(registry, name, to=to, reason=reason)
    _print_change(change, as_json=as_json)
    _let_follow(registry)


@command.command("list", cls=Command)
@click.argument("name", required=False)
@registry_option
@json_option("all there is")
def list_command(name: str | None, root: Path, as_json: bool) -> None:
    """List the models, or the versions of NAME."""
    from bitwright.registry.store import model_of, open_registry, read_models

    registry = open_registry(root)
    if name is None:
        models = read_models(registry)
        if as_json:
            print_json([_model_facts(model) for model in models.values()])
        else:
            _print_models(models)
    else:
        model = model_of(registry, name)
        print_json(_model_facts(model)) if as_json else _print_versions(model)
    _let_follow(registry)


@command.command("history", cls=Command)
@click.argument("name", required=False)
@click.option(
    "--at", metavar="TIME", help="Show what was served at this time, in UTC: 2026-11-30, or 2026-11-30T18:05."
)
@registry_option
@json_option("the changes")
def history_command(name: str | None, at: str | None, root: Path, as_json: bool) -> None:
    """Show every promotion and rollback: when, by whom, and why."""
    from bitwright.registry.history import changes, moment, served_at
    from bitwright.registry.store import model_of, open_registry, read_models

    registry = open_registry(root)
    time = None if at is None else moment(at)
    models = {name: model_of(registry, name)} if name else read_models(registry)
    found = changes(models) if time is None else served_at(models, time)
    if as_json:
        print_json([asdict(change) for change in found])
        return
    columns: list[Column] = ["since (UTC)", "model", ("version", "right"), "what", "by", ("why", "prose")]
    rows = [
        [_short(change.since or change.time), change.name, str(change.version), _what(change), change.by, _why(change)]
        for change in found
    ]
    out.print(table("" if at is None else f"Served at {time}", columns, rows))


@command.command("verify", cls=Command)
@click.argument("name", required=False)
@click.option("--quick", is_flag=True, help="Do not read the files of the versions.")
@registry_option
@json_option("what was found")
def verify_command(name: str | None, quick: bool, root: Path, as_json: bool) -> None:
    """Check the log, every version, and what follows them; mend links and MLflow.

    The exit code is 1 if the log or a version is damaged.
    """
    from bitwright.registry.store import open_registry
    from bitwright.registry.verify import verify

    found = verify(open_registry(root), name, files=not quick)
    if as_json:
        print_json(asdict(found))
    else:
        for text in found.repaired:
            out.print(f"mended: {text}", markup=False)
        for text in found.remarks:
            out.print(text, markup=False)
        for text in found.damage:
            remark(text, FAILURE)
        if not found.damage:
            said = f"{found.entries} entries, {found.versions} versions: as they were written"
            out.print(f"{said}; the last entry is {found.head}", style=SUCCESS, markup=False)
    _exit(not found.damage, ExitCode.FAILED)


@command.command("diff", cls=Command)
@click.argument("name")
@click.argument("a", type=click.IntRange(min=1))
@click.argument("b", type=click.IntRange(min=1))
@registry_option
@json_option("the rows")
def diff_command(name: str, a: int, b: int, root: Path, as_json: bool) -> None:
    """Put two versions of NAME side by side."""
    from bitwright.registry.history import difference
    from bitwright.registry.store import model_of, open_registry

    registry = open_registry(root)
    rows = difference(registry, model_of(registry, name), a, b)
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    columns: list[Column] = [("", "prose"), (f"{name} {a}", "prose"), (f"{name} {b}", "prose"), ("change", "right")]
    out.print(table("", columns, [[row.name, row.a, row.b, row.change] for row in rows if row.a != row.b]))
    if same := [row.name for row in rows if row.a == row.b]:
        out.print(f"\nThe same in both: {'; '.join(same)}.", markup=False)


def _mirror(mlflow: str | None, root: Path) -> dict[str, Any]:
    """What `make_registry` is told of MLflow."""
    from importlib.util import find_spec

    if mlflow is None:
        return {}
    if (root / "registry.json").exists():
        raise InputError(f"--mlflow is for a new registry, and {root} is one already; `mlflow` in its registry.json")
    if mlflow != "none" and find_spec("mlflow") is None:
        from bitwright.registry.mirror import ABSENT

        raise InputError(f"--mlflow {mlflow}: {ABSENT}")
    return {"mlflow": None if mlflow == "none" else mlflow}


def _let_follow(registry: "Registry") -> None:
    from bitwright.registry.mirror import start

    start(registry)


def _print_change(change: "Change", *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(change))
        return
    before = "" if change.replaces is None else f", which was {change.replaces}"
    out.print(f"{change.name}: version {change.version} is served{before}, since {change.since}", markup=False)


def _print_gates(checked: "Checked | None") -> None:
    if checked is None:
        return
    columns: list[Column] = ["gate", "", ("", "prose")]
    rows = [[str(one["gate"]), str(one["state"]), str(one["detail"])] for one in checked.outcomes]
    out.print(table("", columns, rows, header=False))


def _print_models(models: "dict[str, Model]") -> None:
    columns: list[Column] = [
        ("model", "name"), ("served", "right"), ("before", "right"), ("next", "right"), "gates of it", "since (UTC)",
        "vectors",
    ]  # fmt: skip
    rows = []
    for model in models.values():
        served = None if model.champion is None else model.versions[model.champion]
        following = None if model.challenger is None else model.versions[model.challenger]
        since = next((change.since for change in reversed(model.changes) if change.since), None)
        rows.append([
            model.name, _number(model.champion), _number(model.previous), _number(model.challenger),
            "–" if following is None else _gates(following), _short(since or ""), served.space[:8] if served else "–",
        ])  # fmt: skip
    out.print(table("", columns, rows))


def _print_versions(model: "Model") -> None:
    columns: list[Column] = [
        ("", "right"),
        "",
        "added (UTC)",
        ("MB", "right"),
        "verdict",
        "gates",
        "vectors",
        ("note", "prose"),
    ]
    names = {model.champion: "served", model.previous: "before", model.challenger: "next"}
    rows = [
        [str(version.number), names.get(version.number, ""), _short(version.time), f"{version.bytes / 1e6:.1f}",
         version.verdict or "–", _gates(version), version.space[:8], version.note or ""]
        for version in model.versions.values() if not version.gone
    ]  # fmt: skip
    out.print(table(model.name, columns, rows))


def _model_facts(model: "Model") -> dict[str, Any]:
    return {
        "name": model.name, "champion": model.champion, "previous": model.previous, "challenger": model.challenger,
        "versions": [asdict(version) | {"space": version.space} for version in model.versions.values()],
    }  # fmt: skip


def _gates(version: "Version") -> str:
    if not version.checks:
        return "not run"
    return "passed" if version.checks[-1].passed else f"not {', '.join(version.checks[-1].failed)}"


def _what(change: "Change") -> str:
    return ("forced " if change.forced else "") + change.what + (", undone" if change.undone else "")


def _why(change: "Change") -> str:
    return change.reason or ""


def _number(number: int | None) -> str:
    return "–" if number is None else str(number)


def _short(time: str) -> str:
    return time[:19].replace("T", " ")


def _exit(good: bool, code: int = ExitCode.NOT_SHOWN) -> None:
    if not good:
        click.get_current_context().exit(int(code))
