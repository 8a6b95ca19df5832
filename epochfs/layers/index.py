"""The index of one layer: a SQLite file of names, inodes and pieces, like a file system's.

It is written once, by one thread (`index_writer`), and is read-only from then on; of a layer that
still arrives, what was written so far can be read (`arriving`). It knows nothing of other layers:
what it hides in those below (layer.md, "Whiteouts") is recorded here, and applied when layers are
merged.

Locks: `LayerIndex._lock` serializes the use of its one connection. The local look-ups under it take
microseconds; none waits for the network.
"""

from __future__ import annotations

import json
import sqlite3
import stat
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import quote

from epochfs.errors import CacheFailure
from epochfs.layers.entry import Piece, join_path

FORMAT = 5
"""The version of this schema and of its content."""

_CACHE_KIB = 256

_MANY_XATTRS = 1000
"""With so many different sets of extended attributes, their names are not collected."""

IMPLICIT = 0
"""The inode of a directory that a layer has no entry for, only entries below it."""

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE gzip_points (id INTEGER PRIMARY KEY, part BLOB);
CREATE TABLE inode (
    id INTEGER PRIMARY KEY, mode INTEGER, uid INTEGER, gid INTEGER, size INTEGER, time_ns INTEGER,
    rdev INTEGER, link BLOB, xattrs TEXT, first BLOB
);
CREATE TABLE name (
    parent BLOB, name BLOB, inode INTEGER, PRIMARY KEY (parent, name)
) WITHOUT ROWID;
CREATE TABLE alias (
    inode INTEGER, parent BLOB, name BLOB, PRIMARY KEY (inode, parent, name)
) WITHOUT ROWID;
CREATE TABLE foreign_link (target BLOB, path BLOB, PRIMARY KEY (target, path)) WITHOUT ROWID;
CREATE TABLE hidden (parent BLOB, name BLOB, PRIMARY KEY (parent, name)) WITHOUT ROWID;
CREATE TABLE piece (
    inode INTEGER, start INTEGER, size INTEGER, offset INTEGER, skip INTEGER, digest TEXT,
    PRIMARY KEY (inode, start)
) WITHOUT ROWID;
CREATE TABLE span (
    start INTEGER PRIMARY KEY, size INTEGER, offset INTEGER, packed INTEGER, bits INTEGER,
    digest TEXT, window BLOB
);
"""
"""`alias` has all names of inodes with several, `foreign_link` the hard links to lower layers, and
`hidden` the whiteouts and, with an empty name, the opaque directories."""


@dataclass(frozen=True, slots=True)
class Inode:
    """A file's attributes in a layer. `first` is its first path.

    A `mode` of 0 means a hard link to the path `link` in the layers below, and nothing else. Where
    there is no `uid` or `gid`, the mount's owner is shown. `pieces` are those of a file whose layer
    still arrives; otherwise the index has them.
    """

    id: int
    mode: int
    uid: int | None
    gid: int | None
    size: int
    time_ns: int
    rdev: int
    link: bytes
    xattrs: dict[str, bytes]
    first: bytes
    pieces: tuple[Piece, ...] | None = None


class Span(NamedTuple):
    """`size` bytes of a gzip layer's tar stream, from `start` in it.

    They are compressed in the `packed` bytes of the blob from `offset`, of which `digest` is. If
    `bits` is not 0, only so many of the first byte belong to it, the upper ones.
    """

    start: int
    size: int
    offset: int
    packed: int
    bits: int
    digest: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What a layer has at a path: `inode` is None if nothing.

    `hides_below`: it hides whatever the layers below have there.
    """

    inode: int | None
    mode: int = 0
    hides_below: bool = False


