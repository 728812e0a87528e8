"""Memory for the constants of a program."""

import numpy as np

ALIGNMENT = 64  # bytes: what the kernels read at once
_PAGE = 2 << 20  # a huge page: one entry of the processor's table of pages where 4 KiB ones take 512
_CHUNK = 16 * _PAGE  # only what is written to is really there


class Memory:
    """Copies arrays beside each other into chunks of huge pages, each to a multiple of 64 bytes.

    A model's weights are mapped faster so, and read faster. (numpy asks for huge pages for any array of 4 MiB or more.)
    """

    def __init__(self) -> None:
        self._room = np.empty(0, np.uint8)

    def copy(self, values: np.ndarray) -> np.ndarray:
        """A contiguous copy that begins at a multiple of 64 bytes."""
        return copied(values, self.room(values.nbytes))

    def room(self, size: int) -> np.ndarray:
        """So many bytes, with any content, that begin at a multiple of 64 bytes."""
        needed = size + -size % ALIGNMENT
        if needed > len(self._room):
            self._room = begun_at(_PAGE, max(_CHUNK, needed))
        memory, self._room = self._room[:size], self._room[needed:]
        return memory


def aligned(values: np.ndarray) -> np.ndarray:
    """A contiguous copy that begins at a multiple of 64 bytes, in memory of its own."""
    return copied(values, begun_at(ALIGNMENT, values.nbytes))


def copied(values: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """A contiguous copy in these bytes."""
    out = memory.view(values.dtype).reshape(values.shape)
    out[...] = values
    return out


def begun_at(multiple: int, size: int) -> np.ndarray:
    """So many bytes, with any content, that begin at a multiple of a number."""
    memory = np.empty(size + multiple, np.uint8)
    return memory[-memory.ctypes.data % multiple :][:size]
