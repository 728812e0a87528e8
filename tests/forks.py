"""Children forked in a test: whether what is asked holds there, or whether it hangs; and modules run in forks."""

import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
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


def _run_module(command: Sequence[str], environment: Mapping[str, str], files: Sequence[int]) -> None:
    """Be `python -m` of a command in a child that was just forked; never returns. Its streams are 0, 1 and 2; of what
    the parent has open only `files` stay open, but the numbers stay taken: objects that own them may still close them.
    """
    code = 1
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) not in (nothing, *files):
                os.dup2(nothing, int(name))
        streams = [open(stream, mode, closefd=False) for stream, mode in enumerate("rww")]  # noqa: SIM115
        sys.stdin, sys.stdout, sys.stderr = streams
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # as every interpreter begins
            signal.signal(ignored, signal.SIG_IGN)
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
    files = options.get("pass_fds", ())
    return subprocess.Popen(words, preexec_fn=lambda: _run_module(module, environment, files), **options)


# What a module of ours that starts interpreters has in place of `subprocess`, so that it forks.
FORKING = SimpleNamespace(**vars(subprocess) | {"Popen": popen})

_PRELOADED = ["tests.forks", "bitwright.cli.quantize", "bitwright.pipeline", "bitwright.pipeline.tune",
              "bitwright.runtime.generic", "sentence_transformers", "sklearn.ensemble"]  # fmt: skip


def in_fork(log: Path, run: Callable[..., object], *arguments: object) -> BaseProcess:
    """Start `run(*arguments)` in a fork of a process that imported and did nothing else, with `log` for both streams.
    What of ours starts interpreters there forks, too: a new one takes seconds to import what is here already.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=_run, args=(log, dict(os.environ), run, *arguments))
    process.start()
    return process


def _run(log: Path, environment: Mapping[str, str], run: Callable[..., object], *arguments: object) -> None:
    from bitwright.runtime import library, verify
    from bitwright.workers import processes

    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.update(environment)
    library.subprocess = verify.subprocess = processes.subprocess = FORKING  # type: ignore[assignment]
    run(*arguments)
