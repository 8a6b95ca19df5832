"""Bounded caches in front of fetches that may be slow, fail, or be asked for by many at once.

- **Bounded**: least recently used out first (cachetools), by number or by `size_of`.
- **TTL**: a value is used for `ttl` seconds; one that is not current, for `negative_ttl` at most.
- **Single flight**: one fetch per key at a time; who asks meanwhile waits for its result.
- **Negative**: NotFound is remembered for `negative_ttl` seconds. No other error ever is.
- **Told**: what this process changed itself is put here. The result of a fetch that was under way
  then may be older, and is not kept.

Whether an old value serves while the registry is down is not decided here but in `offline`.

Locks: `TtlCache._lock` guards the store and, in `SingleFlight`, what is being fetched; no fetch
happens under it. `TagTables._lock`, a leaf, is taken under it.
"""

from __future__ import annotations

import logging
import threading
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from cachetools import LRUCache

from epochfs.client.single_flight import SingleFlight
from epochfs.errors import CredentialsUnavailable, Denied, NotFound, fresh, printable
from epochfs.metadata.source import Answer
from epochfs.oci.names import Digest, Repository, Tag

log = logging.getLogger(__name__)

_MOST_ABSENT = 100_000
"""Maximum number of absences that are remembered: anybody may ask for any number of names that do
not exist."""

_ALGORITHM, _DIGEST_BYTES = "sha256", 32
_NEVER = float("-inf")

_name = attrgetter("name")

K = TypeVar("K", bound=Hashable)
K_contra = TypeVar("K_contra", bound=Hashable, contravariant=True)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """How long values live and a fetch is waited for, in seconds, and how much of them is kept."""

    ttl: float
    negative_ttl: float = 5.0
    limit: float = 100_000
    wait: float = 60.0


@dataclass(frozen=True, slots=True)
class Entry(Generic[V]):
    """A remembered value, or the NotFound in its place, used `until` a monotonic time."""

    value: V | None
    error: NotFound | None
    until: float
    is_current: bool = True


class Store(Protocol[K_contra, V]):
    """Where a cache keeps its entries, bounded; called under the lock of the cache.

    `get` makes an entry the most recently used; `put` replaces any other for the key.
    """

    def get(self, key: K_contra) -> Entry[V] | None: ...

    def put(self, key: K_contra, entry: Entry[V]) -> None: ...

    def clear(self) -> None: ...


