"""Workers on a Ray cluster: one actor each. Needs `pip install 'bitwright[ray]'`, on every node of the cluster."""

import signal
import socket
import threading
from typing import Any

from bitwright.errors import InputError, WorkerError
from bitwright.workers.tasks import Died, Outcome, Start, Work

RAY_NEEDED = "a Ray cluster needs Ray: pip install 'bitwright[ray]'"
_KNOCK_S = 10.0


class OnRay:
    """Actors of a Ray cluster: `Workers`. Each has its share of the cluster's processors to itself."""

    def __init__(self, start: Start, count: int | None, address: str) -> None:
        """count: by default one for each processor of the cluster.

        Raises:
            InputError: Ray is not installed, or there is no cluster at that address.
        """
        try:
            import ray
        except ModuleNotFoundError:
            raise InputError(f"--ray {address}: {RAY_NEEDED}") from None
        self._ray, self._joined = ray, not ray.is_initialized()
        stopped = signal.getsignal(signal.SIGTERM)
        try:
            if self._joined:
                _knock(address)
                ray.init(address=address, log_to_driver=False, logging_level="error")
                if threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGTERM, stopped)  # Ray puts a handler of its own there
            processors = int(ray.cluster_resources().get("CPU", 0))
        except (OSError, ValueError, RuntimeError, AssertionError, ray.exceptions.RayError) as error:
            why = " ".join(str(error).split())[:300]
            raise InputError(
                f"--ray {address}: there is no Ray cluster ({type(error).__name__}: {why}). Start one with "
                "`ray start --head`, or give its address; `local` starts one for this command alone"
            ) from None
        self.count = max(1, processors) if count is None else count
        threads = max(1, processors // self.count)
        self._actor = ray.remote(num_cpus=threads, max_restarts=0)(_Actor)
        self._start = start
        self._running: list[Any] = [None] * self.count
        self._results: dict[Any, int] = {}

    def give(self, worker: int, payload: Any) -> None:
        """As `Workers.give`."""
        if self._running[worker] is None:
            self._running[worker] = self._actor.remote(self._start)
        self._results[self._running[worker].do.remote(payload)] = worker

    def wait(self) -> list[tuple[int, Outcome]]:
        """As `Workers.wait`.

        Raises:
            WorkerError: the cluster is gone.
        """
        ray, found = self._ray, list[tuple[int, Outcome]]()
        try:
            ready, _ = ray.wait(list(self._results), num_returns=1)
            for result in ready:
                worker = self._results.pop(result)
                try:
                    found.append((worker, ray.get(result)))
                except (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError) as error:
                    self._running[worker] = None
                    found.append((worker, Died(f"the last one: {' '.join(str(error).split())[:300]}")))
        except (ray.exceptions.RayError, OSError) as error:
            why = " ".join(str(error).split())[:300]
            raise WorkerError(
                f"the Ray cluster is gone ({type(error).__name__}: {why}); what was finished is kept, so start the "
                "command again when the cluster is back"
            ) from None
        return found

    def close(self) -> None:
        """As `Workers.close`. A cluster that this process had joined before stays joined."""
        for actor in self._running:
            if actor is not None:
                self._ray.kill(actor)
        if self._joined:
            self._ray.shutdown()


def _knock(address: str) -> None:
    """Raises:
    OSError: nobody listens at an address that names a host and a port. Ray itself would go on trying for minutes.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S):
            pass


class _Actor:
    """A worker in Ray's hands."""

    def __init__(self, start: Start) -> None:
        self._work = Work(start)

    def do(self, payload: Any) -> Outcome:
        """What became of a task."""
        return self._work(payload)
