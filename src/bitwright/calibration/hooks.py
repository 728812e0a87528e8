"""Adds hooks before or after the forwards of modules until the end of a `with` block. No other file uses hooks."""

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
    """Call functions before and after the forwards of modules, by name. If a function returns something, it replaces
    the inputs or the output.
    """
    with ExitStack() as stack:
        for name, first in (before or {}).items():
            stack.callback(model.get_submodule(name).register_forward_pre_hook(first).remove)
        for name, last in (after or {}).items():
            stack.callback(model.get_submodule(name).register_forward_hook(last).remove)
        yield
