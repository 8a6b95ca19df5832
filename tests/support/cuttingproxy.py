"""A TCP proxy that cuts connections in the middle of what a client sends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from support.listeners import Listener, pump


@dataclass
class CuttingProxy(Listener):
    """Passes connections on to `upstream`, `host:port`.

    Each number in `cuts` ends one of them, the first that sends so many bytes.
    """

    upstream: str
    cuts: list[int] = field(default_factory=list)
    sent: int = 0

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def _serve(self, connection: socket.socket) -> None:
        host, _, port = self.upstream.partition(":")
        with connection, socket.create_connection((host, int(port))) as onward:
            threading.Thread(target=pump, args=(onward, connection), daemon=True).start()
            pump(connection, onward, self._counter())

    def _counter(self) -> Callable[[int], None]:
        """Return what counts the bytes of one connection, and raises where it is cut."""
        passed = 0

        def count(more: int) -> None:
            nonlocal passed
            passed += more
            self.sent += more
            if self.cuts and passed > self.cuts[0]:
                self.cuts.pop(0)
                raise ConnectionResetError

        return count
