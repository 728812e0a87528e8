"""The sentence-transformers modules of a model, as modules.json lists them, and the config file of each; the names of
that library's files.
"""

import json
import os
from collections.abc import Collection
from pathlib import PurePath
from typing import Any, NamedTuple

from bitwright.errors import ModelError, brief
from bitwright.files.folder import Folder
from bitwright.files.reading import check_name

MODULES_FILE = "modules.json"
SETTINGS_FILE = "config_sentence_transformers.json"
# The first of these that says anything counts.
TRANSFORMER_FILES = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

TRANSFORMER = "Transformer"  # the kind of the first module
AFTER_POOLING = ("Dense", "LayerNorm", "Normalize", "Dropout")  # the kinds that are followed there

_POOLED = "sentence_embedding"


class Module(NamedTuple):
    """kind: the class name without its path. folder: where its files are; "" is the folder of modules.json."""

    kind: str
    folder: str

    def file(self, name: str) -> str:
        """The path of one of its files, relative to modules.json."""
        return f"{self.folder}/{name}" if self.folder else name


def read_modules(package: Folder) -> list[Module] | None:
    """The modules in the order in which they run; None without a modules.json.

    package: the folder of modules.json.

    Raises:
        ModelError: it is no such list, a folder leads out of the model's directory, or the Transformer has a folder
            from which its files cannot move to where other modules are not.
    """
    modules, file = package.json(MODULES_FILE), package / MODULES_FILE
    if modules is None:
        return None
    if not isinstance(modules, list) or not all(
        isinstance(module, dict) and isinstance(module.get("type"), str) and isinstance(module.get("path"), str)
        for module in modules
    ):
        raise ModelError(f"{file}: this must be a list of modules, each with a type and a path")
    for module in modules:
        check_name(package.path, module["path"], MODULES_FILE)
    found = [Module(module["type"].rpartition(".")[2], module["path"].rstrip("/")) for module in modules]
    for _, folder in found:
        if folder and not PurePath(folder).parts:
            raise ModelError(
                f'{file}: the path of a module is {brief(folder)}; write "" for the model\'s own directory'
            )
    _check_transformer(found, package)
    return found


def transformer_folder(package: Folder) -> Folder:
    """The folder of config.json, weights and tokenizer: the one that modules.json gives its first module, a
    Transformer; else the package's own.

    Raises:
        ModelError: as `read_modules`.
    """
    first = next(iter(read_modules(package) or ()), None)
    if first is None or first.kind != TRANSFORMER or not first.folder:
        return package
    return Folder(package / first.folder, package.model)


def flat_modules(package: Folder) -> str:
    """The text of modules.json for a copy whose Transformer lies beside it."""
    first, *others = package.json(MODULES_FILE)
    return json.dumps([first | {"path": ""}, *others], indent=2, ensure_ascii=False) + "\n"


def _check_transformer(modules: list[Module], package: Folder) -> None:
    """Refuse a folder of the Transformer that is not there or is hidden, or whose files would meet another module's in
    a result, where they lie beside modules.json.
    """
    if not modules or modules[0].kind != TRANSFORMER or not modules[0].folder:
        return
    folder, file = PurePath(modules[0].folder), package / MODULES_FILE
    if not os.path.isdir(package / modules[0].folder):
        raise ModelError(
            f"{file}: the Transformer is in {brief(str(folder))}, but there is no such folder; download the model again"
        )
    if any(part.startswith(".") for part in folder.parts):
        raise ModelError(f"{file}: the Transformer is in {brief(str(folder))}, which is hidden; rename the folder")
    met = next((module for module in modules[1:] if PurePath(module.folder) in (PurePath(), folder)), None)
    if met is not None:
        raise ModelError(
            f"{file}: the Transformer is in {brief(str(folder))}, and {met.kind} in {brief(met.folder)}. A result has "
            f"the Transformer's files beside {MODULES_FILE}, so give {met.kind} a folder of its own"
        )


def module_config(package: Folder, module: Module, known: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """The config.json of a module, and its keys that are not among `known`, as "folder/config.json: key".

    Raises:
        ModelError: it is no JSON object.
    """
    name = module.file("config.json")
    config = package.object(name, MODULES_FILE) or {}
    return config, [f"{name}: {key}" for key in config if key not in known]


def check_on_pooled(package: Folder, module: Module, config: dict[str, Any]) -> None:
    """Refuse a module that reads something other than the pooled vector; newer files can say so.

    Raises:
        ModelError: this one does.
    """
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, _POOLED):
            file = package / module.file("config.json")
            raise ModelError(f"{file}: {key} is {brief(config[key])}; Bitwright runs a {module.kind} only on {_POOLED}")
