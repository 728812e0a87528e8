"""Dataclasses to plain data and back, by their type hints: what a section may hold is written once, in its fields.

A field without a default must be there. One that is None by default is left out of the data while it is None, or, if
it is marked NULL, written as null; null in the data means the default. Keys that no field names go into the
field marked REST, and are ignored in a section that has none: a later release of the same version may add
some. In JSON, infinity and NaN are the strings "inf", "-inf" and "nan".
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bitwright.errors import CheckpointError

T = TypeVar("T")

# Metadata of a field: it may be None, and is written as null then; it holds the keys that no other field names.
NULL: Mapping[str, Any] = {"null": True}
REST: Mapping[str, Any] = {"rest": True}

_NAMED_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def as_data(value: Any) -> Any:
    """A section as dicts and lists; floats stay floats, infinity and NaN among them."""
    if is_dataclass(value) and not isinstance(value, type):
        return _section_data(value)
    if isinstance(value, Mapping):
        return {str(key): as_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_data(item) for item in value]
    return value


def plain_data(value: Any) -> Any:
    """`value`, a section or plain data, as JSON can hold it: infinity and NaN become strings."""
    return _mapped(
        as_data(value), lambda item: str(item) if isinstance(item, float) and not math.isfinite(item) else item
    )


def from_data(section: type[T], data: Any, source: str = "record") -> T:
    """The section that `data`, as JSON has it, describes.

    Args:
        section: a dataclass. source: what the data were read from, for errors.

    Raises:
        CheckpointError: a key that must be there is not, a value has the wrong type (the message names the key), or the
            data are nested too deeply.
    """
    try:
        found: T = _section(section, data, "")
    except _WrongValueError as wrong:
        raise CheckpointError(f"{source}: {wrong}") from None
    except RecursionError:
        raise CheckpointError(f"{source}: the data is nested too deeply") from None
    return found


class _WrongValueError(Exception):
    """What is wrong, and where in the data: "layers[3].error is 'x', not a number"."""


def _section(section: Any, data: Any, place: str) -> Any:
    if not isinstance(data, Mapping):
        raise _wrong(place, data, "an object")
    hints, named = _hints(section), _fields(section)
    values: dict[str, Any] = {}
    for name, known in named.items():
        at = f"{place}.{name}" if place else name
        if "rest" in known.metadata:
            values[name] = {key: _restored(item) for key, item in data.items() if key not in named}
        elif data.get(name) is not None or not _has_default(known):
            if name not in data:
                raise _WrongValueError(f"{at} is missing")
            values[name] = _value(hints[name], data[name], at)
    return section(**values)


def _value(hint: Any, given: Any, place: str) -> Any:
    """`given` as `hint` says; ints pass as floats."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union):
        return _one_of(parts, given, place)
    if hint is Any:
        return _restored(given)
    if origin is Literal:
        if given not in parts:
            raise _wrong(place, given, f"one of {', '.join(parts)}")
        return given
    if origin is tuple:
        if not isinstance(given, (list, tuple)):
            raise _wrong(place, given, "a list")
        each = [parts[0]] * len(given) if parts[-1] is Ellipsis else list(parts)
        if len(each) != len(given):
            raise _wrong(place, given, f"a list of {len(each)}")
        return tuple(
            _value(part, item, f"{place}[{i}]") for i, (part, item) in enumerate(zip(each, given, strict=True))
        )
    if origin is Mapping:
        if not isinstance(given, Mapping):
            raise _wrong(place, given, "an object")
        return {key: _value(parts[1], item, f"{place}.{key}") for key, item in given.items()}
    if is_dataclass(hint) and isinstance(hint, type):
        return _section(hint, given, place)
    return _scalar(hint, given, place)


def _one_of(hints: tuple[Any, ...], given: Any, place: str) -> Any:
    """The first of the alternatives that fits; of one alone, or the last, the error says what is wrong."""
    if given is None and NoneType in hints:
        return None
    *firsts, last = (hint for hint in hints if hint is not NoneType)
    for hint in firsts:
        try:
            return _value(hint, given, place)
        except _WrongValueError:
            continue
    return _value(last, given, place)


def _scalar(kind: type, given: Any, place: str) -> Any:
    if kind is float and isinstance(given, str) and given in _NAMED_FLOATS:
        return _NAMED_FLOATS[given]
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(given, accepted) or (isinstance(given, bool) and kind is not bool):
        raise _wrong(place, given, _WORDS[kind])
    return given


def _section_data(section: Any) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for name, known in _fields(section.__class__).items():
        value = getattr(section, name)
        if "rest" in known.metadata:
            data |= as_data(value)
        elif value is not None or known.default is not None or "null" in known.metadata:
            data[name] = as_data(value)
    return data


def _has_default(known: "Field[Any]") -> bool:
    return known.default is not MISSING or known.default_factory is not MISSING


def _wrong(place: str, given: Any, wanted: str) -> _WrongValueError:
    shown = repr(given)
    return _WrongValueError(f"{place} is {shown if len(shown) <= 40 else shown[:39] + '…'}, not {wanted}".lstrip())


def _restored(value: Any) -> Any:
    return _mapped(value, lambda item: _NAMED_FLOATS.get(item, item) if isinstance(item, str) else item)


def _mapped(value: Any, change: Any) -> Any:
    """Plain data with every leaf changed."""
    if isinstance(value, Mapping):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(item, change) for item in value]
    return change(value)


@cache
def _hints(section: Any) -> dict[str, Any]:
    return get_type_hints(section)


@cache
def _fields(section: Any) -> dict[str, "Field[Any]"]:
    return {known.name: known for known in fields(section)}
