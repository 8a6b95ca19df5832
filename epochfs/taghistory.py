"""Since when each tag has had its present digest, kept on disk so that a remount shows the same.

A tag link's time must change when the tag moves and at no other moment, or incremental backups
would miss it or copy everything again. The registry does not tell, so the first sight is recorded.
So is that of all the tags of a repository together: a tag that is deleted, and two that swap their
digests, leave no newer time on any link, and yet `layout/index.json` is another file.

A `database` that several mounts may share. A damaged file is replaced: times then begin anew, which
costs a backup a second look and nothing else.

Locks: `TagHistory._lock` serialises use of the database. The local statements under it take
microseconds, unless a damaged file is replaced; none waits for the network.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from epochfs.database import Database
from epochfs.errors import CacheFailure
from epochfs.names import Digest, Repository, Tag

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
"""`layout` came later: a file of before has no such table, and is given one when it is opened."""

_MOVED = """
ON CONFLICT DO UPDATE SET
    since_ns = iif(digest = excluded.digest, since_ns, excluded.since_ns), digest = excluded.digest
RETURNING since_ns
"""
"""In one statement, so that of two mounts that see a tag move at once, one tells both the time."""


@dataclass(frozen=True, slots=True)
class _Question:
    """How to ask for one kind of thing: what is known of it, and how a sight of it is recorded."""

    select: str
    upsert: str


_TAG = _Question(
    "SELECT digest, since_ns FROM tag WHERE registry=? AND repository=? AND tag=?",
    f"INSERT INTO tag VALUES (?, ?, ?, ?, ?) {_MOVED}",
)
_LAYOUT = _Question(
    "SELECT digest, since_ns FROM layout WHERE registry=? AND repository=?",
    f"INSERT INTO layout VALUES (?, ?, ?, ?) {_MOVED}",
)


class TagHistory:
    """The first sights of one registry's tags and layouts, in the SQLite file `path`."""

    def __init__(self, path: Path, registry: str, clock: Callable[[], int] = time.time_ns) -> None:
        self._registry = registry
        self._clock = clock
        self._lock = threading.Lock()
        try:
            self._database = Database(path, _SCHEMA, "the tag history")
        except (OSError, sqlite3.Error) as error:
            raise CacheFailure(f"cannot keep the tag history in {path}: {error}") from error

    def since(self, repository: Repository, tag: Tag, digest: Digest) -> int:
        """Return since when `tag` has `digest`, in nanoseconds of the epoch; now if that is new."""
        return self._since(_TAG, (self._registry, repository.name, tag.name), digest)

    def layout_since(self, repository: Repository, index: bytes) -> int:
        """Return since when a repository has this index of its tags, as `since` does of a tag."""
        return self._since(_LAYOUT, (self._registry, repository.name), Digest.of(index))

    def _since(self, question: _Question, key: tuple[str, ...], digest: Digest) -> int:
        try:
            with self._lock:
                return self._database.run(
                    lambda database: self._seen(database, question, key, str(digest))
                )
        except (OSError, sqlite3.Error) as error:
            raise CacheFailure(f"the tag history failed: {error}") from error

    def has_seen(self, repository: Repository) -> bool:
        """Return whether any tag of a repository was ever seen."""
        query = "SELECT 1 FROM tag WHERE registry=? AND repository=? LIMIT 1"
        key = (self._registry, repository.name)
        try:
            with self._lock:
                row = self._database.run(lambda database: database.execute(query, key).fetchone())
        except (OSError, sqlite3.Error) as error:
            raise CacheFailure(f"the tag history failed: {error}") from error
        return row is not None

    def _seen(
        self, database: sqlite3.Connection, question: _Question, key: tuple[str, ...], digest: str
    ) -> int:
        with database:
            row = database.execute(question.select, key).fetchone()
            if row is not None and row[0] == digest:
                return int(row[1])
            row = database.execute(question.upsert, (*key, digest, self._clock())).fetchone()
            return int(row[0])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()