class LayerIndex:
    """The index of one layer. Any thread may call anything. Raises CacheFailure."""

    def __init__(self, connection: sqlite3.Connection, lock: threading.Lock | None = None) -> None:
        """The connection is closed with the index, unless a writer shares it under a `lock`."""
        self._connection = connection
        self._lock = lock or threading.Lock()
        if lock is None:
            weakref.finalize(self, connection.close).atexit = False
        [(_, _, path)] = self._rows("PRAGMA database_list")
        [(pages,)], [(size,)] = self._rows("PRAGMA page_count"), self._rows("PRAGMA page_size")
        self.resident_bytes = 0 if path else int(pages * size)
        """How much memory the index takes; 0 if it is in a file."""
        self.meta: dict[str, str | int] = dict(self._rows("SELECT key, value FROM meta"))
        self.has_aliases = any(self._rows("SELECT 1 FROM alias LIMIT 1"))
        self._has_hidden = lock is not None or any(self._rows("SELECT 1 FROM hidden LIMIT 1"))
        self.has_foreign_links = any(self._rows("SELECT 1 FROM foreign_link LIMIT 1"))

    def see(self, path: bytes) -> Seen:
        """Look up a path, and whether the layer hides what is below it.

        An opaque directory, a whiteout, or anything but a directory on the way hides everything. It
        need not be in this layer: a whiteout behind a link is where that leads.
        """
        hides, parent = bool(path) and self._hides(b"", b""), b""
        names = path.split(b"/") if path else [b""]
        inode: int | None = IMPLICIT
        mode = 0
        for depth, name in enumerate(names, start=1):
            hides = hides or (bool(name) and self._hides(parent, name))
            if inode is not None:
                inode, mode = self._look_up(parent, name)
            if inode is not None and not stat.S_ISDIR(mode):
                return Seen(inode if depth == len(names) else None, mode, hides_below=True)
            if inode is None and (hides or not self._has_hidden):
                break
            parent = join_path(parent, name)
            hides = hides or (depth < len(names) and self._hides(parent, b""))
        is_found = inode is not None and depth == len(names)
        return Seen(inode, mode, hides) if is_found else Seen(None, hides_below=hides)

    def children(self, directory: bytes) -> list[tuple[bytes, int]]:
        """Return the names in a directory, each with its mode."""
        query = (
            "SELECT name, coalesce(mode, ?) FROM name LEFT JOIN inode ON id = inode "
            "WHERE parent = ? AND name != x''"
        )
        return self._rows(query, stat.S_IFDIR, directory)

    def hidden(self, directory: bytes) -> set[bytes]:
        """Return the names in a directory that are whited out in the layers below.

        An empty name among them says that the directory is opaque: all below is hidden.
        """
        return {name for (name,) in self._rows("SELECT name FROM hidden WHERE parent=?", directory)}

    def inode(self, number: int) -> Inode:
        for row in self._rows("SELECT * FROM inode WHERE id=?", number):
            return _inode(*row)
        raise CacheFailure(f"the index of a layer has no inode {number}")

    def described(self, directory: bytes, names: Sequence[bytes]) -> dict[bytes, Inode | None]:
        """Return the inodes of those of a directory's names that are there; None if implicit."""
        query = (
            "SELECT name.name, inode.* FROM name LEFT JOIN inode ON id = inode "
            f"WHERE parent=? AND name.name IN ({', '.join('?' * len(names))})"
        )
        rows = self._rows(query, directory, *names)
        return {name: _inode(*row) if row[0] is not None else None for name, *row in rows}

    @cached_property
    def xattr_names(self) -> frozenset[str] | None:
        """The names of the extended attributes that its files have; None if those are many."""
        query = f"SELECT DISTINCT xattrs FROM inode WHERE xattrs != '{{}}' LIMIT {_MANY_XATTRS}"
        found = [json.loads(text) for (text,) in self._rows(query)]
        return frozenset().union(*found) if len(found) < _MANY_XATTRS else None

    def aliases(self, number: int) -> list[bytes]:
        """Return the paths of an inode that has several; otherwise none."""
        rows = self._rows("SELECT parent, name FROM alias WHERE inode=?", number)
        return [join_path(parent, name) for parent, name in rows]

    def foreign_links(self, target: bytes) -> list[bytes]:
        """Return the paths that are hard links to a path in the layers below."""
        rows = self._rows("SELECT path FROM foreign_link WHERE target=?", target)
        return [path for (path,) in rows]

    def pieces(self, number: int, start: int, stop: int) -> list[Piece]:
        """Return the pieces of a file that overlap its range `[start, stop)`, in order."""
        query = (
            "SELECT start, size, offset, skip, digest FROM piece WHERE inode=? AND start < ? AND "
            "start >= (SELECT coalesce(max(start), 0) FROM piece WHERE inode=? AND start <= ?) "
            "ORDER BY start"
        )
        return [Piece(*row) for row in self._rows(query, number, stop, number, start)]

    def gzip_points(self) -> bytes:
        """Return the index of a gzip stream, as its decoder exported it."""
        return b"".join(part for (part,) in self._rows("SELECT part FROM gzip_points"))

    def spans(self, start: int, stop: int) -> list[Span]:
        """Return the spans that overlap the range `[start, stop)` of the stream, in order."""
        query = (
            "SELECT start, size, offset, packed, bits, digest FROM span WHERE start < ? AND "
            "start >= (SELECT coalesce(max(start), 0) FROM span WHERE start <= ?) ORDER BY start"
        )
        return [Span(*row) for row in self._rows(query, stop, start)]

    def window(self, span: Span) -> bytes:
        """Return what comes before a span in the stream, which its compressed bytes refer to."""
        [(window,)] = self._rows("SELECT window FROM span WHERE start=?", span.start)
        return bytes(window)

    def _look_up(self, parent: bytes, name: bytes) -> tuple[int | None, int]:
        query = (
            "SELECT inode, coalesce(mode, ?) FROM name LEFT JOIN inode ON id = inode "
            "WHERE parent=? AND name=?"
        )
        rows: list[tuple[int | None, int]] = self._rows(query, stat.S_IFDIR, parent, name)
        return rows[0] if rows else (None, 0)

    def _hides(self, parent: bytes, name: bytes) -> bool:
        query = "SELECT 1 FROM hidden WHERE parent=? AND name=?"
        return self._has_hidden and any(self._rows(query, parent, name))

    def _rows(self, query: str, *values: bytes | int) -> list[Any]:
        try:
            with self._lock:
                return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise CacheFailure(f"the index of a layer failed: {error}") from error


def _inode(
    number: int,
    mode: int,
    uid: int | None,
    gid: int | None,
    size: int,
    time_ns: int,
    rdev: int,
    link: bytes,
    xattrs: str,
    first: bytes,
) -> Inode:
    """Return what a row says of an inode."""
    values = {name: value.encode("latin-1") for name, value in json.loads(xattrs).items()}
    return Inode(number, mode, uid, gid, size, time_ns, rdev, link, values, first)


def open_index(path: str) -> LayerIndex:
    """Open a complete index. Raises CacheFailure."""
    try:
        connection = sqlite3.connect(
            f"file:{quote(path)}?mode=ro&immutable=1", uri=True, check_same_thread=False
        )
        connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
    except sqlite3.Error as error:
        raise CacheFailure(f"cannot open the index of a layer: {error}") from error
    return LayerIndex(connection)
