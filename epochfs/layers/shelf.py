"""What takes long to make, made once for all who want it at that moment, and kept a while.

Locks: `Shelf._lock` guards its fields; nothing is made under it.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from cachetools import LRUCache, TTLCache

from epochfs.errors import (
    ContentMismatch,
    DeadlineExceeded,
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
        self._pool = concurrent.futures.ThreadPoolExecutor(_WORKERS, thread_name_prefix=name)
        self._kept: LRUCache[K, V] = LRUCache(limit, weight)
        self._failed: TTLCache[K, EpochfsError] = TTLCache(_MAX_FAILED, _FAILED_SECONDS)
        self._making: dict[K, concurrent.futures.Future[V]] = {}

    def begin(self, key: K, make: Callable[[], V]) -> V | concurrent.futures.Future[V]:
        """Return the thing, or what will give it; begins to make it where nobody does."""
        with self._lock:
            if key in self._kept:
                return self._kept[key]
            if key in self._failed:
                raise fresh(self._failed[key])
            if key not in self._making:
                try:
                    self._making[key] = self._pool.submit(self._make, key, make)
                except RuntimeError:
                    raise Vanished("the mount is ending") from None
            return self._making[key]

    def get(self, key: K, make: Callable[[], V], deadline: float) -> V:
        """Return the thing; raises DeadlineExceeded where it is not made by then (monotonic)."""
        found = self.begin(key, make)
        if not isinstance(found, concurrent.futures.Future):
            return found
        try:
            return found.result(max(0.0, deadline - time.monotonic()))
        except concurrent.futures.TimeoutError:
            raise DeadlineExceeded("a layer is not read yet; it goes on") from None
        except concurrent.futures.CancelledError:
            raise Vanished("the mount is ending") from None
        except EpochfsError as error:
            raise fresh(error) from None

    def drop(self, key: K) -> None:
        """Have a thing made anew for the next who wants it."""
        with self._lock:
            self._kept.pop(key, None)

    def close(self) -> None:
        """Begin nothing any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _make(self, key: K, make: Callable[[], V]) -> V:
        made: V | None = None
        failure: EpochfsError | None = None
        try:
            made = make()
            return made
        except EpochfsError as error:
            failure = error
            raise
        finally:
            with self._lock:
                del self._making[key]
                if made is not None:
                    self._kept[key] = made
                elif isinstance(failure, (TooLarge, ProtocolViolation)) and not isinstance(
                    failure, ContentMismatch
                ):
                    self._failed[key] = failure
