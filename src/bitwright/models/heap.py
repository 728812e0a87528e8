"""Gives freed memory back to the system."""

import ctypes


def trim_heap() -> None:
    """Give the system back what was freed. glibc keeps it, in pieces that the next large tensors do not fit: a hundred
    MiB after a few blocks. Elsewhere nothing happens."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
