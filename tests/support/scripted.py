"""A server on loopback that says exactly what a test tells it to, byte for byte."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, Self

from support.listeners import Listener


@dataclass(frozen=True)
class Seen:
    """A request as it arrived; header names in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


class Close(Exception):
    """End the connection."""


class Reset(Exception):
    """End the connection with a TCP reset."""


Step = bytes | float
Script = Callable[[Seen], Iterable[Step]]
"""What to answer: bytes are sent, numbers are seconds to wait."""


def reply(status: int = 200, body: bytes = b"", **headers: str | None) -> bytes:
    """Return a whole answer; `_` in a header's name stands for `-`, and `None` leaves it out."""
    lines = [f"HTTP/1.1 {status} Reason"]
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    named.setdefault("Content-Length", str(len(body)))
    lines += [f"{name}: {value}" for name, value in named.items() if value is not None]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


@dataclass
class ScriptedServer(Listener):
    """Answers each request with what `script` makes of it, in a thread per connection."""

    script: Script
    tls: ssl.SSLContext | None = None
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0

    def __enter__(self) -> Self:
        self._stopping = threading.Event()
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        super().__exit__()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}"

    def asked(self, path: str) -> list[Seen]:
        """Return the requests for a path."""
        return [request for request in self.seen if request.path == path]

    def _accepted(self, connection: socket.socket) -> None:
        self.connections += 1
        # Otherwise each step after the first waits 40 ms for the other side's word.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, Close):
            try:
                if self.tls is not None:
                    connection = self.tls.wrap_socket(connection, server_side=True)
                with connection.makefile("rb") as incoming:
                    while (request := _read(incoming)) is not None:
                        self.seen.append(request)
                        self._play(self.script(request), connection)
            except Reset:
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            finally:
                connection.close()

    def _play(self, steps: Iterable[Step], connection: socket.socket) -> None:
        for step in steps:
            if isinstance(step, bytes):
                connection.sendall(step)
            elif self._stopping.wait(step):
                raise Close


def _read(incoming: IO[bytes]) -> Seen | None:
    """Read one request, of no body or one with a Content-Length; None for anything else."""
    words = incoming.readline().decode("latin-1").split(" ")
    if len(words) != 3:
        return None
    method, target, _ = words
    headers = {}
    while line := incoming.readline().strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    body = incoming.read(int(headers.get("content-length", "0")))
    return Seen(method, target, headers, body)


def in_turn(*answers: Iterable[Step]) -> Script:
    """Return a script that gives one answer after the other, the last of them for ever."""
    remaining: Iterator[Iterable[Step]] = iter(answers[:-1])

    def script(_: Seen) -> Iterable[Step]:
        return next(remaining, answers[-1])

    return script


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Fail unless what is inside ends in time."""
    started = time.monotonic()
    yield
    took = time.monotonic() - started
    assert took < seconds, f"took {took:.2f} s, at most {seconds} s are allowed"


@contextlib.contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Give each connection to a port to `answer`, one after the other, and then close it.

    At the end the listener is shut down, and not only closed: a thread that waits in accept(2)
    would go on with whatever its descriptor's number stands for by then.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        answer(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    """Wait for a condition to hold; fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this took too long"
        time.sleep(0.01)


def settled(value: Callable[[], int], seconds: float = 0.5) -> int:
    """Return a number once it has not changed for a while."""
    last, since = value(), time.monotonic()
    while time.monotonic() - since < seconds:
        time.sleep(0.05)
        if (now := value()) != last:
            last, since = now, time.monotonic()
    return last
