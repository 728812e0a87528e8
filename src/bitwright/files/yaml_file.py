"""YAML that a person writes, such as a recipe or a fleet, as plain data; and what is said of a wrong key in it."""

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from bitwright.errors import InputError, ModelError, brief
from bitwright.files.reading import read_bytes
from bitwright.parsing import check_text

MAX_BYTES = 1 << 20
_MOST_VALUES = 100_000


class _Loader(yaml.SafeLoader):
    """A YAML loader that reports a wrong value with its line, whatever Python raises."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as error:
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None


def read_mapping(path: Path, what: str, kind: type[InputError], *, hint: str = "") -> dict[str, Any]:
    """The mapping that a YAML file holds.

    what: of such a file and its keys, for messages. hint: what else to say where it cannot be read.

    Raises:
        kind: it cannot be read, is too large, is not YAML, or holds no mapping; aliases that stand for too much.
    """
    try:
        data = yaml.load(_text(path, kind), _Loader)
        size = _written_out(data, {})
        if size <= _MOST_VALUES:  # it would write the aliases out
            check_text(data)
    except OSError as error:
        raise kind(f"{path}: cannot be read ({error.strerror}){hint}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        found, mark = getattr(error, "problem", None) or error, getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise kind(f"{path}{where}: this is not YAML ({found})") from None
    if not isinstance(data, dict):
        raise kind(f"{path}: {what}, but this is {brief(data)}")
    if size > _MOST_VALUES:
        raise kind(f"{path}: the aliases stand for {size} values, more than {_MOST_VALUES}; write them out")
    return data


def complaint(error: ValidationError, where: str, keys_at: Callable[[tuple[int | str, ...]], Sequence[str]]) -> str:
    """What is wrong with data that a model of pydantic refuses: the first unknown key with the nearest, or the first
    other problem.

    keys_at: the keys that are known at a place.
    """
    # An unknown key is the cause of most other complaints: a misspelt `scheme` is also a missing one.
    problem = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = keys_at(problem["loc"][:-1])
        hint = nearest(str(problem["loc"][-1]), known)
        return f"{where}: unknown key `{path}`{hint}; the keys here are {', '.join(known)}"
    return f"{where}: {f'`{path}`: ' if path else ''}{problem['msg'].removeprefix('Value error, ')}"


def nearest(name: str, known: Iterable[str]) -> str:
    """ " (did you mean 'scheme'?)", or nothing where no known name is near."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _text(path: Path, kind: type[InputError]) -> str:
    """Raises:
    kind: larger than anything a person writes. OSError, UnicodeDecodeError: it cannot be read.
    """
    try:
        return read_bytes(path, MAX_BYTES).decode("utf-8")
    except ModelError as error:
        raise kind(str(error)) from None


def _written_out(value: Any, known: dict[int, int]) -> int:
    """The number of values after all aliases are written out; infinite for a list that holds itself."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = _MOST_VALUES + 1  # of one that holds itself
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_written_out(part, known) for part in parts)
    return known[id(value)]
