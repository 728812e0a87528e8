"""The hidden work directory beside an unfinished result."""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitwright.atomic import write_text_atomically
from bitwright.checkpoints.result import check_space
from bitwright.errors import InputError
from bitwright.progress import Progress
from bitwright.training.state import STATE_FILE

JOURNAL, STAGED, LOCK, CONTEXT = "journal.jsonl", "checkpoint", "lock", "context.json"


def work_path(out: Path) -> Path:
    """The work directory of a result."""
    return out.parent / f".{out.name}.bitwright"


@contextmanager
def work_directory(out: Path, needed: int, progress: Progress) -> Iterator[Path]:
    """The directory for measurements and the staged checkpoint until the result is complete.

    It goes when the work is done. Of a run that ends early stay the measurements and the blocks that were done, if
    there are any.
    """
    work = work_path(out)
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{work}: cannot be created ({error.strerror}); choose another --out") from None
    lock = (work / LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise InputError(f"{out}: another run is writing here now; wait for it, or choose another --out") from None
    for leftover in work.glob(".*"):  # what a run was writing when it was killed
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    try:
        check_space(work, needed)
        yield work
    except BaseException as error:
        shutil.rmtree(work / STAGED, ignore_errors=True)
        if not _kept(work):
            shutil.rmtree(work, ignore_errors=True)
        elif not isinstance(error, InputError):  # such a command is not to be repeated as it is
            progress.say(f"the finished work is kept in {work}; run the same command again to continue")
        raise
    else:
        shutil.rmtree(work, ignore_errors=True)
    finally:
        lock.close()


def claim(work: Path, context: dict[str, str]) -> None:
    """Note what a work directory's content depends on, and refuse content of an earlier run that differs.

    What lies there without such a note is what the removal of a finished run's directory left: it goes.

    Args:
        context: digests, by what they are of ("model", "recipe" …).

    Raises:
        InputError: it depends on something else, and the message says on what; or the note cannot be read.
    """
    file = work / CONTEXT
    if not file.is_file():
        for leftover in _kept(work):
            leftover.unlink()
        write_text_atomically(file, json.dumps(context))
        return
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{file}: cannot be read ({error}); delete {work} to start over") from None
    if different := [name for name, digest in context.items() if earlier.get(name) != digest]:
        what = " and its ".join(different)
        raise InputError(
            f"{work}: this directory holds an interrupted run that differs from this one in its {what}. Run its "
            "command again to finish it, choose another --out, or delete the directory to start over"
        )


def _kept(work: Path) -> list[Path]:
    """The files that a run keeps for the next run."""
    patterns = (JOURNAL, "shard-*", "inputs-*", "polish-*", STATE_FILE)
    return [file for pattern in patterns for file in work.glob(pattern)]
