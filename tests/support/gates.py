"""A gate in front of a server: TCP, passed on until so many bytes have come from the server."""

from __future__ import annotations

import socket
import threading

from support.listeners import Listener, pump


class Gate(Listener):
    """Passes connections to `host` on, and of the answers `limit` bytes, until that is raised."""

    def __init__(self, host: str) -> None:
        self._address = host.rpartition(":")
        self._changed = threading.Condition()
        self._limit = 1 << 60
        self.passed = 0

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.open()

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def open(self, more: int = 1 << 60) -> None:
        """Let `more` bytes pass from now on; all by default."""
        with self._changed:
            self._limit = self.passed + more
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether the bytes that may pass have passed."""
        return self.passed >= self._limit

    def _serve(self, connection: socket.socket) -> None:
        try:
            far = socket.create_connection((self._address[0], int(self._address[2])))
        except OSError:
            connection.close()
            return
        threading.Thread(target=pump, args=(connection, far), daemon=True).start()
        pump(far, connection, self._count)

    def _count(self, count: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.passed < self._limit)
            self.passed += count
