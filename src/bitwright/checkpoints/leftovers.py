"""What of a source model's other files a result holds, and what it leaves out. No file is opened for that: its name
and its size decide.

A result is flat: where the source's Transformer has a folder of its own, its files move beside modules.json. A file
whose name is taken there, by one that sentence-transformers reads or that is for people, stays in that folder, where
nothing is read any more. What lay beside modules.json and would now be read as the Transformer's is left out.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

from bitwright.files.after_pooling import PICKLED, WEIGHTS
from bitwright.files.directory import WEIGHT_FILES, ModelDirectory, source_files
from bitwright.files.modules import MODULES_FILE, SETTINGS_FILE, read_modules
from bitwright.files.reading import MAX_JSON_BYTES
from bitwright.record import LeftOut

MAX_COPIED_BYTES = 64 << 20  # of a file that is no tokenizer's

# What a checkpoint has for people and for tokenizers: text, tables, images of the card.
_TEXTS = frozenset({
    ".json", ".jsonl", ".txt", ".md", ".rst", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".csv", ".tsv", ".bib", ".cff",
    ".jinja", ".model", ".spm", ".vocab", ".bpe", ".codes", ".tiktoken", ".png", ".jpg", ".jpeg", ".gif", ".webp",
    ".svg",
})  # fmt: skip
_PAPERS = re.compile(r"[A-Z][A-Z_-]*[0-9.]*")  # LICENSE-2.0, NOTICE, USE_POLICY
_TOKENIZERS = re.compile(
    r"(tokenizer|vocab|merges|sentencepiece|spiece|tekken|added_tokens).*|.*\.(model|spm|tiktoken)"
)
_TOKENIZER_VERSIONS = re.compile(r"tokenizer\.model\.v\d+\w*")
# Most of these are pickles, which run what they hold when they are opened.
_WEIGHTS = frozenset({
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill", ".npy", ".npz", ".h5",
    ".keras",
})  # fmt: skip
_CODE = frozenset({
    ".py", ".pyc", ".pyd", ".ipynb", ".so", ".dylib", ".dll", ".exe", ".sh", ".bash", ".bat", ".cmd", ".ps1", ".js",
    ".jar", ".whl", ".egg",
})  # fmt: skip
_TRAINING = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state\w*)\.(bin|pt|pth)")
# The same model for other frameworks, by suffix, by name, or in folders of hubs.
_EXPORTS = frozenset({".onnx", ".onnx_data", ".tflite", ".mlmodel", ".gguf", ".msgpack", ".ot"})
_EXPORTED = re.compile(
    r"(pytorch_model|tf_model|flax_model|rust_model|openvino_model|model|consolidated)([.-].*)?"
    r"\.(safetensors|bin|pt|pth|h5|xml|index\.json)"
)
_EXPORT_FOLDERS = frozenset({"onnx", "openvino", "coreml", "tflite", "gguf", "original"})
_ADAPTER = re.compile(r"adapter_(config|model).*")
# Kinds of files that transformers may read beside config.json, and those that it may read in folders there.
_SETTINGS = frozenset({
    ".json", ".jsonl", ".txt", ".jinja", ".model", ".spm", ".vocab", ".bpe", ".codes", ".tiktoken",
})  # fmt: skip
_TEMPLATES = frozenset({".jinja"})
_OF_PACKAGE = frozenset({MODULES_FILE, SETTINGS_FILE, "README.md"})  # never the Transformer's


class _Named(NamedTuple):
    """A file of the source, its name in a flat copy, and whether nothing reads it, though something would there."""

    name: Path
    file: Path
    unread: bool = False


def split_source_files(directory: ModelDirectory) -> tuple[dict[Path, Path], list[LeftOut]]:
    """(files that a quantized copy of a model keeps, by their names there; files that it leaves out), sorted by name.

    Neither has hidden files and folders, which belong to git and to hubs' caches, nor the weights that were read: the
    copy has its own.

    Raises:
        ModelError, CheckpointError: the model has no weights, or a file that cannot be read.
    """
    kept: dict[Path, Path] = {}
    left_out: list[LeftOut] = []
    folders = _module_folders(directory)
    module_folders = {folder.parts[0] for folder in folders}
    index = next((file for name in WEIGHT_FILES if (file := directory.transformer / name).is_file()), None)
    read = {index, *directory.weight_files}
    for name, file, unread in sorted(_named(directory, folders)):
        if file in read:
            continue
        size = file.stat().st_size
        if file.name == PICKLED and name.parts[0] in module_folders and not file.with_name(WEIGHTS).is_file():
            kept[name] = file  # which is written as safetensors
        elif reason := _reason(name, size, module_folders) or "unread" * unread:
            stands = file.relative_to(directory.path).as_posix()
            left_out.append(LeftOut(os.fsencode(stands).decode("utf-8", "backslashreplace"), size, reason))
        else:
            kept[name] = file
    return kept, left_out


def _module_folders(directory: ModelDirectory) -> set[PurePath]:
    """The folders of the modules, but for that of the Transformer."""
    folders = {PurePath(module.folder) for module in read_modules(directory.package) or () if module.folder}
    return {folder for folder in folders if directory.path / folder != directory.transformer.path}


def _named(directory: ModelDirectory, folders: set[PurePath]) -> Iterator[_Named]:
    """Every file of the source. folders: of modules, which stay where they are."""
    package, inner = directory.path, directory.transformer.path
    if directory.is_flat:
        yield from (_Named(file.relative_to(package), file) for file in source_files(package))
        return
    folder, taken = inner.relative_to(package), set()
    for file in source_files(package):
        name = file.relative_to(package)
        owner = _owner(name, {folder, *folders})
        if owner == folder:
            continue
        unread = owner is None and _is_setting(name)
        if not unread:
            taken.add(name)
        yield _Named(name, file, unread)
    for file in source_files(inner):  # which may be a link to a folder
        name, stands = file.relative_to(inner), file.relative_to(package)
        if _owner(stands, {folder, *folders}) == folder:
            stays = name in taken or str(name) in _OF_PACKAGE or _owner(name, folders) is not None
            yield _Named(stands if stays else name, file)


def _owner(name: PurePath, folders: set[PurePath]) -> PurePath | None:
    """The innermost of the folders that a file lies in."""
    return next((parent for parent in name.parents if parent in folders), None)


def _is_setting(name: PurePath) -> bool:
    """Whether transformers may read a file of this name, relative to a Transformer, as a part of it."""
    if str(name) in _OF_PACKAGE or _PAPERS.fullmatch(name.stem):
        return False
    kinds = _SETTINGS if len(name.parts) == 1 else _TEMPLATES
    return name.suffix.lower() in kinds or _TOKENIZER_VERSIONS.fullmatch(name.name) is not None


def _reason(file: PurePath, size: int, module_folders: set[str]) -> str:
    """Why a file is left out, a word of `LeftOut`, by its name in the copy; "" for one that is kept."""
    name, suffix = file.name, file.suffix.lower()
    folder = file.parts[0] if len(file.parts) > 1 else ""
    # The weights of a sentence-transformers module in a folder of its own ("2_Dense") belong to the pipeline.
    if folder in module_folders and suffix == ".safetensors":
        return ""
    if folder in _EXPORT_FOLDERS or suffix in _EXPORTS:
        return "copy"
    if _TRAINING.fullmatch(name):
        return "training"
    if folder not in module_folders and _EXPORTED.fullmatch(name):
        return "copy"
    if suffix in _WEIGHTS or _ADAPTER.fullmatch(name):
        return "weights"
    if suffix in _CODE:
        return "code"
    if suffix not in _TEXTS and not _PAPERS.fullmatch(name) and not _TOKENIZER_VERSIONS.fullmatch(name):
        return "unknown"
    return "large" if size > (MAX_JSON_BYTES if _TOKENIZERS.fullmatch(name) else MAX_COPIED_BYTES) else ""
