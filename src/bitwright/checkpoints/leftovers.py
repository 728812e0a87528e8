"""What of a source model's other files a result holds, and what it leaves out. No file is opened for that: its name
and its size decide.
"""

import os
import re
from pathlib import Path, PurePath

from bitwright.files.after_pooling import PICKLED, WEIGHTS
from bitwright.files.directory import WEIGHT_FILES, ModelDirectory, source_files
from bitwright.files.modules import read_modules
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


def split_source_files(directory: ModelDirectory) -> tuple[list[Path], list[LeftOut]]:
    """(files that a quantized copy of a model keeps, files that it leaves out), relative and sorted.

    Neither has hidden files and folders, which belong to git and to hubs' caches, nor the weights that were read: the
    copy has its own.

    Raises:
        ModelError, CheckpointError: the model has no weights, or a file that cannot be read.
    """
    kept: list[Path] = []
    left_out: list[LeftOut] = []
    module_folders = {PurePath(module.folder).parts[0] for module in read_modules(directory) or () if module.folder}
    index = next((directory.path / name for name in WEIGHT_FILES if (directory.path / name).is_file()), None)
    read = {index, *directory.weight_files}
    for file in source_files(directory.path):
        relative, size = file.relative_to(directory.path), file.stat().st_size
        if file in read:
            continue
        if file.name == PICKLED and relative.parts[0] in module_folders and not file.with_name(WEIGHTS).is_file():
            kept.append(relative)  # which is written as safetensors
        elif reason := _reason(relative, size, module_folders):
            left_out.append(LeftOut(os.fsencode(relative.as_posix()).decode("utf-8", "backslashreplace"), size, reason))
        else:
            kept.append(relative)
    return kept, left_out


def _reason(file: PurePath, size: int, module_folders: set[str]) -> str:
    """Why a file is left out, a word of `LeftOut`; "" for one that is kept."""
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
