"""Refuses a model whose files would run foreign code, fetch code or open other files, unless the user trusts it.

transformers takes its own class where a repository brings one and nobody trusts it, and says nothing. That would be
another model than its makers meant, so it is refused here by name. No torch.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bitwright.errors import ModelError, brief
from bitwright.files.directory import CONFIG_FILE, ModelDirectory
from bitwright.files.modules import MODULES_FILE
from bitwright.files.reading import lies_inside


class _Key(NamedTuple):
    """A key that may run or fetch code. harmless: values that do not. begins: beginnings of values that do not. does:
    what all other values do.
    """

    harmless: tuple[object, ...]
    does: str
    begins: tuple[str, ...] = ()


_KERNEL = "may be a kernel that transformers fetches from the hub and runs"
_ATTENTION = _Key(("eager", "sdpa", "flex_attention"), _KERNEL)
_EXPERTS = _Key(("eager", "batched_mm", "grouped_mm"), _KERNEL)
_ACTIVATION = _Key((), "is code that sentence-transformers imports and calls", begins=("torch.",))
# By its name, with that of the object around it, or with that of its file. null is harmless in all of them.
_KEYS = {
    "auto_map": _Key(({}, []), "is code of the repository, which transformers runs instead of its own"),
    "attn_implementation": _ATTENTION,
    "_attn_implementation": _ATTENTION,
    "experts_implementation": _EXPERTS,
    "_experts_implementation": _EXPERTS,
    "use_kernels": _Key((False,), _KERNEL),
    "sbert_ce_default_activation_function": _ACTIVATION,
    "sentence_transformers.activation_fn": _ACTIVATION,
    "adapter_config.json:base_model_name_or_path": _Key((), "is another model, which peft loads instead of this one"),
}
# Files that transformers or sentence-transformers read beside the weights.
_SIDE_FILES = (
    "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "processor_config.json",
    "preprocessor_config.json", "adapter_config.json",
)  # fmt: skip
_SENTENCES = "sentence_*_config.json"  # of sentence-transformers, by the kind of transformer
# Keys of tokenizers that name files; of two, transformers takes no notice.
_FILES = ("_file", "_files", "vocab", "merges")
_UNREAD = ("tokenizer_file", "special_tokens_map_file")
_ARGUMENTS = ("_args.", "_kwargs.")  # of sentence-transformers, for transformers: all that they say is followed
_DEEPEST = 4  # objects in objects
_OWN_MODULES = "sentence_transformers."


def check_foreign_code(directory: ModelDirectory, *, trusted: bool) -> None:
    """Refuse keys that would run, fetch or open something foreign, unless the user trusts the model.

    Raises:
        ModelError: a key that does, unless `trusted`; a module of sentence-transformers that is none of its own, which
            Bitwright cannot run.
    """
    _check_modules(directory)
    if trusted:
        return
    folder = directory.transformer
    check_config(directory.config, folder / CONFIG_FILE, trusted=trusted)
    sentences = sorted(file.name for file in folder.path.glob(_SENTENCES))
    for name in (*_SIDE_FILES, *sentences):
        check_config(folder.object(name) or {}, folder / name, trusted=trusted, model=folder.model)


def check_config(config: Mapping[str, Any], file: Path, *, trusted: bool, model: Path | None = None) -> None:
    """As `check_foreign_code`, for the content of one file. model: the model's directory; by default the file's."""
    for key, value in () if trusted else _items(config, _DEEPEST):
        names = (key.rpartition(".")[2], ".".join(key.split(".")[-2:]), f"{file.name}:{key}")
        row = next((_KEYS[name] for name in names if name in _KEYS), None)
        if row and not _is_harmless(value, row):
            _refuse(file, key, value, row.does)
        names_a_file = file.name != CONFIG_FILE and isinstance(value, str) and _is_opened(key)
        if names_a_file and _lies_outside(value, file.parent, model or file.parent):
            _refuse(file, key, value, "is a file outside the model's directory")


def _check_modules(directory: ModelDirectory) -> None:
    modules = directory.package.json(MODULES_FILE)
    for module in modules if isinstance(modules, list) else ():
        kind = module.get("type") if isinstance(module, dict) else None
        if isinstance(kind, str) and not kind.startswith(_OWN_MODULES):
            raise ModelError(
                f"{directory.package / MODULES_FILE}: type = {brief(kind)} is not a module of sentence-transformers "
                "itself. Bitwright runs only those, even with --trust-remote-code, and the embeddings would differ "
                "without this one"
            )


def _is_harmless(value: Any, row: _Key) -> bool:
    if isinstance(value, dict) and value and {} not in row.harmless:  # one for each config in a config
        return all(not isinstance(each, dict) and _is_harmless(each, row) for each in value.values())
    return value is None or value in row.harmless or (isinstance(value, str) and value.startswith(row.begins))


def _is_opened(key: str) -> bool:
    """Whether transformers' tokenizer may open the file that a key names."""
    return key.endswith(_FILES) and (key not in _UNREAD or any(part in key for part in _ARGUMENTS))


def _lies_outside(value: str, folder: Path, model: Path) -> bool:
    """Whether such a file exists outside the model's directory, seen from its folder or from the current one."""
    return any(os.path.isfile(place) and not lies_inside(model, place) for place in (folder / value, Path(value)))


def _items(config: Mapping[str, Any], depth: int, outer: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs (key, value) of an object and of the objects inside it, as "outer.key"; members of a list have its key."""
    for key, value in config.items():
        yield outer + key, value
        for member in value if isinstance(value, list) else (value,):
            if isinstance(member, dict) and depth:
                yield from _items(member, depth - 1, f"{outer}{key}.")
            elif member is not value:
                yield outer + key, member


def _refuse(file: Path, key: str, value: Any, does: str) -> None:
    raise ModelError(
        f"{file}: {brief(key)[1:-1]} = {brief(value)}: this {does}. Remove the key, or allow it with "
        "--trust-remote-code (trust_remote_code=True) if you trust the model's makers"
    )
