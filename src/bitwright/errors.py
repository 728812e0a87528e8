"""Everything that Bitwright raises on purpose.

    BitwrightError
    ├── InputError          the command, its options, or the user's data are wrong
    │   ├── RecipeError     an unknown key, a rule that matches nothing, a scheme nobody knows
    │   └── DataError       calibration or evaluation data that cannot be used
    ├── ModelError          a model directory that is missing, incomplete or of an unknown architecture
    ├── CheckpointError     a file whose bytes do not say what they should
    ├── NumericsError       NaN or infinity where numbers are needed; shapes or codes that break an invariant
    ├── KernelError         a kernel variant that this machine lacks, or arguments it cannot take
    ├── EngineError         a model, or a part of one, that the engine has no operator for
    ├── LibraryError        the user's own library, which judges, is missing or does not take the model
    ├── WorkerError         a worker process, or a cluster of them, that is gone
    ├── RegistryError       a registry whose log, links or versions are not what was written
    └── TargetError         a plan that a target runtime cannot run

A budget that is not met is no error but a result: see `pipeline.Result`. What a command ends with is in `ExitCode`.
A message says what, where, the numbers, and what to do. The command line prints it in one line; --debug adds the
traceback.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

# Controls but for tab and line feed, and marks that turn the direction of what follows: a terminal obeys them.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


_MOST_SHOWN = 2000  # characters of a message: its beginning says where, its end what to do


class ExitCode(IntEnum):
    """The exit code of a command."""

    DONE = 0
    FAILED = 1
    REFUSED = 2
    NOT_SHOWN = 3
    STOPPED = 130


# As `bitwright quantize --help` shows it.
EXIT_MEANINGS = {
    ExitCode.DONE: "the result was written, and if it was judged, it is inside the budget",
    ExitCode.FAILED: "the work failed, or a runtime gives other outputs than the judged ones; do not use the result",
    ExitCode.REFUSED: "the command, the recipe or the data are wrong, and nothing was done",
    ExitCode.NOT_SHOWN: "the result was written, but not shown to be inside the budget: it is over the budget, "
    "the sample is too small, no pairs were given, or no variant is fast enough",
    ExitCode.STOPPED: "stopped by Ctrl-C or a scheduler; run the same command again to continue",
}


class BitwrightError(Exception):
    """Base of every error raised on purpose. Its text can be shown as it is, whatever a file says: it is not long, and
    holds nothing that a terminal obeys.
    """

    exit_code = ExitCode.FAILED

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > _MOST_SHOWN:
            text = f"{text[: _MOST_SHOWN // 2]} … {text[-_MOST_SHOWN // 2 :]}"
        return printable(text)


class InputError(BitwrightError):
    """The command, an option or the user's data are wrong."""

    exit_code = ExitCode.REFUSED


class RecipeError(InputError):
    """A recipe with an unknown key, an unknown scheme, or a rule that matches nothing."""


class DataError(InputError):
    """Calibration or evaluation data that cannot be used."""


class ModelError(BitwrightError):
    """A model directory that is missing, incomplete or of an unknown architecture."""


class CheckpointError(BitwrightError):
    """A file whose bytes do not say what they should."""


class NumericsError(BitwrightError):
    """NaN or infinity where numbers are needed; shapes or codes that break an invariant."""


class NotFiniteError(NumericsError):
    """Outputs of a model that are NaN or infinite."""


class KernelError(BitwrightError):
    """A kernel variant that this machine lacks, or arguments that it cannot take."""


class LibraryError(BitwrightError):
    """The user's own library (sentence-transformers, transformers) is missing, or does not take a model."""


class WorkerError(BitwrightError):
    """A worker process that dies again and again, or fails in a way that nobody foresaw; a cluster that is gone."""


class RegistryError(BitwrightError):
    """A registry whose log, links or versions are not what was written."""


class EngineError(BitwrightError):
    """A model, or a part of one, that the engine has no operator for; the generic path runs it."""


class TargetError(BitwrightError):
    """A plan that a target runtime cannot run."""

    exit_code = ExitCode.REFUSED


@contextmanager
def named(name: str) -> Iterator[None]:
    """Put `name`, of a linear or a block, in front of a NumericsError that is raised inside."""
    try:
        yield
    except NumericsError as error:
        raise NumericsError(f"{name}: {error}") from None


@contextmanager
def foreign(where: str, kind: type[BitwrightError], *, but: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Turn what a library raises on an untrusted file into an error of ours. A panic of the tokenizers library, for
    one, is not an Exception.

    Raises:
        kind: for everything but our own errors, KeyboardInterrupt, SystemExit and what `but` names.
    """
    passing: tuple[type[BaseException], ...] = (BitwrightError, KeyboardInterrupt, SystemExit, *but)
    try:
        yield
    except passing:
        raise
    except BaseException as error:
        raise kind(f"{where} ({type(error).__name__}: {' '.join(str(error).split())[:300]})") from error


def printable(text: str) -> str:
    """Make text safe for a terminal: control characters become visible escapes."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def brief(value: object) -> str:
    """A short form of a file's value for a message. It never writes out a large value."""
    from reprlib import Repr

    limits = Repr()
    limits.maxstring = limits.maxother = limits.maxlong = 80
    return limits.repr(value)[:160]
