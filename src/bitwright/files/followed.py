"""Checks the keys of side files that make transformers or sentence-transformers open another file.

What transformers ignores today (`tokenizer_file` of a tokenizer_config.json that was saved on another machine) stays.
"""

from collections.abc import Iterator
from typing import Any

from bitwright.errors import ModelError, brief
from bitwright.files.directory import CONFIG_FILE, ModelDirectory
from bitwright.files.modules import TRANSFORMER_FILES

TOKENIZER_CONFIG = "tokenizer_config.json"
# By file: a list of files of which one is read instead of the usual one, which is the one that is checked.
_INSTEAD = {CONFIG_FILE: "configuration_files", TOKENIZER_CONFIG: "fast_tokenizer_files"}
# Given to the class of a tokenizer as they are, which opens them, or what they name.
_OPENED = ("vocab", "merges", "gguf_file", "init_inputs")
# transformers puts the files that it finds in the directory in their place.
_REPLACED = ("tokenizer_file", "special_tokens_map_file", "added_tokens_file", "tokenizer_config_file",
             "chat_template_file")  # fmt: skip
_NAMES = ("_file", "_path", "_dir", "subfolder")  # ends of keys that name a file or a folder


def check_followed(directory: ModelDirectory) -> None:
    """Raises:
    ModelError: a side file names another one that would be read in place of one that is checked, or from anywhere.
    """
    folder = directory.transformer
    for name, key in _INSTEAD.items():
        said = directory.config if name == CONFIG_FILE else folder.object(name) or {}
        if said.get(key):
            raise ModelError(
                f"{folder / name}: {key} names files for other versions of transformers; keep the right "
                "file under its usual name, and remove the key"
            )
    for key, value in (folder.object(TOKENIZER_CONFIG) or {}).items():
        if key in _OPENED and (isinstance(value, str) or (key == "init_inputs" and value)):
            raise ModelError(
                f"{folder / TOKENIZER_CONFIG}: {key} is {brief(value)}, which transformers would open as a "
                "file; remove the key"
            )
    for key in folder.object("special_tokens_map.json") or {}:
        if not key.endswith(("_token", "_tokens")):
            raise ModelError(
                f"{folder / 'special_tokens_map.json'}: {brief(key)} is not a special token; remove the key"
            )
    for name in TRANSFORMER_FILES:
        for key, value in _within(folder.json(name), 0):
            if key.endswith(_NAMES) and isinstance(value, str) and value:
                raise ModelError(
                    f"{folder / name}: {brief(key)} is {brief(value)}, so files would be read from another "
                    "place. Put them into the model's directory under their usual names, and remove the key"
                )


def paths_of_tokenizer(directory: ModelDirectory) -> tuple[str, ...]:
    """Keys of tokenizer_config.json that name files which some transformers class opens unchecked."""
    settings = directory.transformer.object(TOKENIZER_CONFIG) or {}
    return tuple(key for key in settings if key.endswith("_file") and key not in _REPLACED)


def _within(value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Every key and its value, also those of objects inside objects."""
    if isinstance(value, dict) and depth < 8:
        for key, inner in value.items():
            yield key, inner
            yield from _within(inner, depth + 1)
