"""The log, folded: what versions there are, which one is served, which ones were before it. Pure.

Champions are a stack: promoting puts a version on top, rolling back takes it off again. So a rollback after a rollback
goes one further back, and never forth.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bitwright.errors import InputError
from bitwright.registry.log import Entry

CHANGES = ("promote", "rollback")


@dataclass(frozen=True, slots=True)
class Checked:
    """The outcome of the gates for one version. against: the champion that it was compared with, None where there was
    none. space: the id of the embedding space that its vectors were shown to belong to. outcomes: as
    `gates.Outcome`, as plain data.
    """

    time: str
    against: int | None
    passed: bool
    space: str | None
    outcomes: tuple[Mapping[str, Any], ...] = ()

    @property
    def failed(self) -> list[str]:
        """The names of the gates that it did not pass."""
        return [str(outcome["gate"]) for outcome in self.outcomes if outcome["state"] == "failed"]


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model, as it was added.

    content: SHA-256 of its manifest. bytes: of its weight files. verdict: of its record. source: where it came from.
    claimed: the float model that its record says it comes from. gone: its files were lost before they were in place.
    """

    number: int
    time: str
    by: str
    content: str
    bytes: int
    verdict: str | None
    source: str
    claimed: str
    task: str | None = None
    signed: bool = False
    note: str | None = None
    gone: bool = False
    checks: tuple[Checked, ...] = ()

    @property
    def space(self) -> str:
        """The id of the embedding space of its vectors: which index they belong to.

        Shown by the gate where that ran; else the float model that the record names. Vectors that were shown to be
        others have a space of their own.
        """
        return self.checks[-1].space or self.claimed if self.checks else self.claimed

    def checked_against(self, champion: int | None) -> Checked | None:
        """The last outcome of the gates against this champion, if they ran."""
        return next((check for check in reversed(self.checks) if check.against == champion), None)


@dataclass(frozen=True, slots=True)
class Change:
    """A promotion or a rollback. since: when the link was swapped; None while it is not known to be done. replaces:
    the champion until then. forced: without passed gates, for this `reason`.
    """

    number: int
    time: str
    what: str
    name: str
    version: int
    replaces: int | None
    by: str
    reason: str | None = None
    forced: bool = False
    since: str | None = None
    undone: bool = False


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the registry. champions: the stack, the one that is served last."""

    name: str
    versions: Mapping[int, Version] = field(default_factory=dict)
    champions: tuple[int, ...] = ()
    changes: tuple[Change, ...] = ()

    @property
    def champion(self) -> int | None:
        """The version that is served."""
        return self.champions[-1] if self.champions else None

    @property
    def previous(self) -> int | None:
        """The version to which a rollback goes."""
        return self.champions[-2] if len(self.champions) > 1 else None

    @property
    def challenger(self) -> int | None:
        """The newest version, where it was never served."""
        usable = [number for number, version in self.versions.items() if not version.gone]
        served = {change.version for change in self.changes if not change.undone}
        return max(usable) if usable and max(usable) not in served else None

    def version(self, number: int) -> Version:
        """The version of this number.

        Raises:
            InputError: there is none, or its files are gone.
        """
        if number not in self.versions or self.versions[number].gone:
            known = [str(n) for n, version in self.versions.items() if not version.gone]
            raise InputError(f"{self.name} has no version {number}; there are {', '.join(known) or 'none'}")
        return self.versions[number]

    def serving_at(self, time: str) -> Change | None:
        """The change that put in place what was served at a time, as the log writes times; None before the first."""
        done = [change for change in self.changes if change.since is not None and change.since <= time]
        return done[-1] if done else None


def fold(entries: Iterable[Entry]) -> dict[str, Model]:
    """The models after all entries, by name."""
    models: dict[str, Model] = {}
    for entry in entries:
        if entry.name and entry.what in _STEPS:
            models[entry.name] = _STEPS[entry.what](models.get(entry.name, Model(entry.name)), entry)
    return models


def _added(model: Model, entry: Entry) -> Model:
    facts = {key: value for key, value in entry.facts.items() if key in Version.__slots__}
    version = Version(**{"number": entry.facts["version"], "time": entry.time, "by": entry.by} | facts)
    return replace(model, versions={**model.versions, version.number: version})


def _checked(model: Model, entry: Entry) -> Model:
    facts = entry.facts
    check = Checked(entry.time, facts["against"], facts["passed"], facts["space"], tuple(facts["outcomes"]))
    version = model.versions[facts["version"]]
    return replace(
        model, versions={**model.versions, version.number: replace(version, checks=(*version.checks, check))}
    )


def _changing(model: Model, entry: Entry) -> Model:
    facts = entry.facts
    change = Change(
        entry.number, entry.time, entry.what, model.name, facts["version"], facts["replaces"], entry.by,
        facts.get("reason"), facts.get("forced", False),
    )  # fmt: skip
    return replace(model, changes=(*model.changes, change))


def _done(model: Model, entry: Entry) -> Model:
    if entry.facts["of"] == "add":
        return model
    *earlier, change = model.changes
    if change.what == "promote":
        champions = (*model.champions, change.version)
    else:
        champions = back_to(model.champions, change.version)
    change = replace(change, since=entry.facts["since"])
    return replace(model, champions=champions, changes=(*earlier, change))


def _undone(model: Model, entry: Entry) -> Model:
    if entry.facts["of"] == "add":
        version = replace(model.versions[entry.facts["version"]], gone=True)
        return replace(model, versions={**model.versions, version.number: version})
    *earlier, change = model.changes
    return replace(model, changes=(*earlier, replace(change, undone=True)))


def back_to(champions: tuple[int, ...], version: int) -> tuple[int, ...]:
    """The stack after a rollback to one of those below its top.

    Raises:
        ValueError: it is not there.
    """
    below = champions[:-1]
    return below[: len(below) - below[::-1].index(version)]


_STEPS = {
    "add": _added, "gates": _checked, "promote": _changing, "rollback": _changing, "done": _done, "undone": _undone
}  # fmt: skip
