"""Stores what the tags of whole listings resolve to, in columns: 56 bytes a tag, not ten objects.

Objects for the key, the entry, its value, digest and times, and their slots in dictionaries, take
700 bytes a tag. A listing's tags are sorted, so a tag's position in its listing is its row. A tag
that has no row is stored as in any other cache: one that no listing names, one that is absent, and
one whose digest has another length.

Locks: `TagTables._lock` guards the tables and what is beside them. The cache that is on top calls
`get`, `put` and `clear` under its own lock; no lock is taken under this one.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left
from dataclasses import dataclass
from operator import attrgetter

from cachetools import LRUCache

from epochfs.metadata.ttl_cache import Entry, LruStore
from epochfs.oci.names import Digest, Repository, Tag

_ALGORITHM, _DIGEST_BYTES = "sha256", 32
_NEVER = float("-inf")
_MOST_OTHERS = 100_000
"""So many tags without a row are remembered: anybody may ask for any number of absent ones."""

_name = attrgetter("name")

Key = tuple[Repository, Tag]


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a tag names, and since when as far as this cache has seen, in epoch nanoseconds."""

    digest: Digest
    since_ns: int


class TagTables:
    """The store of a `TtlCache` of tags: at most `limit` rows, and fewer tags without a row.

    The least recently used goes first, a repository's rows at once.
    """

    def __init__(self, limit: float) -> None:
        self._lock = threading.Lock()
        self._tables: LRUCache[Repository, _Table] = LRUCache(limit, getsizeof=len)
        self._others: LruStore[Key, Resolved] = LruStore(min(limit, _MOST_OTHERS))

    def arrange(self, repository: Repository, tags: tuple[Tag, ...]) -> None:
        """Make rows for the sorted tags of a new listing; keep what they resolved to."""
        table = _Table(tags)
        with self._lock:
            old = self._tables.pop(repository, None)
            if old is not None:
                table.adopt(old)
            if 0 < len(table) <= self._tables.maxsize:
                self._tables[repository] = table

    def get(self, key: Key) -> Entry[Resolved] | None:
        """Return the entry of a tag."""
        repository, tag = key
        with self._lock:
            table = self._tables.get(repository)
            entry = table.get(tag) if table is not None else None
            return entry if entry is not None else self._others.get(key)

    def put(self, key: Key, entry: Entry[Resolved]) -> None:
        """Replace the entry of a tag."""
        repository, tag = key
        with self._lock:
            table = self._tables.get(repository)
            if table is not None and table.put(tag, entry):
                self._others.drop(key)
            else:
                self._others.put(key, entry)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._tables.clear()
            self._others.clear()


class _Table:
    """The rows of one listing; one that has never been filled is `_NEVER` current."""

    def __init__(self, tags: tuple[Tag, ...]) -> None:
        self._tags = tags
        self._digests = bytearray(_DIGEST_BYTES * len(tags))
        self._since_ns = array("q", bytes(8 * len(tags)))
        self._until = array("d", [_NEVER]) * len(tags)
        self._stale_until = array("d", bytes(8 * len(tags)))

    def __len__(self) -> int:
        return len(self._tags)

    def get(self, tag: Tag) -> Entry[Resolved] | None:
        row = self._row(tag)
        if row is None or self._until[row] == _NEVER:
            return None
        raw = self._digests[row * _DIGEST_BYTES : (row + 1) * _DIGEST_BYTES]
        resolved = Resolved(Digest(_ALGORITHM, raw.hex()), self._since_ns[row])
        return Entry(resolved, None, self._until[row], self._stale_until[row])

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
        self._stale_until[row] = entry.stale_until
        return True

    def adopt(self, old: _Table) -> None:
        """Take over what an older listing's table knows of the tags in this one."""
        if old._tags == self._tags:
            self._digests, self._since_ns = old._digests, old._since_ns
            self._until, self._stale_until = old._until, old._stale_until
            return
        for tag in old._tags:
            entry = old.get(tag)
            if entry is not None:
                self.put(tag, entry)

    def _row(self, tag: Tag) -> int | None:
        row = bisect_left(self._tags, tag.name, key=_name)
        return row if row < len(self._tags) and self._tags[row] == tag else None
