"""A bounded cache in front of a fetch that may be slow, fail, or be asked for by many at once.

- **Bounded**: least recently used out first (cachetools), by number or by `size_of`.
- **TTL**: a value is used for `ttl` seconds.
- **Single flight**: one fetch per key at a time; who asks meanwhile waits for its result.
- **Negative**: NotFound is remembered for `negative_ttl` seconds. No other error ever is.
- **Stale if error**: when the registry cannot be reached, an older value still serves, up to
  `stale` seconds past its time; the next try is made `negative_ttl` seconds later.

Locks: `TtlCache._lock` guards the store and the flights; no fetch happens under it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from cachetools import LRUCache

from epochfs.errors import (
    DeadlineExceeded,
    EpochfsError,
    NotFound,
    Unavailable,
    fresh,
    printable,
)

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """How long values live, in seconds, and how much of them is kept."""

    ttl: float
    negative_ttl: float = 5.0
    stale: float = 0.0
    limit: float = 100_000
    wait: float = 120.0


@dataclass(frozen=True, slots=True)
class _Entry(Generic[V]):
    """A remembered value, or the NotFound in its place; monotonic times in seconds."""

    value: V | None
    error: NotFound | None
    until: float
    stale_until: float


@dataclass(slots=True, eq=False)
class _Flight(Generic[V]):
    """A fetch under way and, once `done`, how it ended."""

    done: threading.Event = field(default_factory=threading.Event)
    value: V | None = None
    error: EpochfsError | None = None


class TtlCache(Generic[K, V]):
    """A cache over `fetch`; `name` says in log lines what it holds."""

    def __init__(
        self,
        name: str,
        fetch: Callable[[K], V],
        policy: CachePolicy,
        *,
        size_of: Callable[[V], float] = lambda _: 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._fetch = fetch
        self._policy = policy
        self._clock = clock
        self._lock = threading.Lock()
        self._flights: dict[K, _Flight[V]] = {}
        self._store: LRUCache[K, _Entry[V]] = LRUCache(
            policy.limit,
            getsizeof=lambda entry: 1 if entry.error else size_of(entry.value),  # type: ignore[arg-type]
        )

    def get(self, key: K) -> V:
        """Return the value for `key`, remembered or fetched; raises what the fetch raises."""
        with self._lock:
            entry = self._store.get(key)
            if entry is not None and self._clock() < entry.until:
                return _unwrap(entry.value, entry.error)
            flight = self._flights.get(key)
            leads = flight is None
            if flight is None:
                flight = self._flights[key] = _Flight()
        if leads:
            self._fly(key, flight, entry)
        elif not flight.done.wait(self._policy.wait):
            raise DeadlineExceeded(f"{self._name} {printable(key)} did not arrive in time")
        return _unwrap(flight.value, flight.error)

    def peek(self, key: K) -> V | None:
        """Return the value for `key` if it is remembered and current, without a fetch."""
        with self._lock:
            entry = self._store.get(key)
            return entry.value if entry is not None and self._clock() < entry.until else None

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._store.clear()

    def _fly(self, key: K, flight: _Flight[V], old: _Entry[V] | None) -> None:
        try:
            flight.value = self._fetch(key)
            self._remember(key, flight.value, None)
        except NotFound as error:
            flight.error = error
            self._remember(key, None, error)
        except (Unavailable, DeadlineExceeded) as error:
            if old is None or old.error is not None or self._clock() >= old.stale_until:
                flight.error = error
            else:
                flight.value = old.value
                log.info("%s %s is served stale: %s", self._name, printable(key), error)
                self._keep(key, old)
        except EpochfsError as error:
            flight.error = error
        except BaseException:
            flight.error = Unavailable(f"{self._name} {printable(key)}: unforeseen failure")
            raise
        finally:
            with self._lock:
                del self._flights[key]
            flight.done.set()

    def _remember(self, key: K, value: V | None, error: NotFound | None) -> None:
        now = self._clock()
        until = now + (self._policy.ttl if error is None else self._policy.negative_ttl)
        self._put(key, _Entry(value, error, until, until + self._policy.stale))

    def _keep(self, key: K, old: _Entry[V]) -> None:
        """Use an old value a little longer before the registry is asked again."""
        until = self._clock() + self._policy.negative_ttl
        self._put(key, _Entry(old.value, None, until, old.stale_until))

    def _put(self, key: K, entry: _Entry[V]) -> None:
        with self._lock:
            self._store.pop(key, None)
            try:
                self._store[key] = entry
            except ValueError:
                log.debug("%s %s is too large to remember", self._name, printable(key))


def _unwrap(value: V | None, error: EpochfsError | None) -> V:
    if error is not None:
        raise fresh(error)
    return value  # type: ignore[return-value]
