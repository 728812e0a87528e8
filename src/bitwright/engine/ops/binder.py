"""What a program is to native code: buffers by number, arrays by address."""

from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.engine.memory import ALIGNMENT, aligned
from bitwright.engine.ops.buffers import Buffer

if TYPE_CHECKING:
    from bitwright.engine.cache_layout import CacheLayout


class Binder:
    """Names for native code what an operator holds. It keeps arrays alive; one that several share is held once.

    native: the native module, whose structs operators become. cache: how the cache lies in memory, for programs with
    state.
    """

    def __init__(self, native: Any, cache: "CacheLayout | None" = None) -> None:
        self.native, self.cache = native, cache
        self._kept: dict[tuple[int, bool], tuple[np.ndarray, np.ndarray]] = {}  # a constant, and what native code reads

    def buffer(self, buffer: Buffer | None) -> int:
        """The number of a buffer, or that of none."""
        return int(self.native.NO_BUFFER) if buffer is None else buffer.number

    def array(self, values: np.ndarray | None, element: int = 0, *, natural: bool = False) -> int:
        """The address of an element of an array that is contiguous and begins at a multiple of 64 bytes; 0 for None.

        The array is copied, but once, only where it does not lie so. natural: the alignment of its elements is enough,
        as for the operators in csrc/rows: so a table of words stays where the file is mapped.
        """
        if values is None:
            return 0
        key = (id(values), natural)
        if key not in self._kept:
            fits = values.flags.aligned if natural else values.ctypes.data % ALIGNMENT == 0
            self._kept[key] = (values, values if fits and values.flags.c_contiguous else aligned(values))
        return int(self._kept[key][1].ctypes.data) + element * values.itemsize

    def held(self, values: np.ndarray) -> list[np.ndarray]:
        """The arrays that native code reads for this one."""
        return [used for constant, used in self._kept.values() if constant is values]
