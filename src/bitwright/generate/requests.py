"""`Requests`: what all threads that ask one model share, and what a forked child gets of it."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakSet

from bitwright.errors import EngineError
from bitwright.generate.scheduler import Scheduler


class Requests:
    """The scheduler of a model, for one thread at a time.

    A child that is forked while another thread computes a step begins anew, with a cache and a scheduler of its own: of
    that thread nothing is left in it but a step that never ends. Answers that were under way are not.
    """

    def __init__(self, make: Callable[[], Scheduler]) -> None:
        """make: a scheduler with an empty cache."""
        self._make, self._lock, self.scheduler = make, threading.Lock(), make()
        _ALL.add(self)

    @contextmanager
    def turn(self, scheduler: Scheduler | None = None) -> Iterator[Scheduler]:
        """The scheduler, while no other thread has it. scheduler: which it must be.

        Raises:
            EngineError: it is another one, because the process was forked meanwhile.
        """
        with self._lock:
            if scheduler is not None and scheduler is not self.scheduler:
                raise EngineError("the process was forked while an answer was computed; ask for it again in the child")
            yield self.scheduler

    def begin_anew(self) -> None:
        """In a child: if a step was under way, forget it."""
        if self._lock.locked():
            self._lock, self.scheduler = threading.Lock(), self._make()


_ALL: WeakSet[Requests] = WeakSet()


def _in_child() -> None:
    for requests in list(_ALL):
        requests.begin_anew()


os.register_at_fork(after_in_child=_in_child)
