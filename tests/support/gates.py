"""A gate in front of a server: TCP, passed on until so many bytes have come from the server."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self


class Gate:
    """Passes connections to `host` on, and of the answers `limit` bytes, until that is raised."""

    def __init__(self, host: str) -> None:
        self._address = host.rpartition(":")
        self._changed = threading.Condition()
        self._limit = 1 << 60
        self.passed = 0

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.open()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

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

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection((self._address[0], int(self._address[2])))
                for pair, counted in (((near, far), False), ((far, near), True)):
                    threading.Thread(target=self._pump, args=(*pair, counted), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if counted:
                    self._count(len(data))
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _count(self, count: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.passed < self._limit)
            self.passed += count
