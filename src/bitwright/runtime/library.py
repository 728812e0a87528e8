"""`Library`: runs a model in the user's own library, in its own process. It is the judge of what Bitwright reads.

See `library_server.py`. The process that imports the libraries is kept for the next model; it ends by itself. If it
takes far longer for an answer than the work can need (`time_limit.py`), it is killed with all that it started.
"""

import atexit
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.errors import LibraryError
from bitwright.files.directory import ModelDirectory
from bitwright.runtime.library_server import receive, send
from bitwright.runtime.time_limit import kill_group, killed_after, most_tokens, seconds_allowed, weight_bytes

IDLE_SECONDS = 60  # after which a server without work ends

_server: list[subprocess.Popen[bytes]] = []
_in_use = threading.Lock()  # one model at a time


def _leave_to_parent() -> None:
    """Forget the parent's server in a fork: what a fork writes to the pipes would look like the parent's."""
    global _in_use
    _server.clear()
    _in_use = threading.Lock()


os.register_at_fork(after_in_child=_leave_to_parent)


@atexit.register
def stop_library() -> None:
    """End the process that imports the libraries, if there is one."""
    while _server:
        server = _server.pop()
        kill_group(server)
        server.communicate()


def start_library() -> None:
    """Start to import the libraries while other work goes on."""
    if _server and _server[0].poll() is None:
        return
    stop_library()
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "critical", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
             "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}  # fmt: skip
    _server[:] = [
        subprocess.Popen(
            [sys.executable, "-m", "bitwright.runtime.library_server", str(IDLE_SECONDS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | quiet,
            start_new_session=True,
        )
    ]  # fmt: skip


class Library:
    """A float model as sentence-transformers or transformers runs it, in float32; a context manager.

    name: of the library, with its version.
    """

    def __init__(
        self, directory: Path, task: str, *, threads: int, limit: int, trust_remote_code: bool = False,
        blocks: str | None = None, runtime: str | None = None, cross_encoder: bool = False,
    ) -> None:  # fmt: skip
        """limit: tokens at which texts are cut where the tokenizer does not say it. blocks: path of the list of blocks
        of a language model that has one block in memory at a time, for `block`; by default the model is loaded whole.
        runtime: "transformers" or "sentence-transformers" to give that one ids (`forward`, `states`); by default it is
        the one that users of the model have, and is given texts. cross_encoder: of a model that a CrossEncoder alone
        reads as it is meant, also where no modules.json says so. sentence-transformers is given the directory,
        transformers the folder in it that modules.json gives the Transformer, as users have to.

        Raises:
            ModelError: as `ModelDirectory`, and a modules.json that is none.
            LibraryError: the library is not installed, or cannot load the model, or does not answer in time; so do the
                methods.
        """
        self._directory, self._weight_bytes = directory, weight_bytes(directory)
        inner = ModelDirectory(directory).transformer.path if directory.is_dir() else directory
        request = {"directory": os.fspath(directory.resolve()), "transformer": os.fspath(inner.resolve()), "task": task,
                   "threads": threads, "limit": limit, "blocks": blocks, "trust_remote_code": trust_remote_code,
                   "runtime": runtime, "cross_encoder": cross_encoder}  # fmt: skip
        _in_use.acquire()
        self._held, self._serves = True, False
        try:
            try:
                answer, _ = self._asked(request)
            except BrokenPipeError:  # the server had ended for want of work
                stop_library()
                answer, _ = self._asked(request)
        except BaseException:
            self.__exit__()
            raise
        self._serves = True
        self.name: str = answer["library"]

    def encode(self, items: Sequence[Any]) -> Any:
        """The library's outputs for texts, pairs of texts or windows of ids: an array, or a list of arrays."""
        rows = self._do("encode", items)
        return np.stack(rows) if rows and len({row.shape for row in rows}) == 1 and rows[0].ndim == 1 else rows

    def read(self, items: Sequence[Any]) -> list[np.ndarray]:
        """The token ids and types that the model gets for texts or pairs, int64 (2, tokens) each."""
        return self._do("read", items)

    def block(self, index: int, ids: Sequence[int], before_TD: np.ndarray | None, rows: int) -> list[np.ndarray]:
        """What a block of a model opened with `blocks` puts out for one window of T tokens, float32 (T, D); for the
        last block also the logits of the last `rows` tokens, (rows, V).

        before_TD: what enters the block, float32; None for the first, which gets the library's own embeddings.
        """
        request = {"do": "block", "items": [index, list(ids), rows]}
        return self._asked(request, () if before_TD is None else (before_TD,), tokens=len(ids))[1]

    def forward(self, ids_BT: np.ndarray) -> list[np.ndarray]:
        """What the runtime makes of ids, for each row: an embedding, token vectors of `transformers`, or logits, of a
        language model those after the last token."""
        return self._do("forward", ids_BT.tolist())

    def states(self, ids_BT: np.ndarray) -> list[np.ndarray]:
        """Token vectors after the embeddings and after each layer, (1 + layers, tokens, H) for each row."""
        return self._do("states", ids_BT.tolist())

    def __enter__(self) -> "Library":
        return self

    def __exit__(self, *error: object) -> None:
        if not self._held:
            return
        self._held = False
        if self._serves:
            with contextlib.suppress(OSError):
                send(_stdin(), {"do": "close"})
        _in_use.release()

    def _do(self, what: str, items: Sequence[Any]) -> list[np.ndarray]:
        plain = [item if isinstance(item, str) else list(item) for item in items]
        return self._asked({"do": what, "items": plain}, tokens=most_tokens(plain))[1] if plain else []

    def _asked(
        self, request: dict[str, Any], given: Sequence[np.ndarray] = (), *, tokens: int = 0
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """The answer to a request that makes the model run so many tokens.

        Raises:
            LibraryError: as the class says. BrokenPipeError: the server had ended before it was asked to load.
        """
        start_library()
        seconds = seconds_allowed(self._weight_bytes, tokens)
        with killed_after(_server[0], seconds) as late:
            try:
                send(_stdin(), request, given)
                answer, arrays = receive(_stdout())
            except (EOFError, OSError, ValueError) as error:  # the server is gone, or what it was writing was cut off
                if isinstance(error, BrokenPipeError) and "do" not in request and not late.is_set():
                    raise  # nothing is lost yet
                self._serves = False
                stop_library()
                why = f"its process ended ({type(error).__name__})"
                if late.is_set():
                    why = (
                        f"its process gave no answer within {seconds:.0f} s and was killed: {self._directory}, "
                        f"{request.get('do', 'load')}, {tokens} tokens. Try again when the machine has less other work"
                    )
                raise LibraryError(why) from None
        if "error" in answer or "died" in answer:  # the child that served this model has ended
            self._serves = False
            raise LibraryError(answer.get("error") or f"its process ended with exit status {answer['died']}")
        return answer, arrays


def _stdin() -> int:
    pipe = _server[0].stdin
    assert pipe is not None
    return pipe.fileno()


def _stdout() -> int:
    pipe = _server[0].stdout
    assert pipe is not None
    return pipe.fileno()
