"""A model directory, opened once: its configuration, side files, weights and license.

Nothing here builds a model, nothing is unpickled, and no torch is imported.
"""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from bitwright.errors import CheckpointError, ModelError
from bitwright.families.tasks import TaskName
from bitwright.files.counts import check_counts
from bitwright.files.folder import Folder, as_object, parsed
from bitwright.files.modules import MODULES_FILE, flat_modules, transformer_folder
from bitwright.files.reading import check_directory, read_bytes, read_text
from bitwright.files.tensors import MappedTensors
from bitwright.parsing import parse_json

# One file, or an index of shards: the first that exists is loaded, as transformers does.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
CONFIG_FILE = "config.json"

MAX_FRONT_MATTER = 1 << 16  # characters: YAML is slow to read

_LICENSES = {  # how the first lines of a license text name it -> SPDX identifier
    "Apache License": "apache-2.0",
    "MIT License": "mit",
    "BSD 3-Clause": "bsd-3-clause",
    "GNU AFFERO GENERAL": "agpl-3.0",
    "GNU GENERAL PUBLIC": "gpl-3.0",
    "Mozilla Public License": "mpl-2.0",
}


# Files beside a config.json that says nothing of quantization -> the quant_method of the tool that writes them.
QUANTIZATION_FILES = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq"}


class Quantization(NamedTuple):
    """What a model's files say of how it is quantized, an object or something that should be one, and where."""

    where: str
    said: Any


