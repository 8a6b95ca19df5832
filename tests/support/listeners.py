"""A listener on loopback, with a thread for each connection."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Self


class Listener:
    """Listens while it is entered; what is made of a connection is said in `_serve`."""

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._accepted(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _accepted(self, connection: socket.socket) -> None:
        """Note a connection, before any other is accepted."""

    def _serve(self, connection: socket.socket) -> None:
        raise NotImplementedError


def pump(
    source: socket.socket, target: socket.socket, count: Callable[[int], None] = lambda _: None
) -> None:
    """Pass on what comes, each piece counted before, until either side ends; then end both."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            count(len(data))
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
