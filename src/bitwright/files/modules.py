"""The modules of sentence-transformers: what modules.json says a model is made of."""

from typing import NamedTuple

from bitwright.errors import ModelError
from bitwright.files.directory import ModelDirectory
from bitwright.files.reading import check_name

MODULES_FILE = "modules.json"


class Module(NamedTuple):
    """kind: its class, without what precedes it. folder: of its files, "" for the model's own directory."""

    kind: str
    folder: str


def read_modules(directory: ModelDirectory) -> list[Module] | None:
    """In the order in which they run; None without a modules.json.

    Raises:
        ModelError: it is no such list, or a folder leads out of the model's directory.
    """
    modules, file = directory.json(MODULES_FILE), directory.path / MODULES_FILE
    if modules is None:
        return None
    if not isinstance(modules, list) or not all(
        isinstance(module, dict) and isinstance(module.get("type"), str) and isinstance(module.get("path"), str)
        for module in modules
    ):
        raise ModelError(f"{file}: not a list of modules with a type and a path")
    found = [Module(module["type"].rpartition(".")[2], module["path"].rstrip("/")) for module in modules]
    for _, folder in found:
        if folder == ".":
            raise ModelError(f"{file}: the path of a module is '.'; \"\" is the model's own directory")
        check_name(directory.path, folder, MODULES_FILE)
    return found