class LruStore(Generic[K, V]):
    """Entries up to a sum of sizes of `limit`, the least recently used out first.

    Without `size_of`, a value counts for one. An absence counts for so much that there are at most
    `_MOST_ABSENT`.
    """

    def __init__(self, limit: float, size_of: Callable[[V], float] | None = None) -> None:
        absence = max(1, limit // _MOST_ABSENT)

        def measured(entry: Entry[V]) -> float:
            if entry.value is None:
                return absence
            return 1 if size_of is None else size_of(entry.value)

        self._entries: LRUCache[K, Entry[V]] = LRUCache(limit, measured)
        self.get = self._entries.get
        self.clear = self._entries.clear

    def put(self, key: K, entry: Entry[V]) -> None:
        """Keep this entry, unless it alone is over the limit."""
        self._entries.pop(key, None)
        try:
            self._entries[key] = entry
        except ValueError:
            log.debug("%s is too large to remember", printable(key))

    def drop_where(self, match: Callable[[K], bool]) -> None:
        for key in [key for key in self._entries if match(key)]:
            del self._entries[key]


class TtlCache(Generic[K, V]):
    """A cache over `fetch`; `name` says in errors what it holds.

    Without a `store` it keeps entries by number, or by `size_of` their values. `denied` is called
    with each key that the registry denies.
    """

    def __init__(
        self,
        name: str,
        fetch: Callable[[K], Answer[V]],
        policy: CachePolicy,
        *,
        size_of: Callable[[V], float] | None = None,
        store: Store[K, V] | None = None,
        denied: Callable[[K], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._policy = policy
        self._denied = denied
        self._clock = clock
        self._lock = threading.Lock()
        self._store = store or LruStore[K, V](policy.limit, size_of)
        self._flights = SingleFlight[K, Entry[V]](
            self._lock,
            self._store.put,
            lambda key: f"{name} {printable(key)} did not arrive in time",
        )

    def get(self, key: K, max_age: float | None = None) -> V:
        """Return the value for `key`, remembered or fetched; raises what the fetch raises.

        A remembered value may be `max_age` seconds old, `ttl` by default.
        """
        value = self.peek(key, max_age)  # the way of nearly all questions of a walk
        return self.answer(key, max_age).value if value is None else value

    def answer(
        self,
        key: K,
        max_age: float | None = None,
        fetch: Callable[[K], Answer[V]] | None = None,
    ) -> Answer[V]:
        """Return the same with whether it is current, and until when it is used.

        `fetch` takes the place of the cache's own if this is the call that fetches.
        """
        entry = self._flights.do(
            key,
            partial(self._usable, key, max_age),
            partial(self._fetched, key, fetch or self._fetch),
            time.monotonic() + self._policy.wait,
        )
        if entry.error is not None:
            raise fresh(entry.error)
        return Answer(entry.value, entry.is_current, entry.until)  # type: ignore[arg-type]

    def peek(self, key: K, max_age: float | None = None) -> V | None:
        """Return the value for `key` if it is remembered and usable, without a fetch."""
        with self._lock:
            entry = self._usable(key, max_age)
            return entry.value if entry is not None else None

    def last(self, key: K) -> V | None:
        """Return the value that the last fetch to succeed gave for `key`, however old, if it is
        still remembered and no absence came after it."""
        with self._lock:
            entry = self._store.get(key)
            return entry.value if entry is not None else None

    def expire(self, key: K) -> None:
        """Have the value for `key` fetched when it is next asked for; `last` still returns it."""
        with self._lock:
            self._flights.forget(lambda one: one == key)
            entry = self._store.get(key)
            if entry is not None:
                self._store.put(key, replace(entry, until=self._clock()))

    def put(self, key: K, value: V) -> None:
        """Remember a value as if it had been fetched now."""
        self._put(key, Entry(value, None, self._clock() + self._policy.ttl))

    def put_absent(self, key: K, error: NotFound) -> None:
        """Remember that there is nothing, as if a fetch had raised this error now."""
        self._put(key, Entry(None, error, self._clock() + self._policy.negative_ttl))

    def amend(self, key: K, change: Callable[[V], V]) -> None:
        """Change the remembered value, which grows no younger; an absence is asked for again."""
        with self._lock:
            self._flights.forget(lambda one: one == key)
            entry = self._store.get(key)
            if entry is None:
                return
            if entry.value is None:
                self._store.put(key, replace(entry, until=self._clock()))
            else:
                self._store.put(key, replace(entry, value=change(entry.value)))

    def _put(self, key: K, entry: Entry[V]) -> None:
        with self._lock:
            self._flights.forget(lambda one: one == key)
            self._store.put(key, entry)

    def clear(self) -> None:
        """Forget everything, and what is being fetched just now."""
        with self._lock:
            self._store.clear()
            self._flights.forget()

    def _usable(self, key: K, max_age: float | None = None) -> Entry[V] | None:
        entry = self._store.get(key)
        if entry is None:
            return None
        until = entry.until
        if max_age is not None:
            until -= max(0.0, self._policy.ttl - max_age)
        return entry if self._clock() < until else None

    def _fetched(self, key: K, fetch: Callable[[K], Answer[V]]) -> Entry[V]:
        ttl, soon = self._policy.ttl, self._policy.negative_ttl
        try:
            answer = fetch(key)
        except NotFound as error:
            # Bare: its traceback would keep the frames of this fetch, and with them the error
            # that was remembered before, and so on back to the first.
            return Entry(None, type(error)(*error.args), self._clock() + soon)
        except CredentialsUnavailable:
            raise  # nobody was asked
        except Denied:
            self._denied(key)
            raise
        until = self._clock() + (ttl if answer.is_current else min(ttl, soon))
        return Entry(answer.value, None, until, answer.is_current)


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a tag names, and since when as far as this cache has seen, in epoch nanoseconds."""

    digest: Digest
    since_ns: int


TagKey = tuple[Repository, Tag]


class TagTables:
    """The store of a `TtlCache` of tags: what they resolve to, in columns, 49 bytes a tag.

    Objects for the key, the entry, its value, digest and time, and their slots in dictionaries,
    would take 700 bytes a tag. A listing's tags are sorted, so a tag's position in its listing is
    its row. A tag that has no row is stored as in any other cache: one that no listing names, one
    that is absent, and one whose digest has another length.

    There are at most `limit` rows, and fewer tags without a row. The least recently used goes
    first, a repository's rows at once. Tables are arranged by threads that do not hold the lock of
    the cache: hence the lock here.
    """

    def __init__(self, limit: float) -> None:
        self._lock = threading.Lock()
        self._tables: LRUCache[Repository, _Table] = LRUCache(limit, getsizeof=len)
        self._others: LRUCache[TagKey, Entry[Resolved]] = LRUCache(min(limit, _MOST_ABSENT))

    def arrange(self, repository: Repository, tags: tuple[Tag, ...]) -> None:
        """Make rows for the sorted tags of a new listing; keep what they resolved to."""
        table = _Table(tags)
        with self._lock:
            old = self._tables.pop(repository, None)
            if old is not None:
                table.adopt(old)
            if 0 < len(table) <= self._tables.maxsize:
                self._tables[repository] = table

    def get(self, key: TagKey) -> Entry[Resolved] | None:
        repository, tag = key
        with self._lock:
            table = self._tables.get(repository)
            entry = table.get(tag) if table is not None else None
            return entry if entry is not None else self._others.get(key)

    def tag_of(self, repository: Repository, digest: Digest) -> Tag | None:
        """Return the first tag in the last listing that was last resolved to a digest."""
        with self._lock:
            table = self._tables.get(repository)
            return table.tag_of(digest) if table is not None else None

    def put(self, key: TagKey, entry: Entry[Resolved]) -> None:
        repository, tag = key
        with self._lock:
            self._others.pop(key, None)
            table = self._tables.get(repository)
            if table is None or not table.put(tag, entry):
                self._others[key] = entry

    def clear(self) -> None:
        with self._lock:
            self._tables.clear()
            self._others.clear()


class _Table:
    """The rows of one listing; an empty one is used until `_NEVER`."""

    def __init__(self, tags: tuple[Tag, ...]) -> None:
        self._tags = tags
        self._digests = bytearray(_DIGEST_BYTES * len(tags))
        self._since_ns = array("q", bytes(8 * len(tags)))
        self._until = array("d", [_NEVER]) * len(tags)
        self._current = bytearray(len(tags))

    def __len__(self) -> int:
        return len(self._tags)

    def get(self, tag: Tag) -> Entry[Resolved] | None:
        row = self._row(tag)
        if row is None or self._until[row] == _NEVER:
            return None
        raw = self._digests[row * _DIGEST_BYTES : (row + 1) * _DIGEST_BYTES]
        resolved = Resolved(Digest(_ALGORITHM, raw.hex()), self._since_ns[row])
        return Entry(resolved, None, self._until[row], bool(self._current[row]))

    def put(self, tag: Tag, entry: Entry[Resolved]) -> bool:
        """Fill a tag's row and return True; where it cannot hold the entry, empty it."""
        row = self._row(tag)
        if row is None:
            return False
        resolved = entry.value
        if resolved is None or resolved.digest.algorithm != _ALGORITHM:
            self._until[row] = _NEVER
            return False
        raw = bytes.fromhex(resolved.digest.encoded)
        self._digests[row * _DIGEST_BYTES : (row + 1) * _DIGEST_BYTES] = raw
        self._since_ns[row] = resolved.since_ns
        self._until[row] = entry.until
        self._current[row] = entry.is_current
        return True

    def tag_of(self, digest: Digest) -> Tag | None:
        """Return the first tag whose row has a digest."""
        if digest.algorithm != _ALGORITHM:
            return None
        raw, place = bytes.fromhex(digest.encoded), -1
        while (place := self._digests.find(raw, place + 1)) >= 0:
            if place % _DIGEST_BYTES == 0:
                return self._tags[place // _DIGEST_BYTES]
        return None

    def adopt(self, old: _Table) -> None:
        """Take over what an older listing's table knows of the tags in this one."""
        if old._tags == self._tags:
            self._digests, self._since_ns = old._digests, old._since_ns
            self._until, self._current = old._until, old._current
            return
        for tag in old._tags:
            entry = old.get(tag)
            if entry is not None:
                self.put(tag, entry)

    def _row(self, tag: Tag) -> int | None:
        row = bisect_left(self._tags, tag.name, key=_name)
        return row if row < len(self._tags) and self._tags[row] == tag else None
