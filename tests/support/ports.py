"""Ports that nobody else takes, even once a server of ours has left them.

Tests stop a server to see what its clients do then. The kernel would hand its port to whoever next
asks for any; where several processes run tests, that is the server of another test, which would
answer instead. So each worker of pytest-xdist has ports of its own, and takes them in turn.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import socket
from typing import Any

_FIRST, _END = 10_240, 32_768
"""Below those that Linux picks from unless it is told otherwise (ip(7), ip_local_port_range)."""


def share(worker: int, workers: int) -> range:
    """Return the ports of one of so many workers; no two have one in common."""
    return range(_FIRST + worker % workers, _END, workers)


def keep_apart() -> None:
    """In a worker: from now on, whoever binds a socket to any free port gets one of its share."""
    if worker := os.environ.get("PYTEST_XDIST_WORKER", ""):
        workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        _take_from(share(int(worker.removeprefix("gw")), workers))


def _take_from(ports: range) -> None:
    """Begin anywhere: another run on this machine may have the same ports."""
    turns = itertools.cycle(ports)
    for _ in range(random.randrange(len(ports))):
        next(turns)
    bind = socket.socket.bind

    def bind_to_ours(self: socket.socket, address: Any) -> None:
        if self.family not in (socket.AF_INET, socket.AF_INET6) or address[1] != 0:
            bind(self, address)
            return
        for port in itertools.islice(turns, len(ports)):
            try:
                bind(self, (address[0], port, *address[2:]))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return
        raise OSError(errno.EADDRINUSE, f"all {len(ports)} ports of this worker are in use")

    socket.socket.bind = bind_to_ours  # type: ignore[method-assign]
