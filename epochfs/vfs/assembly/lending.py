"""Lent files: opened at the first read that needs one, closed when others were used since.

Locks: `Lending._lock` guards what is open, and how many reads use each; no I/O happens under it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from epochfs.errors import Vanished


class Closable(Protocol):
    """What takes a descriptor while it is open."""

    def close(self) -> None:
        """Give it back; once."""


K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Closable)


@dataclass(slots=True, eq=False)
class _Opened(Generic[V]):
    """What is open, and how many reads of it are under way."""

    value: V
    reads: int = 0


class Lending(Generic[K, V]):
    """Opens what is asked for; of what nobody reads at the moment, only the `max_idle` last used
    stay open.
    """

    def __init__(self, open_one: Callable[[K], V], max_idle: int) -> None:
        self._open_one = open_one
        self._max_idle = max_idle
        self._lock = threading.Lock()
        self._opened: dict[K, _Opened[V]] = {}
        self._closed = False

    @contextmanager
    def lent(self, key: K) -> Iterator[V]:
        """Lend one out for a read. Raises Vanished once all is closed."""
        opened = self._take(key)
        try:
            yield opened.value
        finally:
            with self._lock:
                opened.reads -= 1
            self._close_idle()

    def close(self) -> None:
        """Close what is open; once."""
        with self._lock:
            self._closed = True
        self._close_idle()

    def _take(self, key: K) -> _Opened[V]:
        """Begin a read of one, which is opened if it is not."""
        with self._lock:
            if self._closed:
                raise Vanished("the file was closed")
            if key in self._opened:
                return self._begin_read(key, self._opened[key])
        fresh = _Opened(self._open_one(key))
        with self._lock:
            opened = self._begin_read(key, self._opened.get(key, fresh))
        if opened is not fresh:
            fresh.value.close()
        return opened

    def _begin_read(self, key: K, opened: _Opened[V]) -> _Opened[V]:
        """Count a read, and put what is read behind all others; with the lock held."""
        opened.reads += 1
        self._opened.pop(key, None)
        self._opened[key] = opened
        return opened

    def _close_idle(self) -> None:
        """Close what nobody reads; until all is closed, all but the few used last."""
        with self._lock:
            idle = [key for key, opened in self._opened.items() if not opened.reads]
            kept = 0 if self._closed else self._max_idle
            surplus = [self._opened.pop(key) for key in idle[: max(0, len(idle) - kept)]]
        for opened in surplus:
            opened.value.close()
