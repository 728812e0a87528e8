"""Promote a version, or roll back: intent into the log, link, done into the log. Milliseconds, and no library.

Whoever is killed in between leaves the old version or the new one served; the next command writes the rest.
"""

from bitwright.errors import InputError
from bitwright.registry.state import Change, Model
from bitwright.registry.store import Registry, Writer, finish, model_of, writing


def candidate(registry: Registry, name: str, version: int | None) -> tuple[Model, int]:
    """The model, and the version to promote: the given one, or the challenger.

    Raises:
        InputError: no such model or version; none is given, and there is no challenger; it is the champion already.
    """
    model = model_of(registry, name)
    if version is None:
        version = model.challenger
    if version is None:
        raise InputError(f"{name}: no version is newer than those that were served; add one, or name one")
    model.version(version)
    if version == model.champion:
        raise InputError(f"{name}: version {version} is the champion already")
    return model, version


def promote(
    registry: Registry, name: str, version: int, *, force: bool = False, reason: str | None = None
) -> Change:  # fmt: skip
    """Make a version the champion. It must have passed the gates against the champion that it replaces.

    force: without that; the log keeps the reason.

    Raises:
        InputError: it did not pass, or they did not run; force without a reason; as `candidate` and `writing`.
    """
    if force and not (reason or "").strip():
        raise InputError("--force needs --reason: the log keeps why a version is served that did not pass the gates")
    with writing(registry, f"promote {name} {version}") as writer:
        model = writer.model(name)
        model.version(version)
        if version == model.champion:
            raise InputError(f"{name}: version {version} is the champion already")
        if not force:
            _require_passed(model, version)
        return _changed(writer, model, "promote", version, reason, forced=force)


def rollback(registry: Registry, name: str, *, to: int | None = None, reason: str | None = None) -> Change:
    """Serve the champion before this one again, or an earlier one.

    Raises:
        InputError: there is none, or `to` was never the champion; as `writing`.
    """
    with writing(registry, f"rollback {name}") as writer:
        model = writer.model(name)
        earlier = model.champions[:-1]
        if not earlier or (to is not None and to not in earlier):
            served = ", ".join(map(str, dict.fromkeys(earlier))) or "none"
            raise InputError(
                f"{name}: champions before this one that are not rolled back: {served}; so there is nothing to go back "
                + (f"to as version {to}" if to is not None else "to")
            )
        version = earlier[-1] if to is None else to
        model.version(version)
        return _changed(writer, model, "rollback", version, reason, forced=False)


def _require_passed(model: Model, version: int) -> None:
    against = "no champion" if model.champion is None else f"champion {model.champion}"
    check = model.versions[version].checked_against(model.champion)
    if check is None:
        raise InputError(
            f"{model.name}: the gates did not run for version {version} against {against}. Run them, or give --force "
            "and --reason"
        )
    if not check.passed:
        said = "; ".join(str(one["detail"]) for one in check.outcomes if one["state"] == "failed")
        raise InputError(
            f"{model.name}: version {version} did not pass {', '.join(check.failed)} against {against}. {said}. To "
            "serve it all the same, give --force and --reason"
        )


def _changed(writer: Writer, model: Model, what: str, version: int, reason: str | None, *, forced: bool) -> Change:
    """Intent, link, done."""
    name = model.name
    if not writer.registry.version(name, version).is_dir():
        raise InputError(
            f"{name}: the files of version {version} are gone from the registry; `bitwright registry verify` tells more"
        )
    writer.append(what, name, version=version, replaces=model.champion, reason=reason, forced=forced)
    finish(writer, name, version)
    return writer.model(name).changes[-1]
