"""The hidden directory beside a result in the making."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitwright.checkpoints.directory import check_space
from bitwright.errors import InputError
from bitwright.pipeline.request import Progress

JOURNAL, STAGED, LOCK = "journal.jsonl", "checkpoint", "lock"


@contextmanager
def work_directory(out: Path, needed: int, progress: Progress) -> Iterator[Path]:
    """Where measurements and the staged checkpoint lie until the result is complete.

    It goes when the work is done. Of a run that ends early the measurements stay, if there are any.
    """
    work = out.parent / f".{out.name}.bitwright"
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{work}: cannot be created ({error.strerror}); choose another --out") from None
    lock = (work / LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise InputError(f"{out}: another run is writing there now; wait for it, or choose another --out") from None
    try:
        check_space(work, needed)
        yield work
    except BaseException:
        shutil.rmtree(work / STAGED, ignore_errors=True)
        if (work / JOURNAL).exists():
            progress.say(f"what was measured is kept in {work}; the same command goes on from there")
        else:
            shutil.rmtree(work, ignore_errors=True)
        raise
    else:
        shutil.rmtree(work, ignore_errors=True)
    finally:
        lock.close()
