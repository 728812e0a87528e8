"""The one OpenMP runtime that our kernels share with torch: found, loaded, and let go of before a fork.

`_native` does not name an OpenMP runtime among the libraries it needs. torch brings its own copy, under a path (and in
some wheels a mangled name) that no other library can name, and a second runtime beside it would keep a second set of
spinning threads. So the symbols are provided here: by torch's copy if torch is installed, else by the system's.

A fork copies only the thread that forks. GCC's runtime keeps a pool of workers for each thread that ever ran a parallel
region, and in the child would wait for them for ever. So the pool of a thread that forks is dissolved before (OpenMP
5.0, omp_pause_resource_all; it is made again within some 100 microseconds when it is next needed): parent and child
compute on, each with as many threads as before, and thus the same bytes.
"""

import ctypes
import functools
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

_SOFT = 1  # omp_pause_soft: settings stay


@functools.cache
def load() -> None:
    """Load the runtime for whoever needs its symbols, and see to forks from now on.

    Raises:
        OSError: there is none.
    """
    runtime = ctypes.CDLL(next(_torch_openmp(), "libgomp.so.1"), mode=ctypes.RTLD_GLOBAL)
    if pause := getattr(runtime, "omp_pause_resource_all", None):  # the copy that torch brings has it, GCC 8's has not
        os.register_at_fork(before=lambda: pause(_SOFT))


def _torch_openmp() -> Iterator[str]:
    """Paths of the OpenMP runtime that torch was shipped with; torch is found, not imported."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return
    package = Path(spec.origin).parent
    for folder in (package / "lib", package.parent / "torch.libs"):
        yield from sorted(str(path) for path in folder.glob("libgomp*.so*"))
