"""Opens a model by its path: a directory, or a single file."""

from pathlib import Path

from bitwright.families.tasks import TaskName
from bitwright.files.directory import ModelDirectory

_MAGIC = b"GGUF"


def open_path(path: Path, task: TaskName | None = None) -> ModelDirectory:
    """The model at a path. task: what the user says that it is for.

    Raises:
        ModelError: neither a directory nor a GGUF file; and as `ModelDirectory`. CheckpointError: as `GgufDirectory`.
    """
    if not is_gguf(path):
        return ModelDirectory(path, task)
    from bitwright.files.gguf.directory import GgufDirectory  # 5 ms, which a model directory need not wait for

    return GgufDirectory(path, task)


def is_gguf(path: Path) -> bool:
    """Whether a path is a file that is called, or begins, as GGUF files are and do."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix == ".gguf" or file.read(len(_MAGIC)) == _MAGIC
