"""The line in vLLM's log that says how many layers run on which of our kernels."""

import logging
from collections import Counter
from threading import Lock, Timer

_SILENCE_S = 2.0  # without another layer: vLLM does not say when the last one is loaded
_log = logging.getLogger("vllm.bitwright")
_found: Counter[str] = Counter()
_lock = Lock()
_timer: Timer | None = None


def add(kernel: object) -> None:
    """Count a layer that this kernel has packed; the line comes when no more follow."""
    global _timer
    with _lock:
        _found[type(kernel).__name__] += 1
        if _timer is not None:
            _timer.cancel()
        _timer = Timer(_SILENCE_S, _tell)
        _timer.daemon = True
        _timer.start()


def _tell() -> None:
    with _lock:
        words = ", ".join(f"{count} × {name}" for name, count in sorted(_found.items()))
    _log.info("On Bitwright's kernels: %s", words)
