"""The program of a worker process: `python -m bitwright.workers.process SOCKET CORES`. `processes.py` starts it.

    first message in     the pickle of `start`
    further messages     a pickled payload each; each is answered by a pickled outcome
    end of input         the process ends at once, also in the middle of a task: nobody waits for its result any more

SOCKET is the number of an inherited file, CORES are numbers of processors. This process stays on them from before the
first library counts how many there are.
"""

import os
import pickle
import queue
import sys
import threading
from multiprocessing.connection import Connection


def main() -> None:
    """Work until the input ends."""
    socket = Connection(int(sys.argv[1]))
    os.sched_setaffinity(0, map(int, sys.argv[2].split(",")))
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(socket, messages), daemon=True).start()

    from bitwright.workers.tasks import Work

    first = messages.get()
    work = Work(lambda: pickle.loads(first)())
    while True:
        socket.send(work(pickle.loads(messages.get())))


def _receive(socket: Connection, messages: "queue.SimpleQueue[bytes]") -> None:
    """Take messages as soon as they come, so that nobody waits to hand them over."""
    try:
        while True:
            messages.put(socket.recv_bytes())
    except (EOFError, OSError):
        os._exit(0)


if __name__ == "__main__":
    main()
