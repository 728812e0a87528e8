"""The float model of what a user names, where that is a file of codes."""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitwright.checkpoints.result import check_space
from bitwright.errors import InputError
from bitwright.files.directory import ModelDirectory
from bitwright.files.gguf.directory import GgufDirectory
from bitwright.files.gguf.floats import float_bytes, write_floats
from bitwright.files.opening import is_gguf
from bitwright.pipeline.workspace import work_path
from bitwright.progress import Progress

_FLOATS, _LOCK = "floats", "floats.lock"


@contextmanager
def float_source(
    model: str | Path | ModelDirectory, out: Path | None, progress: Progress
) -> Iterator[str | Path | ModelDirectory]:
    """The model to open: what is given, or of a GGUF file a directory with its weights in float32, for as long as this
    lasts.

    out: of the run, beside which there is room for that; None for the system's place for temporary files.

    Raises:
        CheckpointError: a file that contradicts itself; the disk is full. InputError: another run has the same `out`.
    """
    path = None if isinstance(model, ModelDirectory) else Path(model).expanduser()
    if path is None or not is_gguf(path):
        yield model
        return
    file = GgufDirectory(path)
    with _folder(out) as folder:
        check_space(folder, float_bytes(file))
        progress.say(f"decoding {path} to float32 ({float_bytes(file) / 1e9:.1f} GB, until the end of the run)")
        yield write_floats(file, folder)


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """An empty folder, removed at the end. What a killed run left beside `out` goes first."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="bitwright-gguf-") as temporary:
            yield Path(temporary)
        return
    work = work_path(out)
    folder = work / _FLOATS
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{work}: cannot be created ({error.strerror}); choose another --out") from None
    with (work / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{out}: another run is writing here now; wait, or choose another --out") from None
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            (work / _LOCK).unlink(missing_ok=True)
            if work.is_dir() and not any(work.iterdir()):
                work.rmdir()
