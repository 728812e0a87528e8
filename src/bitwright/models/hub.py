"""Finds the directory of a model: a local path, or a hub name through the hub's cache."""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionResolutionError,
)

from bitwright.errors import ModelError
from bitwright.files.directory import WEIGHT_FILES, ModelDirectory, absolute

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TEXT_FILES = ("*.json", "*.txt", "*.model", "README.md", "LICENSE*")
_OTHER_RUNTIMES = ("onnx/*", "openvino/*", "coreml/*", "checkpoint-*/*")


def fetch(name_or_dir: str | Path) -> Path:
    """The directory that holds a model. A hub name is downloaded once, without what loading does not read; .bin files
    only where there are no safetensors. HF_HUB_OFFLINE=1 keeps to the cache.

    Raises:
        ModelError: neither a directory nor a hub name; no such model; no access; the hub cannot be reached and the
            model is not in the cache.
    """
    name, path = str(name_or_dir), Path(name_or_dir).expanduser()
    if name and path.is_dir():
        return absolute(path)
    if not _HUB_NAME.fullmatch(name):
        raise ModelError(f"{name}: this is neither a directory here nor a hub name such as org/name")
    found = _snapshot(name, ("*.safetensors", "*.safetensors.index.json", *_TEXT_FILES))
    if not any((ModelDirectory(found).transformer / file).is_file() for file in WEIGHT_FILES):
        found = _snapshot(name, ("pytorch_model*.bin", "*/pytorch_model*.bin", *_TEXT_FILES))
    return found


def _snapshot(name: str, patterns: Sequence[str]) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=list(_OTHER_RUNTIMES)))
    except GatedRepoError:
        raise ModelError(
            f"{name}: this model is gated; accept its terms on its page and log in with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"{name}: there is no such directory here, and no such public model on {constants.ENDPOINT}; check the name"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, RevisionResolutionError, HfHubHTTPError, OSError) as error:
        why = (
            "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} gave {type(error).__name__}"
        )
        raise ModelError(
            f"{name}: there is no such directory here, the hub cache does not hold the whole model, and it cannot "
            f"be downloaded ({why}). Download it where there is a network, and give the directory"
        ) from None
