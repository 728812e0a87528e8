"""A model directory as files: what is in it, whether it can be loaded, its size, its license, its fingerprint.

Nothing here builds a model, and nothing is unpickled.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from bitwright.errors import CheckpointError, ModelError
from bitwright.files.safetensors import check_safetensors

# One file, or an index of shards: the first that exists is loaded, as transformers does.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
CONFIG_FILE = "config.json"

_LICENSES = {  # how the first lines of a license text name it -> SPDX identifier
    "Apache License": "apache-2.0",
    "MIT License": "mit",
    "BSD 3-Clause": "bsd-3-clause",
    "GNU AFFERO GENERAL": "agpl-3.0",
    "GNU GENERAL PUBLIC": "gpl-3.0",
    "Mozilla Public License": "mpl-2.0",
}


def check_directory(path: Path) -> None:
    """Raises:
    ModelError: no such directory.
    """
    if not path.is_dir():
        raise ModelError(f"{path}: no such directory; give a model directory or a hub name such as org/name")


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a model directory.

    Raises:
        ModelError: no directory, no config.json, not a JSON object, no model_type, or the model is quantized already.
    """
    check_directory(path)
    try:
        config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: no {CONFIG_FILE}; a transformers model directory has one") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path / CONFIG_FILE}: not JSON ({error})") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(f"{path / CONFIG_FILE}: no model_type; only transformers models can be read")
    if "quantization_config" in config:
        method = config["quantization_config"]
        method = method.get("quant_method") if isinstance(method, dict) else method
        raise ModelError(f"{path}: already quantized (quant_method {method!r}); give the original, unquantized model")
    return config


def read_json(file: Path) -> Any:
    """The content of one of a model's side files.

    Raises:
        ModelError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: cannot be read as JSON ({error})") from None


def read_object(file: Path) -> dict[str, Any]:
    """As `read_json`, for a file that must hold an object."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise ModelError(f"{file}: not a JSON object")
    return content


def weight_files(path: Path) -> list[Path]:
    """The weight files that loading reads: safetensors before .bin, one file before an index of shards.

    Raises:
        ModelError: there are none.
        CheckpointError: an index that is not one, or that names a file outside the directory or one that is missing.
    """
    found = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
    if found is None:
        raise ModelError(f"{path}: no weights; expected one of {', '.join(WEIGHT_FILES)}")
    if found.suffix != ".json":
        return [found]
    try:
        index = json.loads(found.read_text(encoding="utf-8"))
        shards = sorted(set(index["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f'{found}: not an index of shards: {{"weight_map": {{tensor: file}}}}') from None
    if not shards:
        raise CheckpointError(f"{found}: the index names no shard")
    for shard in shards:
        if (
            not isinstance(shard, str)
            or Path(shard).name != shard
            or Path(shard).suffix not in (".safetensors", ".bin")
        ):
            raise CheckpointError(f"{found}: {shard!r} is not the name of a weight file in this directory")
        if not (path / shard).is_file():
            raise CheckpointError(f"{found}: shard {shard} of {len(shards)} is missing; download the model again")
    return [path / shard for shard in shards]


def check_source(path: Path) -> dict[str, Any]:
    """Check all that can be checked before a model is built. Returns config.json.

    Raises:
        ModelError: the directory is not a model that can be loaded (`read_config`, `weight_files`).
        CheckpointError: a weight file's bytes do not say what they should.
    """
    config = read_config(path)
    for file in weight_files(path):
        if file.suffix == ".safetensors":
            check_safetensors(file)
    return config


def source_files(path: Path) -> list[Path]:
    """Every file of a model directory, sorted, without hidden files and folders (.git, .cache)."""
    files = (file for file in path.rglob("*") if file.is_file())
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts))


def source_bytes(path: Path) -> int:
    """Size of the weight files that loading reads, in bytes."""
    return sum(file.stat().st_size for file in weight_files(path))


def license_of(path: Path) -> str | None:
    """The license: `license:` in the README's front matter, else what a LICENSE file calls itself, else None."""
    readme = path / "README.md"
    if readme.is_file():
        front = re.match(r"---\s*\n(.*?)\n---", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        line = re.search(r"^license:\s*(\S.*?)\s*$", front[1], re.MULTILINE) if front else None
        if line:
            return line[1].strip("\"'")
    for file in sorted(path.glob("LICENSE*")):
        head = file.read_text(encoding="utf-8", errors="replace")[:400]
        return next((spdx for name, spdx in _LICENSES.items() if name.lower() in head.lower()), file.name)
    return None


def fingerprint(path: Path) -> str:
    """SHA-256 over config.json and the weight files: each file's name, size and bytes, in the order of names."""
    digest = hashlib.sha256()
    for file in sorted([path / CONFIG_FILE, *weight_files(path)]):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
