"""Load the native module, and before it the OpenMP runtime whose symbols it needs (`openmp`)."""

import functools
from types import ModuleType

from bitwright.errors import KernelError
from bitwright.kernels import openmp
from bitwright.kernels.processors import usable_processors


@functools.cache
def load() -> ModuleType:
    """The native module.

    Raises:
        KernelError: it is not built, or cannot be loaded; the message holds the loader's reason.
    """
    if error := load_error():
        raise KernelError(f"the native kernels are not available: {error}. Build them with: pip install -e . --no-deps")
    from bitwright.kernels import _native

    _native.set_processors(usable_processors())
    return _native


@functools.cache
def load_error() -> str | None:
    """Why the native module cannot be loaded, or None if it can."""
    try:
        openmp.load()
        from bitwright.kernels import _native  # noqa: F401
    except (ImportError, OSError) as error:
        return str(error)
    return None
