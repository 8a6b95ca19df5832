"""A shelf of costly values, each made once for all who want it then, and kept a while.

Locks: `Shelf._lock` guards what is kept and, in `PooledFlight`, what is being made; nothing is made
under it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from functools import partial
from typing import Generic, TypeVar

from cachetools import LRUCache, TTLCache

from epochfs.client.single_flight import PooledFlight
from epochfs.errors import (
    ContentMismatch,
    EpochfsError,
    ProtocolViolation,
    TooLarge,
    Vanished,
    fresh,
)

_WORKERS = 4
_MAX_FAILED = 1024
_FAILED_SECONDS = 60.0

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Shelf(Generic[K, V]):
    """Keeps the things last used, of a `weight` up to `limit` (each 1, if it is not told).

    What is dropped lives on while somebody uses it.

    That a blob cannot be made sense of does not change: it is remembered for a minute.
    """

    def __init__(self, name: str, limit: int, weight: Callable[[V], int] | None = None) -> None:
        self._lock = threading.Lock()
        self._kept: LRUCache[K, V] = LRUCache(limit, weight)
        self._failed: TTLCache[K, EpochfsError] = TTLCache(_MAX_FAILED, _FAILED_SECONDS)
        self._making = PooledFlight[K, V](
            self._lock,
            self._kept.__setitem__,
            lambda _: "a layer is not read yet; it goes on",
            name=name,
            workers=_WORKERS,
            ended=Vanished("the mount is ending"),
        )

    def begin(self, key: K, make: Callable[[], V]) -> None:
        """Begin to make the thing, unless it is here or somebody makes it.

        Raises what is known to be wrong with it.
        """
        self._making.begin(key, partial(self._look, key), partial(self._make, key, make))

    def get(self, key: K, make: Callable[[], V], deadline: float) -> V:
        """Return the thing; raises DeadlineExceeded where it is not made by then (monotonic)."""
        look, work = partial(self._look, key), partial(self._make, key, make)
        return self._making.do(key, look, work, deadline)

    def drop(self, key: K) -> None:
        """Have a thing made anew for the next who wants it."""
        with self._lock:
            self._kept.pop(key, None)

    def close(self) -> None:
        """Begin nothing any more; who waits gets an error."""
        self._making.close()

    def _look(self, key: K) -> V | None:
        found = self._kept.get(key)
        if found is None and key in self._failed:
            raise fresh(self._failed[key])
        return found

    def _make(self, key: K, make: Callable[[], V]) -> V:
        try:
            return make()
        except ContentMismatch:
            raise
        except (TooLarge, ProtocolViolation) as error:
            with self._lock:
                self._failed[key] = error
            raise
