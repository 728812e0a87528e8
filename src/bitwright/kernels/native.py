"""Load the native module, and before it the one OpenMP runtime that it shares with torch.

`_native` does not name an OpenMP runtime among the libraries it needs. torch brings its own copy, under a path (and in
some wheels a mangled name) that no other library can name, and a second runtime beside it would keep a second set of
spinning threads. So the symbols are provided here: by torch's copy if torch is installed, else by the system's.
"""

import ctypes
import functools
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from bitwright.errors import KernelError


@functools.cache
def load() -> ModuleType:
    """The native module.

    Raises:
        KernelError: it is not built, or cannot be loaded; the message holds the loader's reason.
    """
    if error := load_error():
        raise KernelError(f"the native kernels are not available: {error}. Build them with: pip install -e . --no-deps")
    from bitwright.kernels import _native

    return _native


@functools.cache
def load_error() -> str | None:
    """Why the native module cannot be loaded, or None if it can."""
    try:
        ctypes.CDLL(next(_torch_openmp(), "libgomp.so.1"), mode=ctypes.RTLD_GLOBAL)
        from bitwright.kernels import _native  # noqa: F401
    except (ImportError, OSError) as error:
        return str(error)
    return None


def _torch_openmp() -> Iterator[str]:
    """Paths of the OpenMP runtime that torch was shipped with; torch is found, not imported."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return
    package = Path(spec.origin).parent
    for folder in (package / "lib", package.parent / "torch.libs"):
        yield from sorted(str(path) for path in folder.glob("libgomp*.so*"))