class ModelDirectory:
    """An open model directory. It parses each JSON file once and maps the weights once.

    It has two roots, which are one folder unless modules.json gives the Transformer a folder of its own, as old
    versions of sentence-transformers wrote it ("0_Transformer"): what that library reads lies in `package`, what
    transformers reads in `transformer`. Every read names one of them.

    path: the directory, absolute, so that what is read later does not depend on where the process is then. Links stay:
    their name is what the user calls the model.
    task: what the user says that the model is for; None leaves it to the files (`files/task.py`).
    package: modules.json, the settings of sentence-transformers, the folders of its modules, the model card.
    """

    def __init__(self, path: Path, task: TaskName | None = None) -> None:
        """Raises:
        ModelError: no such directory, or a file in it that is none of its own (`reading.check_directory`).
        """
        if not path.is_dir():
            raise ModelError(f"{path}: no such directory; give a model directory or a hub name such as org/name")
        try:
            check_directory(path)
        except OSError as error:
            raise ModelError(f"{path}: this directory cannot be read ({error.strerror})") from None
        self.path, self.task = absolute(path), task
        self.package = Folder(self.path)

    def __repr__(self) -> str:
        return f"ModelDirectory({str(self.path)!r})"

    @cached_property
    def transformer(self) -> Folder:
        """config.json, the weights, the tokenizer, and the Transformer's own file of sentence-transformers.

        Raises:
            ModelError: as `read_modules`.
        """
        return transformer_folder(self.package)

    @property
    def is_flat(self) -> bool:
        """Whether both roots are one folder, as in everything that Bitwright writes."""
        return self.transformer is self.package

    @cached_property
    def _config_bytes(self) -> bytes:
        file = self.transformer / CONFIG_FILE
        try:
            return read_bytes(file)
        except FileNotFoundError:
            raise ModelError(f"{file.parent}: no {CONFIG_FILE}; {self._where_else()}") from None
        except OSError as error:
            raise ModelError(f"{file}: cannot be read ({error.strerror})") from None

    def _where_else(self) -> str:
        """What to do without a config.json."""
        if found := sorted(file.name for file in self.path.glob("*.gguf")):
            return f"it holds GGUF files; give one of them, such as {self.path / found[0]}"
        if not self.is_flat:
            return f"{MODULES_FILE} says that the model is there, so download it again"
        if inside := sorted(file.parent for file in self.path.glob(f"*_Transformer/{CONFIG_FILE}")):
            return f"{inside[0]} has one, but there is no {MODULES_FILE} that names it, so give that directory"
        return "a transformers model directory has one, so check the path"

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json.

        Raises:
            ModelError: there is none, or none that is a JSON object.
        """
        file = self.transformer / CONFIG_FILE
        return as_object(parsed(self._config_bytes, file), file)

    @cached_property
    def quantization(self) -> Quantization | None:
        """What the files say of how the model is quantized; None of a float model.

        Most tools write `quantization_config` into config.json. MLX calls it `quantization`, and older ModelOpt and
        AutoGPTQ write a file of their own; what they leave out, the name of the format, is added.

        Raises:
            ModelError: such a file is no JSON object.
        """
        key, file = "quantization_config", self.transformer / CONFIG_FILE
        said = self.config.get(key)
        # MLX writes its own under both names, and names no format.
        if isinstance(said, dict) and "quant_method" not in said and said == self.config.get("quantization"):
            return Quantization(f"{file}: quantization", {"quant_method": "mlx", **said})
        if key in self.config:
            return Quantization(f"{file}: {key}", said)
        mlx = self.config.get("quantization")
        if isinstance(mlx, dict) and {"group_size", "bits"} <= mlx.keys():
            return Quantization(f"{file}: quantization", {"quant_method": "mlx", **mlx})
        for name, method in QUANTIZATION_FILES.items():
            if content := self.transformer.object(name):
                return Quantization(str(self.transformer / name), {"quant_method": method, **content})
        return None

    @property
    def is_quantized(self) -> bool:
        """Whether the files say that some tool has quantized the model."""
        return self.quantization is not None

    @property
    def origin(self) -> Path:
        """What the user named: this directory, unless it was made of something else for the time of a run."""
        return self.path

    @property
    def decoded_types(self) -> tuple[str, ...]:
        """The types of the codes that these floats stand for; () of a model that was float."""
        return ()

    def made(self, name: str) -> str | None:
        """The text of a side file that does not lie on disk; None of those that do, or that there are not."""
        return None

    @property
    def made_files(self) -> dict[str, str]:
        """The texts of side files that a copy of the model needs and that do not lie on disk so, by name; without
        config.json. A copy is flat.
        """
        return {} if self.is_flat else {MODULES_FILE: flat_modules(self.package)}

    @cached_property
    def weight_files(self) -> list[Path]:
        """As the function of the same name."""
        return _weight_files(self.transformer.path)

    @cached_property
    def tensors(self) -> MappedTensors:
        """The weights. They must all be in safetensors files.

        Raises:
            ModelError: there are none.
            CheckpointError: a file's bytes do not say what they should; .bin files.
        """
        for file in self.weight_files:
            if file.suffix != ".safetensors":
                raise CheckpointError(f"{file}: Bitwright reads quantized checkpoints only from safetensors files")
        return MappedTensors(self.weight_files)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, by name; {} if the weights are not safetensors files.

        Raises:
            ModelError: there are no weights. CheckpointError: as `tensors`.
        """
        return {} if any(file.suffix != ".safetensors" for file in self.weight_files) else dict(self.tensors.shapes)

    def check_counts(self) -> None:
        """Compare the counts in config.json with the safetensors files, before a model is built from them.

        Raises:
            ModelError: it counts more than there can be. CheckpointError: as `tensors`.
        """
        check_counts(self.config, self.shapes, str(self.transformer / CONFIG_FILE))

    def forget_tensors(self) -> None:
        """Unmap the weights, because pages that were read count as the process's memory. The next access maps them
        again. Tensors that were mapped alone stay mapped.
        """
        self.__dict__.pop("tensors", None)

    def check_float(self) -> None:
        """Raises:
        ModelError: no model_type in config.json, or the model is quantized already.
        """
        if not isinstance(self.config.get("model_type"), str):
            raise ModelError(
                f"{self.transformer / CONFIG_FILE}: there is no model_type; Bitwright reads only transformers models"
            )
        if self.quantization is not None:
            said = self.quantization.said
            method = said.get("quant_method") if isinstance(said, dict) else said
            raise ModelError(
                f"{self.path}: this model is already quantized (quant_method {method!r}); give the original, "
                "unquantized model"
            )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over config.json and the weight files: each file's name, size and bytes, in the order of names."""
        from hashlib import sha256  # 2 ms, which loading a model need not wait for

        digest = sha256()
        for file in sorted([self.transformer / CONFIG_FILE, *self.weight_files]):
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            for chunk in self._chunks(file):
                digest.update(chunk)
        return digest.hexdigest()

    def digest(self, file: Path) -> str:
        """SHA-256 of one file of the directory."""
        from hashlib import sha256

        digest = sha256()
        for chunk in self._chunks(file):
            digest.update(chunk)
        return digest.hexdigest()

    def _chunks(self, file: Path) -> Iterator[bytes]:
        if file == self.transformer / CONFIG_FILE:  # it is there already
            yield self._config_bytes
            return
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                yield chunk


