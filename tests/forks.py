"""Children forked in a test: whether what is asked holds there, or whether it hangs; and modules run in forks."""

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def in_child(holds: Callable[[], bool], seconds: float = 20.0) -> int:
    """Fork; the child ends with 0 if `holds()`, and is killed if that takes longer. Returns its process."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # what Python handles would wait for what hangs
            signal.setitimer(signal.ITIMER_REAL, seconds)
            code = 0 if holds() else 1
        finally:
            os._exit(code)
    return child


def ended_well(child: int) -> bool:
    """Wait for a child: whether what was asked held there."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _run_module(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Be `python -m` of a command in a child that was just forked; never returns. Its streams are 0, 1 and 2; of what
    the parent has open nothing stays open, but the numbers stay taken: objects that own them may still close them.
    """
    code = 1
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) != nothing:
                os.dup2(nothing, int(name))
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        os.environ.clear()
        os.environ.update(environment, TOKENIZERS_PARALLELISM="false")  # threads that it had did not come along
        sys.argv = list(command)
        warnings.resetwarnings()
        warnings.simplefilter("ignore")
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def popen(command: Sequence[object], **options: Any) -> "subprocess.Popen[Any]":
    """`subprocess.Popen` of `[sys.executable, …, "-m", module, …]`, as a fork of this process: a new interpreter takes
    seconds to import what is here already."""
    words = [*map(str, command)]
    assert words[0] == sys.executable
    module, environment = words[words.index("-m") + 1 :], dict(options.get("env") or os.environ)
    return subprocess.Popen(words, preexec_fn=lambda: _run_module(module, environment), **options)


# What a module of ours that starts interpreters has in place of `subprocess`, so that it forks.
FORKING = SimpleNamespace(**vars(subprocess) | {"Popen": popen})

# By multiprocessing's server whose forks `quantize_in_forks` are. A library that judges is a fork of such a fork.
PRELOADED = ["tests.forks", "bitwright.pipeline", "bitwright.runtime.generic", "sentence_transformers"]


def quantize_in_forks(source: Path, **options: Any) -> None:
    """`quantize` in a process that imported and did nothing else: it forks where a user's starts interpreters."""
    from bitwright.pipeline import quantize
    from bitwright.runtime import library, verify

    library.subprocess = verify.subprocess = FORKING  # type: ignore[assignment]
    quantize(source, **options)
