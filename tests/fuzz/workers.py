"""Inputs, each made and tried in a forked worker that is watched: what it took, and how it ended."""

import json
import os
import resource
import select
import shutil
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from tests.fuzz.attempts import attempt
from tests.fuzz.mutations import mutate

BATCH = 40  # inputs of one worker
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one input may take. seconds: of a processor's time; on the clock five times as much, since others use the
    machine too. bytes: resident, with the libraries."""

    seconds: float = 5.0
    bytes: int = 1_500_000_000


@dataclass(slots=True)
class Tried:
    """One input. seed: the directory that it was made of. changed: file -> whether it still parses.

    ended: "result", the name of our error, or what is a failure. failure: where it arose, "" if it is none; all of one
    cause have one. detail: the end of its traceback.
    """

    index: int
    how: str
    seed: str
    changed: dict[str, bool] = field(default_factory=dict)
    ended: str = ""
    failure: str = ""
    detail: str = ""
    seconds: float = 0.0
    peak: int = 0


def random_of(index: int, seed: int) -> Random:
    """The numbers that an input is made of."""
    return Random(f"{seed}/{index}")


def try_all(
    indices: Sequence[int], how: str, seeds: Sequence[Path], work: Path, *, seed: int = 0, limits: Limits | None = None
) -> Iterator[Tried]:
    """Make and try inputs, by their indices; each is the same whenever it is made with the same seed of random numbers.

    seeds: good directories. work: an empty folder, in which an input lies while it is tried.
    """
    left = list(indices)
    while left:
        for tried in _watched(left[:BATCH], how, seeds, work, seed, limits or Limits()):
            left.pop(0)
            yield tried


def make(
    index: int, seeds: Sequence[Path], folder: Path, seed: int, copy: Callable[[str, str], object] = os.link
) -> tuple[Path, dict[str, bool], Random]:
    """Write input `index` into a folder that does not exist. Returns what it was made of, what was changed, and the
    random numbers that go on."""
    rng = random_of(index, seed)
    source = rng.choice(seeds)
    shutil.copytree(source, folder, copy_function=copy)
    return source, dict(mutate(folder, list(seeds), rng)), rng


def _watched(
    indices: Sequence[int], how: str, seeds: Sequence[Path], work: Path, seed: int, limits: Limits
) -> Iterator[Tried]:
    """The inputs of one worker, to the last or to the first that ends it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            _work(indices, how, seeds, work, seed, writing)
        finally:
            os._exit(0)
    os.close(writing)
    begun, spent, buffer, current = time.monotonic(), 0.0, b"", None
    fate, peak = "", 0
    try:
        while True:
            if select.select([reading], [], [], 0.05)[0]:
                chunk = os.read(reading, 1 << 16)
                if not chunk:
                    break
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    tried = Tried(**json.loads(line))
                    current = None if tried.ended else tried
                    begun, spent, peak = time.monotonic(), _processor_seconds(child), 0
                    if tried.ended:
                        if tried.peak > limits.bytes:
                            tried.failure = f"memory: {tried.peak} bytes"
                        elif tried.seconds > limits.seconds:
                            tried.failure = f"time: {tried.seconds:.1f} s"
                        yield tried
                continue
            peak = max(peak, _resident(child))
            if peak > limits.bytes:
                fate = f"memory: over {limits.bytes} bytes"
            elif _processor_seconds(child) - spent > limits.seconds or time.monotonic() - begun > 5 * limits.seconds:
                fate = f"time: over {limits.seconds:g} s"
            if fate:
                os.kill(child, signal.SIGUSR1)  # says where it is
                time.sleep(0.3)
                break
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if current is not None:
        if not fate:
            fate = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "it ended without a word"
        current.ended, current.failure = fate.partition(":")[0], fate
        current.detail = (work / "stacks.txt").read_text(errors="replace")[-3000:]
        current.seconds, current.peak = time.monotonic() - begun, peak
        yield current


def _work(indices: Sequence[int], how: str, seeds: Sequence[Path], work: Path, seed: int, writing: int) -> None:
    """In a worker: say which input is tried, try it, say how it ended."""
    import faulthandler

    warnings.simplefilter("ignore")
    stacks = (work / "stacks.txt").open("w+")
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    faulthandler.enable(file=stacks)
    quiet = os.open(os.devnull, os.O_WRONLY)
    said = os.open(work / "said.txt", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.dup2(quiet, 1)
    os.dup2(said, 2)
    space = 24 << 30
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for index in indices:
        for folder in (work / "input", work / "input-out"):
            shutil.rmtree(folder, ignore_errors=True)
        tried = Tried(index, how, "")
        try:
            source, tried.changed, rng = make(index, seeds, work / "input", seed)
        except Exception:  # a fault of the fuzzer's own
            tried.ended = tried.failure = "cannot be made"
            tried.detail = traceback.format_exc()[-3000:].encode("utf-8", "backslashreplace").decode()
            os.write(writing, json.dumps(asdict(tried)).encode() + b"\n")
            continue
        tried.seed = source.name
        os.write(writing, json.dumps(asdict(tried)).encode() + b"\n")
        os.ftruncate(said, 0)
        stacks.truncate(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        begun = time.process_time()
        try:
            tried.ended = attempt(how, work / "input", rng)
        except BaseException as error:
            tried.ended = type(error).__name__
            tried.failure = _where(error)
            tried.detail = traceback.format_exc()[-3000:].encode("utf-8", "backslashreplace").decode()
        if not tried.failure and b"\x1b" in (spoken := os.pread(said, 1 << 16, 0)):
            tried.failure, tried.detail = "an escape code on standard error", repr(spoken[-2000:])
        tried.seconds = time.process_time() - begun
        status = Path("/proc/self/status").read_text()
        tried.peak = int(status.partition("VmHWM:")[2].split()[0]) << 10
        os.write(writing, json.dumps(asdict(tried)).encode() + b"\n")


def _where(error: BaseException) -> str:
    """What is raised, the last line of ours on the way, and the last one at all."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/bitwright/" in frame.filename or "/tests/fuzz/" in frame.filename]
    lines = [f"{Path(frame.filename).parent.name}/{Path(frame.filename).name}:{frame.lineno}" for frame in
             (*ours[-1:], *frames[-1:])]  # fmt: skip
    return f"{type(error).__name__} at {' < '.join(dict.fromkeys(lines))}"


def _processor_seconds(child: int) -> float:
    try:
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICK


def _resident(child: int) -> int:
    try:
        return int(Path(f"/proc/{child}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
