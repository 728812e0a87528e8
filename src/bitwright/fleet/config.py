"""`Fleet`: what a fleet.yaml asks for, checked before any work.

out: results                     # folder of the results, of fleet.html and fleet.json
memory: 8GB                      # of all workers together; by default 80 % of what is free
registry: models                 # results inside their budgets are added there
defaults: {max_loss: 1%, data: [mine.txt]}
models:
  - {name: search, model: all-MiniLM-L6-v2}
  - {name: labels, model: models/distilbert, eval: labels.csv, max_loss: 0.5%, after: [search]}

Paths are relative to the file.
"""

import re
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bitwright.calibration.data import parse_sources
from bitwright.errors import BitwrightError, InputError
from bitwright.families.tasks import TaskName
from bitwright.files.yaml_file import complaint, nearest, read_mapping
from bitwright.pipeline.request import Texts, make_texts, resolve_recipe
from bitwright.recipe import Recipe, make_recipe, shipped_recipes

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"  # a result's folder is called so
_SIZES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class _Strict(BaseModel):
    """A base model that is immutable and refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Settings(_Strict):
    """What may be said of one model, or of all by `defaults`.

    recipe: a name, a path, or the recipe itself. fresh_data: texts of today, which take the place of `data` where a
    request asks for a new calibration. speed: time the result, which other workers disturb. drift: make a reference for
    `bitwright drift` beside the result.
    """

    max_loss: float | None = None
    recipe: str | dict[str, Any] | None = None
    targets: tuple[str, ...] | None = None
    data: tuple[str, ...] | None = None
    fresh_data: tuple[str, ...] | None = None
    eval: str | None = None
    kind: str | None = None
    metric: str | None = None
    samples: int | None = Field(default=None, ge=8)
    task: TaskName | None = None
    judge: bool | None = None
    speed: bool | None = None
    drift: bool | None = None

    @field_validator("max_loss", mode="before")
    @classmethod
    def _percentage(cls, value: Any) -> Any:
        if isinstance(value, str) and value.endswith("%"):
            try:
                return float(value[:-1]) / 100
            except ValueError:
                raise ValueError(f"{value!r} is no percentage; write 1% or 0.01") from None
        return value

    @field_validator("targets", "data", "fresh_data", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class Model(Settings):
    """One model. after: models that are done before it. out: where its result goes, by default a folder of its name."""

    name: str = Field(pattern=_NAME)
    model: str = Field(min_length=1)
    after: tuple[str, ...] = ()
    out: str | None = None

    @field_validator("after", mode="before")
    @classmethod
    def _one_or_more_names(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class _File(_Strict):
    """A whole fleet.yaml."""

    out: str = "fleet"
    memory: str | int | None = None
    registry: str | None = None
    defaults: Settings = Settings()
    models: tuple[Model, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of a fleet, with the defaults laid under its own settings, and all paths absolute or names of the hub.

    texts: what it is calibrated and judged on. fresh: sources that replace those of `texts` on request.
    judged, speed: as `pipeline.quantize`. drift: whether a reference for drift is made.
    """

    name: str
    model: str
    out: Path
    after: tuple[str, ...]
    recipe: Recipe
    texts: Texts
    fresh: tuple[str, ...] = ()
    task: TaskName | None = None
    judged: bool = True
    speed: bool = False
    drift: bool = False


@dataclass(frozen=True, slots=True)
class Fleet:
    """file: the fleet.yaml. out: the folder of everything. memory: bytes for all workers, None for most of what is
    free. entries: in an order in which each comes behind those that it is `after`. registry: where results are added
    that are inside their budgets.
    """

    file: Path
    out: Path
    memory: int | None
    entries: tuple[Entry, ...]
    registry: Path | None = None


def read_fleet(file: Path) -> Fleet:
    """Read a fleet.yaml.

    Raises:
        InputError: it cannot be read; unknown keys (the message names the nearest), names that stand twice, models that
            wait for each other; a recipe or a target that cannot be.
    """
    if file.is_dir():
        file = file / "fleet.yaml"
    data = read_mapping(file, "a fleet must be a mapping with the key `models`", InputError)
    try:
        said = _File.model_validate(data)
    except ValidationError as error:
        raise InputError(complaint(error, str(file), _keys_at)) from None
    base = file.parent.absolute()
    out = base / said.out
    entries = {entry.name: entry for entry in (_entry(model, said.defaults, base, out, file) for model in said.models)}
    _check_unique(said.models, list(entries.values()), file)
    order = _order(said.models, file)
    registry = None if said.registry is None else base / said.registry
    return Fleet(file, out, _bytes(said.memory, file), tuple(entries[name] for name in order), registry)


