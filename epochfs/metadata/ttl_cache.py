"""A bounded cache in front of a fetch that may be slow, fail, or be asked for by many at once.

- **Bounded**: least recently used out first (cachetools), by number or by `size_of`.
- **TTL**: a value is used for `ttl` seconds.
- **Single flight**: one fetch per key at a time; who asks meanwhile waits for its result.
- **Negative**: NotFound is remembered for `negative_ttl` seconds. No other error ever is.
- **Stale if error**: when the registry cannot be reached, an older value still serves, up to
  `stale` seconds past its time; the next try is made `negative_ttl` seconds later.
- **Recalled**: so is it where the fetch itself had an older value to give, which it counts.

Locks: `TtlCache._lock` guards the store and, in `SingleFlight`, what is being fetched; no fetch
happens under it. A store with a lock of its own is called under this one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, Protocol, TypeVar

from cachetools import LRUCache

from epochfs.client.single_flight import SingleFlight
from epochfs.errors import (
    DeadlineExceeded,
    NotFound,
    Unavailable,
    fresh,
    printable,
)

log = logging.getLogger(__name__)

_MOST_ABSENT = 100_000

K = TypeVar("K", bound=Hashable)
K_contra = TypeVar("K_contra", bound=Hashable, contravariant=True)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """How long values live, in seconds, and how much of them is kept."""

    ttl: float
    negative_ttl: float = 5.0
    stale: float = 0.0
    limit: float = 100_000
    wait: float = 60.0


@dataclass(frozen=True, slots=True)
class Entry(Generic[V]):
    """A remembered value, or the NotFound in its place; monotonic times in seconds."""

    value: V | None
    error: NotFound | None
    until: float
    stale_until: float


class Store(Protocol[K_contra, V]):
    """Where a cache keeps its entries, bounded; called under the lock of the cache."""

    def get(self, key: K_contra) -> Entry[V] | None:
        """Return the entry for `key`, which is the most recently used from then on."""

    def put(self, key: K_contra, entry: Entry[V]) -> None:
        """Keep this entry, in place of any other for `key`."""

    def clear(self) -> None:
        """Forget everything."""


class LruStore(Generic[K, V]):
    """Entries up to a sum of sizes of `limit`, the least recently used out first.

    Without `size_of`, a value counts for one. An absence counts for so much that there are at most
    `_MOST_ABSENT`, for anybody may ask for any number of names that are not there.
    """

    def __init__(self, limit: float, size_of: Callable[[V], float] | None = None) -> None:
        absence = max(1, limit // _MOST_ABSENT)

        def measured(entry: Entry[V]) -> float:
            if entry.value is None:
                return absence
            return 1 if size_of is None else size_of(entry.value)

        self._entries: LRUCache[K, Entry[V]] = LRUCache(limit, measured)

    def get(self, key: K) -> Entry[V] | None:
        """Return the entry for `key`, which is the most recently used from then on."""
        return self._entries.get(key)

    def put(self, key: K, entry: Entry[V]) -> None:
        """Keep this entry, in place of any other for `key`; not if it alone is over the limit."""
        self.drop(key)
        try:
            self._entries[key] = entry
        except ValueError:
            log.debug("%s is too large to remember", printable(key))

    def drop(self, key: K) -> None:
        """Forget one entry, if it is there."""
        self._entries.pop(key, None)

    def drop_where(self, match: Callable[[K], bool]) -> None:
        """Forget the entries whose keys match."""
        for key in [key for key in self._entries if match(key)]:
            self.drop(key)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()


class TtlCache(Generic[K, V]):
    """A cache over `fetch`; `name` says in log lines what it holds.

    Without a `store` it keeps entries by number, or by `size_of` their values. `recalled` tells how
    often a fetch, of any key, has given an older value in place of the present one.
    """

    def __init__(
        self,
        name: str,
        fetch: Callable[[K], V],
        policy: CachePolicy,
        *,
        size_of: Callable[[V], float] | None = None,
        store: Store[K, V] | None = None,
        recalled: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._fetch = fetch
        self._policy = policy
        self._recalled = recalled
        self._clock = clock
        self._lock = threading.Lock()
        self._store = store or LruStore[K, V](policy.limit, size_of)
        self._flights = SingleFlight[K, Entry[V]](self._lock, self._store.put, self._late)

    def get(self, key: K, max_age: float | None = None) -> V:
        """Return the value for `key`, remembered or fetched; raises what the fetch raises.

        A remembered value may be `max_age` seconds old, `ttl` by default.
        """
        entry = self._flights.do(
            key,
            partial(self._current, key, max_age),
            partial(self._fetched, key),
            time.monotonic() + self._policy.wait,
        )
        if entry.error is not None:
            raise fresh(entry.error)
        return entry.value  # type: ignore[return-value]

    def peek(self, key: K) -> V | None:
        """Return the value for `key` if it is remembered and current, without a fetch."""
        with self._lock:
            entry = self._store.get(key)
            return entry.value if entry is not None and self._clock() < entry.until else None

    def last(self, key: K) -> V | None:
        """Return the value that the last fetch to succeed gave for `key`, however old, if it is
        still remembered and no absence came after it."""
        with self._lock:
            entry = self._store.get(key)
            return entry.value if entry is not None else None

    def expire(self, key: K) -> None:
        """Have the value for `key` fetched when it is next asked for; `last` still returns it."""
        with self._lock:
            entry = self._store.get(key)
            if entry is not None:
                self._store.put(key, replace(entry, until=self._clock()))

    def clear(self) -> None:
        """Forget everything, and what is being fetched just now."""
        with self._lock:
            self._store.clear()
            self._flights.forget()

    def _current(self, key: K, max_age: float | None) -> Entry[V] | None:
        entry = self._store.get(key)
        if entry is None:
            return None
        until = entry.until
        if max_age is not None:
            until -= max(0.0, self._policy.ttl - max_age)
        return entry if self._clock() < until else None

    def _fetched(self, key: K) -> Entry[V]:
        recalled = self._recalled()
        try:
            value = self._fetch(key)
            is_new = self._recalled() == recalled
            ttl = self._policy.ttl if is_new else min(self._policy.ttl, self._policy.negative_ttl)
            return Entry(value, None, *self._times(ttl))
        except NotFound as error:
            # Bare: its traceback would keep the frames of this fetch, and with them the error
            # that was remembered before, and so on back to the first.
            bare = type(error)(*error.args)
            return Entry(None, bare, *self._times(self._policy.negative_ttl))
        except (Unavailable, DeadlineExceeded) as error:
            with self._lock:
                old = self._store.get(key)
            if old is None or old.error is not None or self._clock() >= old.stale_until:
                raise
            log.info("%s %s is served stale: %s", self._name, printable(key), error)
            until, _ = self._times(self._policy.negative_ttl)
            return Entry(old.value, None, until, old.stale_until)

    def _times(self, ttl: float) -> tuple[float, float]:
        """Return until when an entry made now is used, and until when it is where there is need."""
        until = self._clock() + ttl
        return until, until + self._policy.stale

    def _late(self, key: K) -> str:
        return f"{self._name} {printable(key)} did not arrive in time"
