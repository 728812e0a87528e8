"""A folder of a model whose side files are read: each JSON file is parsed once, by a name that stays in the model."""

import os
from pathlib import Path
from typing import Any

from bitwright.errors import ModelError
from bitwright.files.reading import check_name, read_bytes
from bitwright.parsing import parse_json


class Folder:
    """One folder of a model. `folder / name` is the path of a file in it.

    path: the folder. model: the model's directory, which the folder is or lies in.
    """

    def __init__(self, path: Path, model: Path | None = None) -> None:
        self.path, self.model = path, path if model is None else model
        self._parsed: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"Folder({str(self.path)!r})"

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def json(self, name: str, said_by: str = "") -> Any:
        """The content of one file of the folder; None if there is no such file.

        said_by: the file that names this one, if one does.

        Raises:
            ModelError: it cannot be read, or is not JSON; or the name leads out of the model.
        """
        if name not in self._parsed:
            file = check_name(self.path, name, said_by, self.model)
            self._parsed[name] = read_json(file) if os.path.exists(file) else None  # False of a name that none can have
        return self._parsed[name]

    def object(self, name: str, said_by: str = "") -> dict[str, Any] | None:
        """As `json`, for a file that must hold an object."""
        content = self.json(name, said_by)
        return None if content is None else as_object(content, self.path / name)


def read_json(file: Path) -> Any:
    """The content of one side file of a model.

    Raises:
        ModelError: it cannot be read, or is not JSON.
    """
    try:
        return parsed(read_bytes(file), file)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror})") from None


def read_object(file: Path) -> dict[str, Any]:
    """As `read_json`, for a file that must hold an object."""
    return as_object(read_json(file), file)


def parsed(content: bytes, file: Path) -> Any:
    """What the bytes of a file say. Raises ModelError if they are not JSON."""
    try:
        return parse_json(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: cannot be read as JSON ({error})") from None


def as_object(content: Any, file: Path) -> dict[str, Any]:
    """The content of a file, if it is an object. Raises ModelError if it is not."""
    if not isinstance(content, dict):
        raise ModelError(f"{file}: this file must hold a JSON object, and does not")
    return content