def _entry(model: Model, defaults: Settings, base: Path, out: Path, file: Path) -> Entry:
    merged = defaults.model_dump(exclude_none=True) | model.model_dump(exclude_none=True, exclude_unset=True)
    where = f"{file}, {model.name}"
    try:
        given = merged.get("recipe")
        recipe = (
            make_recipe(given, where)
            if isinstance(given, dict)
            else None if given is None else given if given in shipped_recipes() else base / given
        )  # fmt: skip
        recipe = resolve_recipe(recipe, merged.get("max_loss"), targets=merged.get("targets"))
        data, fresh = (tuple(_source(spec, base) for spec in merged.get(key, ())) for key in ("data", "fresh_data"))
        for sources in (data, fresh):
            if sources:
                parse_sources(sources)
    except BitwrightError as error:
        text = str(error)
        raise InputError(text if text.startswith(str(file)) else f"{where}: {text}") from None
    texts = make_texts(
        data, _there(merged.get("eval"), base), merged.get("kind"), _there(merged.get("metric"), base),
        merged.get("samples", 1000),
    )  # fmt: skip
    return Entry(
        model.name, _there(model.model, base) or model.model, base / model.out if model.out else out / model.name,
        model.after, recipe, texts, fresh, merged.get("task"), merged.get("judge", True), merged.get("speed", False),
        merged.get("drift", False),
    )  # fmt: skip


def _there(given: str | None, base: Path) -> str | None:
    """A path relative to `base`, if there is such a file; a "file.py:name" too. What else is named stays as it is."""
    if given is None:
        return None
    head, colon, name = given.rpartition(":")
    if colon and not (base / given).exists() and (base / head).exists():
        return f"{base / head}:{name}"
    return str(base / given) if (base / given).exists() or Path(given).is_absolute() else given


def _source(spec: str, base: Path) -> str:
    """A source of texts whose path is relative to `base`; a kind of built-in texts or a name of the hub stays."""
    name = parse_sources([spec])[0].name
    return str(base / name) + spec.removeprefix(name) if (base / name).exists() else spec


def _check_unique(models: tuple[Model, ...], entries: list[Entry], file: Path) -> None:
    """Raises:
    InputError: two models have one name, or write to one folder.
    """
    seen: set[str] = set()
    for model in models:
        if model.name.casefold() in seen:
            raise InputError(f"{file}: two models are called {model.name}; give each a name of its own")
        seen.add(model.name.casefold())
    owners: dict[Path, str] = {}
    for entry in entries:
        other = owners.setdefault(entry.out, entry.name)
        if other != entry.name:
            raise InputError(f"{file}: {other} and {entry.name} both write to {entry.out}; give one another `out`")


def _order(models: tuple[Model, ...], file: Path) -> list[str]:
    """The names, each behind those that it is `after`, and else as the file has them.

    Raises:
        InputError: an unknown name, or models that wait for each other.
    """
    names = [model.name for model in models]
    for model in models:
        for name in model.after:
            if name not in names:
                raise InputError(
                    f"{file}: {model.name} is after {name!r}, which is no model here{nearest(name, names)}"
                )
    try:
        return list(TopologicalSorter({model.name: model.after for model in models}).static_order())
    except CycleError as error:
        circle = " → ".join(error.args[1])
        raise InputError(f"{file}: these models wait for each other: {circle}; take one `after` out") from None


def _bytes(memory: str | int | None, file: Path) -> int | None:
    """Raises:
    InputError: no number of bytes, such as 8GB.
    """
    return None if memory is None else parse_bytes(str(memory), f"{file}: memory")


def parse_bytes(text: str, where: str) -> int:
    """The bytes that "8GB", "512 MiB" or a number mean.

    Raises:
        InputError: it is none of those.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _SIZES or float(match[1]) == 0:
        raise InputError(f"{where}: {text!r} is no size; write 8GB, or a number of bytes")
    return int(float(match[1]) * _SIZES[match[2].upper()])


def _keys_at(path: tuple[int | str, ...]) -> list[str]:
    """The keys allowed where pydantic found an unknown one."""
    kinds: dict[str, type[BaseModel]] = {"defaults": Settings, "models": Model}
    return list((kinds.get(str(path[0]), _File) if path else _File).model_fields)
