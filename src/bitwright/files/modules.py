"""The sentence-transformers modules of a model, as modules.json lists them, and the config file of each; the names of
that library's files.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

from bitwright.errors import ModelError, brief
from bitwright.files.directory import ModelDirectory
from bitwright.files.reading import check_name

MODULES_FILE = "modules.json"
SETTINGS_FILE = "config_sentence_transformers.json"
# The first of these that says anything counts.
TRANSFORMER_FILES = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

AFTER_POOLING = ("Dense", "LayerNorm", "Normalize", "Dropout")  # the kinds that are followed there

_POOLED = "sentence_embedding"


class Module(NamedTuple):
    """kind: the class name without its path. folder: where its files are; "" is the model's own directory."""

    kind: str
    folder: str

    def file(self, name: str) -> str:
        """The path of one of its files, relative to the model's directory."""
        return f"{self.folder}/{name}" if self.folder else name


def read_modules(directory: ModelDirectory) -> list[Module] | None:
    """The modules in the order in which they run; None without a modules.json.

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
        raise ModelError(f"{file}: this must be a list of modules, each with a type and a path")
    found = [Module(module["type"].rpartition(".")[2], module["path"].rstrip("/")) for module in modules]
    for _, folder in found:
        if folder == ".":
            raise ModelError(f"{file}: the path of a module is '.'; write \"\" for the model's own directory")
        check_name(directory.path, folder, MODULES_FILE)
    return found


def module_config(
    directory: ModelDirectory, module: Module, known: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    """The config.json of a module, and its keys that are not among `known`, as "folder/config.json: key".

    Raises:
        ModelError: it is no JSON object.
    """
    name = module.file("config.json")
    config = directory.object(name, MODULES_FILE) or {}
    return config, [f"{name}: {key}" for key in config if key not in known]


def check_on_pooled(directory: ModelDirectory, module: Module, config: dict[str, Any]) -> None:
    """Refuse a module that reads something other than the pooled vector; newer files can say so.

    Raises:
        ModelError: this one does.
    """
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, _POOLED):
            file = directory.path / module.file("config.json")
            raise ModelError(f"{file}: {key} is {brief(config[key])}; Bitwright runs a {module.kind} only on {_POOLED}")
