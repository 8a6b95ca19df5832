"""Persists when each tag was first seen at its digest, so that a remount shows the same times.

A tag link's time must change when the tag moves and at no other moment, or incremental backups
would miss it or copy everything again. The registry does not tell, so the first sight is recorded.
So is that of all the tags of a repository together: when a tag is deleted, or two swap their
digests, no link has a newer time, and yet `layout/index.json` is another file.

Several mounts may share the `database`. A damaged one is replaced: times then begin anew, which
costs a backup a second look and nothing else. A first sight that the disk does not take is kept in
memory for as long as the mount lasts: no tag is hidden for want of room.

Locks: `TagHistory._lock` serialises use of the database and of what is remembered. The local
statements under it take microseconds, unless a damaged file is replaced; none waits for the
network.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cachetools import LRUCache

from epochfs.cache.database import Database
from epochfs.oci.names import Digest, Repository, Tag

log = logging.getLogger(__name__)

_MOST_REMEMBERED = 100_000
"""How many tags that the disk did not take are remembered, in about 300 bytes each."""

_Key = tuple[str, ...]
"""Registry, repository and tag; of a layout, registry and repository."""

_TAG_KEY_LENGTH = 3

_SECOND = 1_000_000_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tag (
    registry TEXT, repository TEXT, tag TEXT, digest TEXT, since_ns INTEGER,
    PRIMARY KEY (registry, repository, tag)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS layout (
    registry TEXT, repository TEXT, digest TEXT, since_ns INTEGER,
    PRIMARY KEY (registry, repository)
) WITHOUT ROWID;
"""
"""`layout` came later: an older file is given this table when it is opened."""


_UPSERT = (
    "ON CONFLICT DO UPDATE SET since_ns = iif(digest = excluded.digest, since_ns, {since}), "
    "digest = excluded.digest RETURNING since_ns"
)
"""One statement, so that two mounts that see a tag move at once agree on the time."""

# Each selects what is known of a tag or layout, and records a sight of it.
_TAG = (
    "SELECT digest, since_ns FROM tag WHERE registry=? AND repository=? AND tag=?",
    "INSERT INTO tag VALUES (?, ?, ?, ?, ?) " + _UPSERT.format(since="excluded.since_ns"),
)
_LAYOUT = (
    "SELECT digest, since_ns FROM layout WHERE registry=? AND repository=?",
    "INSERT INTO layout VALUES (?, ?, ?, ?) "
    + _UPSERT.format(since=f"max(excluded.since_ns, (since_ns / {_SECOND} + 1) * {_SECOND})"),
)
"""A layout's index keeps its size when two tags swap, and rsync compares times by the second: so a
change is in another second than what it changes, if need be in the next."""


class TagHistory:
    """The first sights of one registry's tags and layouts, in the SQLite file `path`, or in memory.

    What the disk does not take is told to `report`; `make_room` is `Database`'s.
    """

    def __init__(
        self,
        path: Path | None,
        registry: str,
        clock: Callable[[], int] = time.time_ns,
        *,
        report: Callable[[object], None] = lambda problem: log.warning("%s", problem),
        make_room: Callable[[], bool] = lambda: False,
    ) -> None:
        """Raises CacheFailure where there can be no such file, unless the disk is at fault."""
        self._registry = registry
        self._clock = clock
        self._lock = threading.Lock()
        self._remembered: LRUCache[_Key, tuple[str, int]] = LRUCache(_MOST_REMEMBERED)
        self._database = Database(path, _SCHEMA, "the tag history", make_room, report)

    def since(self, repository: Repository, tag: Tag | None, digest: Digest) -> int:
        """Return since when `tag` has `digest`, in epoch nanoseconds; now if that is new.

        Without a tag, the digest is that of the index of all of them.
        """
        key: _Key = (self._registry, repository.name)
        if tag is not None:
            key = (*key, tag.name)
        text = str(digest)
        with self._lock:
            seen = self._database.run(partial(self._seen, key, text), None)
            return self._first_sight(key, text) if seen is None else seen

    def layout_since(self, repository: Repository, index: bytes) -> int:
        """Return since when a repository has this index of its tags, as `since` does of a tag."""
        return self.since(repository, None, Digest.of(index))

    def has_seen(self, repository: Repository, tag: Tag | None = None) -> bool:
        """Return whether a tag of a repository was ever seen; without one, whether any was."""
        query = "SELECT 1 FROM tag WHERE registry=? AND repository=?"
        key: _Key = (self._registry, repository.name)
        if tag is not None:
            query, key = f"{query} AND tag=?", (*key, tag.name)
        with self._lock:
            known = (one for one in self._remembered if len(one) == _TAG_KEY_LENGTH)
            if key in self._remembered or (tag is None and any(one[:2] == key for one in known)):
                return True
            found = self._database.run(
                lambda database: database.execute(f"{query} LIMIT 1", key).fetchone(), None
            )
        return found is not None

    def _seen(self, key: _Key, digest: str, database: sqlite3.Connection) -> int:
        select, upsert = _TAG if len(key) == _TAG_KEY_LENGTH else _LAYOUT
        with database:
            row = database.execute(select, key).fetchone()
            if row is not None and row[0] == digest:
                return int(row[1])
            first_sight = self._first_sight(key, digest)
            row = database.execute(upsert, (*key, digest, first_sight)).fetchone()
        self._remembered.pop(key, None)
        return int(row[0])

    def _first_sight(self, key: _Key, digest: str) -> int:
        """Return when a digest was first seen, as far as it is remembered; else now."""
        seen, since_ns = self._remembered.get(key, ("", 0))
        if seen != digest:
            since_ns = self._clock()
            self._remembered[key] = (digest, since_ns)
        return since_ns

    def close(self) -> None:
        with self._lock:
            self._database.close()  # a listing in the background may still ask
