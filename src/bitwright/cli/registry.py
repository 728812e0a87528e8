"""bitwright registry: versions of models, which one is served, and the proof.

Promoting and rolling back import no tables, no records and no library: they take milliseconds.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bitwright.cli.command import Command, nearest
from bitwright.cli.options import json_option
from bitwright.errors import BitwrightError, ExitCode, InputError

if TYPE_CHECKING:
    from bitwright.registry.state import Change
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
    from bitwright.cli.registry_tables import print_gates
    from bitwright.cli.terminal import out, print_json, remark
    from bitwright.registry import gates as gate_table
    from bitwright.registry.add import add
    from bitwright.registry.signing import installed
    from bitwright.registry.store import check_name, make_registry

    check_name(name)
    if texts and gates:
        gate_table.search(texts)  # before anything is copied
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
        if checked is not None:
            print_gates(checked)
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
    run first, if they have not yet, or again with --index or --texts.
    """
    from bitwright.registry.change import candidate, promote
    from bitwright.registry.store import open_registry

    registry = open_registry(root)
    model, number = candidate(registry, name, version)
    known = model.versions[number].checked_against(model.champion)
    if not force and (known is None or ((texts or index) and not known.passed)):
        from bitwright.cli.registry_tables import print_gates
        from bitwright.registry.gates import check

        checked = check(registry, name, number, index=index, texts=texts)
        if not as_json:
            print_gates(checked)
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
    from bitwright.cli.registry_tables import model_facts, print_models, print_versions
    from bitwright.cli.terminal import print_json
    from bitwright.registry.store import model_of, open_registry, read_models

    registry = open_registry(root)
    if name is None:
        models = read_models(registry)
        if as_json:
            print_json([model_facts(model) for model in models.values()])
        else:
            print_models(models)
    else:
        model = model_of(registry, name)
        print_json(model_facts(model)) if as_json else print_versions(model)
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
    from bitwright.cli.registry_tables import print_changes
    from bitwright.cli.terminal import print_json
    from bitwright.registry.history import changes, moment, served_at
    from bitwright.registry.store import model_of, open_registry, read_models

    registry = open_registry(root)
    time = None if at is None else moment(at)
    models = {name: model_of(registry, name)} if name else read_models(registry)
    found = changes(models) if time is None else served_at(models, time)
    if as_json:
        print_json([asdict(change) for change in found])
    else:
        print_changes(found, "" if time is None else f"Served at {time}")


@command.command("verify", cls=Command)
@click.argument("name", required=False)
@click.option("--quick", is_flag=True, help="Do not read the files of the versions.")
@registry_option
@json_option("what was found")
def verify_command(name: str | None, quick: bool, root: Path, as_json: bool) -> None:
    """Check the log, every version, and what follows them; mend links and MLflow.

    The exit code is 1 if the log or a version is damaged.
    """
    from bitwright.cli.registry_tables import print_verified
    from bitwright.cli.terminal import print_json
    from bitwright.registry.store import open_registry
    from bitwright.registry.verify import verify

    found = verify(open_registry(root), name, files=not quick)
    if as_json:
        print_json(asdict(found))
    else:
        print_verified(found)
    _exit(not found.damage, ExitCode.FAILED)


@command.command("diff", cls=Command)
@click.argument("name")
@click.argument("a", type=click.IntRange(min=1))
@click.argument("b", type=click.IntRange(min=1))
@registry_option
@json_option("the rows")
def diff_command(name: str, a: int, b: int, root: Path, as_json: bool) -> None:
    """Put two versions of NAME side by side."""
    from bitwright.cli.registry_tables import print_difference
    from bitwright.cli.terminal import print_json
    from bitwright.registry.history import difference
    from bitwright.registry.store import model_of, open_registry

    registry = open_registry(root)
    rows = difference(registry, model_of(registry, name), a, b)
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        print_difference(rows, f"{name} {a}", f"{name} {b}")


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
    """Let MLflow follow. What was done is done, even if no process can be started for that."""
    from bitwright.registry.mirror import start

    with suppress(OSError, BitwrightError):
        start(registry)


def _print_change(change: "Change", *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(change), indent=1, ensure_ascii=False))
        return
    before = "" if change.replaces is None else f", which was {change.replaces}"
    click.echo(f"{change.name}: version {change.version} is served{before}, since {change.since}")


def _exit(good: bool, code: int = ExitCode.NOT_SHOWN) -> None:
    if not good:
        click.get_current_context().exit(int(code))
