"""Time limits that hold whatever a server does.

A socket's timeout limits each wait for a byte, not an exchange: a server that sends a header byte a
second never exceeds it. So each operation has a `Watch`, and one daemon thread, the `Watchdog`,
shuts down the socket of a connection whose watch has run out. The thread blocked on that socket
then wakes with an error and finds the watch expired.

Locks: `Watchdog._lock` guards the set of watches, what each is attached to, and its deadline. It is
innermost, and nothing is called under it but shutdown(2), which cannot block.
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from typing import Protocol, Self

from epochfs.errors import Unavailable


class WatchEnded(Exception):
    """The watch has expired or was aborted, as its fields say. Stays within the package."""


class Connection(Protocol):
    """What a watch needs of a connection."""

    watch: Watch | None

    live_socket: socket.socket | None
    """The socket it last used. Not `sock`, which is None already while the body of an answer with
    `Connection: close` is being read."""


class Watch:
    """The time limit of one operation, across all the connections it uses one after another.

    Used by one thread, except for `abort`. A context manager: leaving it ends the watch, after
    which it shuts down no connection.
    """

    def __init__(self, watchdog: Watchdog, timeout: float) -> None:
        self._watchdog = watchdog
        self.timeout = timeout
        self.deadline = time.monotonic() + timeout
        self.expired = False
        self.aborted = False
        self._connection: Connection | None = None

    def remaining(self) -> float:
        """Seconds left; never 0, which would make a socket non-blocking."""
        return max(self.deadline - time.monotonic(), 0.001)

    def check(self) -> None:
        """Raise WatchEnded if time is up or the operation was aborted."""
        self.expired = self.expired or self.deadline <= time.monotonic()
        if self.aborted or self.expired:
            raise WatchEnded

    def attach(self, connection: Connection) -> None:
        """Watch this connection from now on instead of any other; raises as `check` does."""
        with self._watchdog._lock:
            self._connection = connection
            connection.watch = self
        if self.aborted or self.deadline <= time.monotonic():
            self.check()

    def renew(self) -> None:
        """Restart the time limit: there was progress, or a new wait begins."""
        watchdog = self._watchdog
        with watchdog._lock:
            self.deadline = time.monotonic() + self.timeout
            if self.deadline < watchdog._wakes_at:
                watchdog._wake_by(self.deadline)

    def suspend(self) -> None:
        """Stop the clock until `renew`: nobody is waiting for the server."""
        with self._watchdog._lock:
            self.deadline = math.inf

    def abort(self) -> None:
        """End the operation now, from any thread; one blocked in it wakes with an error."""
        with self._watchdog._lock:
            self.aborted = True
            self._shut_down()

    def release(self) -> None:
        with self._watchdog._lock:
            self._connection = None
            self._watchdog._watches.discard(self)

    def sleep(self, seconds: float) -> None:
        """Wait before another attempt; raises as `check` does if the watch ends meanwhile."""
        self._watchdog._closed.wait(seconds)
        self.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _shut_down(self) -> None:
        """Wake whoever is blocked on the connection. The caller holds the lock."""
        connection = self._connection
        # A connection returns to the pool with the last byte of a body, so another operation may
        # have it already; then its `watch` is that one's.
        if connection is None or connection.watch is not self or connection.live_socket is None:
            return
        with contextlib.suppress(OSError):
            # Not `sock.shutdown()`: that of a TLS socket also drops the TLS layer, and the reader
            # would then take buffered ciphertext for content.
            socket.socket.shutdown(connection.live_socket, socket.SHUT_RDWR)


class Watchdog:
    """Owns the thread that ends operations whose time is up; started on demand."""

    def __init__(self, timeout: float) -> None:
        """`timeout` is the time limit of an operation that has no other, in seconds."""
        self._timeout = timeout
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._closed = threading.Event()
        self._watches: set[Watch] = set()
        self._wakes_at = math.inf
        self._thread: threading.Thread | None = None

    def watch(self, seconds: float | None = None) -> Watch:
        """Start the time limit of one operation, of any number of requests; raises Unavailable once
        closed.
        """
        watch = Watch(self, self._timeout if seconds is None else seconds)
        with self._lock:
            if self._closed.is_set():
                raise Unavailable("the client is closed")
            self._watches.add(watch)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="epochfs-watchdog", daemon=True)
                thread.start()
                self._thread = thread
            if watch.deadline < self._wakes_at:
                self._wake_by(watch.deadline)
        return watch

    def close(self) -> None:
        """Abort every operation under way, and stop the thread."""
        with self._lock:
            self._closed.set()
            for watch in self._watches:
                watch.aborted = True
                watch._shut_down()
            self._changed.notify()

    def _wake_by(self, deadline: float) -> None:
        """Make the thread look again at `deadline`, which is earlier. The caller holds the lock.

        Deadlines mostly rise, so the thread is rarely woken for one.
        """
        self._wakes_at = deadline
        self._changed.notify()

    def _run(self) -> None:
        with self._lock:
            while not self._closed.is_set():
                now = time.monotonic()
                pending = [watch for watch in self._watches if not watch.expired]
                for watch in pending:
                    if watch.deadline <= now:
                        watch.expired = True
                        watch._shut_down()
                deadlines = (watch.deadline for watch in pending if not watch.expired)
                self._wakes_at = min(deadlines, default=math.inf)
                wait = min(self._wakes_at - now, threading.TIMEOUT_MAX)
                self._changed.wait(wait)