def absolute(path: Path) -> Path:
    """The absolute path. It stays right when the process changes its directory. Links stay as the user named them,
    unless `..` follows one: then the link is resolved first.
    """
    last = max((i for i, part in enumerate(path.parts) if part == ".."), default=-1)
    return Path(os.path.realpath(Path(*path.parts[: last + 1])), *path.parts[last + 1 :])


def config_file(path: Path) -> Path:
    """Where the config.json of a model directory is, or would be. Raises ModelError as `ModelDirectory` does."""
    return ModelDirectory(path).transformer / CONFIG_FILE


def weight_files(path: Path) -> list[Path]:
    """The weight files of a model directory that loading reads: safetensors before .bin, one file before an index of
    shards.

    Raises:
        ModelError: there are none; and as `ModelDirectory`.
        CheckpointError: an index that is not one, or that names a file outside the directory or one that is missing.
    """
    return [path] if path.is_file() else ModelDirectory(path).weight_files  # a model in one file, or in a directory


def _weight_files(path: Path) -> list[Path]:
    found = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
    if found is None:
        raise ModelError(f"{path}: there are no weights; one of these files is needed: {', '.join(WEIGHT_FILES)}")
    if found.suffix != ".json":
        return [found]
    try:
        index = parse_json(read_bytes(found))
        shards = sorted(set(index["weight_map"].values()))
    except OSError as error:
        raise CheckpointError(f"{found}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(
            f'{found}: this is not an index of shards, which looks like {{"weight_map": {{tensor: file}}}}'
        ) from None
    if not shards:
        raise CheckpointError(f"{found}: the index names no shard; download the model again")
    for shard in shards:
        if (
            not isinstance(shard, str)
            or Path(shard).name != shard
            or Path(shard).suffix not in (".safetensors", ".bin")
        ):
            raise CheckpointError(f"{found}: {shard!r} is not the name of a weight file in this directory")
        if not os.path.isfile(path / shard):
            raise CheckpointError(f"{found}: shard {shard[:200]} of {len(shards)} is missing; download the model again")
    return [path / shard for shard in shards]


def source_files(path: Path) -> list[Path]:
    """Every file of a model directory, sorted, without hidden files and folders (.git, .cache)."""
    files = (file for file in path.rglob("*") if file.is_file())
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts))


def source_bytes(path: Path) -> int:
    """Size of the weight files that loading reads, in bytes."""
    return sum(file.stat().st_size for file in weight_files(path))


def license_of(path: Path) -> str | None:
    """The model's license: `license:` in the README's front matter, else the name in a LICENSE file, else None."""
    for line in front_matter(read_text(path / "README.md")).splitlines():
        key, _, value = line.partition(":")
        if key == "license" and value.strip():
            return value.strip().strip("\"'")
    for file in sorted(path.glob("LICENSE*")):
        head = read_text(file)[:400]
        return next((spdx for name, spdx in _LICENSES.items() if name.lower() in head.lower()), file.name)
    return None


def front_matter(card: str) -> str:
    """The YAML between the first two lines of dashes of a model card; "" if it does not begin with one."""
    first, *lines = card.removeprefix("\ufeff")[:MAX_FRONT_MATTER].split("\n")
    end = next((number for number, line in enumerate(lines) if line.rstrip() == "---"), None)
    return "" if first.rstrip() != "---" or end is None else "\n".join(lines[:end])
