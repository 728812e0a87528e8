"""Hooks of modules: what happens before or after their forwards, until the end of a block. The only file with any."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

Before = Callable[[nn.Module, tuple[Any, ...]], Any]
After = Callable[[nn.Module, tuple[Any, ...], Any], Any]


@contextmanager
def hooked(
    model: nn.Module, *, before: Mapping[str, Before] | None = None, after: Mapping[str, After] | None = None
) -> Iterator[None]:
    """Call functions before and after forwards of modules of `model`, by name; what they return, if it is something,
    takes the place of the inputs, or of the output.
    """
    with ExitStack() as stack:
        for name, first in (before or {}).items():
            stack.callback(model.get_submodule(name).register_forward_pre_hook(first).remove)
        for name, last in (after or {}).items():
            stack.callback(model.get_submodule(name).register_forward_hook(last).remove)
        yield
