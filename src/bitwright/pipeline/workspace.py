"""The hidden directory beside a result in the making."""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitwright.checkpoints.directory import check_space
from bitwright.errors import InputError
from bitwright.pipeline.request import Progress
from bitwright.record import write_text_atomically

JOURNAL, STAGED, LOCK, CONTEXT = "journal.jsonl", "checkpoint", "lock", "context.json"


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
        if (work / JOURNAL).exists() or any(work.glob("shard-*")):
            progress.say(f"what was measured is kept in {work}; the same command goes on from there")
        else:
            shutil.rmtree(work, ignore_errors=True)
        raise
    else:
        shutil.rmtree(work, ignore_errors=True)
    finally:
        lock.close()


def claim(work: Path, context: dict[str, str]) -> None:
    """Note in a work directory what its content depends on; an earlier run's content must depend on the same.

    Args:
        context: digests, by what they are of ("model", "recipe" …).

    Raises:
        InputError: it depends on something else; the message says on what.
    """
    file = work / CONTEXT
    if not file.is_file():
        write_text_atomically(file, json.dumps(context))
        return
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{file}: cannot be read ({error}); delete {work} to start over") from None
    if different := [name for name, digest in context.items() if earlier.get(name) != digest]:
        raise InputError(
            f"{work} holds the work of an interrupted run with another {' and another '.join(different)}; repeat that "
            "run's command to finish it, choose another --out, or delete the directory to start over"
        )
