"""`Buffer`: the rows that operators pass to one another; and how the record of an operator says what it does to them.

A field that holds a buffer is declared with `READ`, `WRITTEN` or `IN_PLACE`; None where an optional one is left out:

    source: Buffer = field(metadata=READ)
"""

import functools
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# The names of the native module's BufferKind and Per.
BufferKind = Literal["f32", "bf16", "codes", "groups"]
Per = Literal["token", "sequence", "output"]

READ: Mapping[str, bool] = {"read": True}
WRITTEN: Mapping[str, bool] = {"written": True}
IN_PLACE: Mapping[str, bool] = {**READ, **WRITTEN}


class Buffer(NamedTuple):
    """Rows of `width` values each, one row per token, per sequence, or per token whose output is wanted.

    group: values that share a scale, of rows of kind "groups"; 0 for other kinds.
    """

    number: int
    kind: BufferKind
    width: int
    per: Per = "token"
    group: int = 0


def reads(op: "DataclassInstance") -> tuple[Buffer, ...]:
    """The buffers that an operator reads, in the order of its fields."""
    return _held(op, _declared(type(op), "read"))


def writes(op: "DataclassInstance") -> tuple[Buffer, ...]:
    """The buffers that an operator writes, in the order of its fields."""
    return _held(op, _declared(type(op), "written"))


_Record = TypeVar("_Record", bound="DataclassInstance")


def moved(op: _Record, new: Mapping[Buffer, Buffer]) -> _Record:
    """The same operator on other buffers."""
    names = (*_declared(type(op), "read"), *_declared(type(op), "written"))
    changes: dict[str, Any] = {name: new[buffer] for name in names if (buffer := getattr(op, name)) is not None}
    return replace(op, **changes)


@functools.cache
def _declared(record: type["DataclassInstance"], role: str) -> tuple[str, ...]:
    return tuple(each.name for each in fields(record) if each.metadata.get(role))


def _held(op: "DataclassInstance", names: tuple[str, ...]) -> tuple[Buffer, ...]:
    return tuple(buffer for name in names if (buffer := getattr(op, name)) is not None)
