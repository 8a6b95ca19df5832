"""The index writer: adds a layer's entries to a new index, in order, and bounds everything.

The result is what extracting the layer in order would leave: a later entry takes the name of an
earlier one of the same path, a hard link is one more name of what its target was at that
moment, and an entry below a link goes where the link leads.

Locks: `_Rows.lock` serializes the use of the connection, by the writer and by those who look at
what it has written so far; it is a leaf.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import stat
import threading
from collections.abc import Iterator
from typing import Any

from epochfs.errors import CacheFailure, InvalidName, ProtocolViolation, TooLarge
from epochfs.layers.entry import MAX_PATH_BYTES, Entry, clean_path, join_path, split_path
from epochfs.layers.index import IMPLICIT, SCHEMA, LayerIndex, Span

MAX_ENTRIES = 1_000_000
"""Maximum number of entries of a layer."""

MAX_BYTES = 256 << 20
"""Maximum size of all names, links and attributes of a layer."""

MAX_LINKS = 40
"""Maximum number of links that are followed on the way to a path, as in Linux."""

MAX_STEPS = 20_000_000
"""Maximum number of directories that are looked up on the way to all entries of a layer."""

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_RESERVED = b".wh..wh."
_ASIDE = b"\0"
"""Prefix of the directories of names that are never shown: no path that is looked up has it."""

_ROW_BYTES = 100
_TYPE_BITS = 0o170000
_CACHE_KIB = 16 << 10
_KNOWN_DIRECTORIES = 10_000
_BATCH = 2000
_FILTER_BITS = 1 << 23

_INODE = "INSERT INTO inode VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_NAME = "INSERT OR REPLACE INTO name VALUES (?, ?, ?)"
_PIECE = "INSERT OR REPLACE INTO piece VALUES (?, ?, ?, ?, ?, ?)"
_ALIAS = "INSERT OR IGNORE INTO alias VALUES (?, ?, ?)"
_IMPLY = (
    "INSERT INTO name VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET inode = excluded.inode WHERE "
    f"(SELECT mode & {_TYPE_BITS} != {stat.S_IFDIR} FROM inode WHERE id = name.inode)"
)
"""Makes a name a directory unless it is one."""

_Value = str | bytes | memoryview | int


class _Rows:
    """The rows of an index, inserted many at a time, which takes a third of the time.

    A name must be in the file to be looked up there: if it is still among `names`, all rows are
    inserted first. Raises CacheFailure.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.lock = threading.Lock()
        self._connection = connection
        self.inodes: list[tuple[_Value, ...]] = []
        self.names: dict[tuple[bytes, bytes], int] = {}
        self.pieces: list[tuple[_Value, ...]] = []
        self.aliases: list[tuple[_Value, ...]] = []

    def insert(self) -> None:
        """Insert all rows at once: whoever looks sees no file without its pieces."""
        names = [(*key, inode) for key, inode in self.names.items()]
        self.names.clear()
        with _write_errors(), self.lock:
            for statement, rows in (
                (_INODE, self.inodes),
                (_NAME, names),
                (_PIECE, self.pieces),
                (_ALIAS, self.aliases),
            ):
                self._connection.executemany(statement, rows)
                rows.clear()

    def run(self, statement: str, *values: _Value) -> int:
        """Execute a statement after inserting all rows; return how many it changed."""
        self.insert()
        return self._execute(statement, *values)

    def imply(self, parent: bytes, name: bytes) -> bool:
        """Make a name a directory; return whether it was none."""
        self._settle(parent, name)
        return bool(self._execute(_IMPLY, parent, name, IMPLICIT))

    def find(self, parent: bytes, name: bytes, query: str) -> Any:  # noqa: ANN401 - its columns
        """Return the row of a query about one name; None if it has none."""
        self._settle(parent, name)
        with _write_errors(), self.lock:
            return self._connection.execute(query, (parent, name)).fetchone()

    def _settle(self, parent: bytes, name: bytes) -> None:
        if (parent, name) in self.names:
            self.insert()

    def _execute(self, statement: str, *values: _Value) -> int:
        with _write_errors(), self.lock:
            return self._connection.execute(statement, values).rowcount


@contextlib.contextmanager
def _write_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise CacheFailure(f"cannot write the index of a layer: {error}") from error


class _PathFilter:
    """A Bloom filter of paths, 1 MiB however many: it may claim a path it lacks, never deny one."""

    def __init__(self) -> None:
        self._bits = bytearray(_FILTER_BITS // 8)

    def add(self, path: bytes) -> None:
        place = hash(path) % _FILTER_BITS
        self._bits[place >> 3] |= 1 << (place & 7)

    def __contains__(self, path: bytes) -> bool:
        place = hash(path) % _FILTER_BITS
        return bool(self._bits[place >> 3] & 1 << (place & 7))


class IndexWriter:
    """Writes one index to a new file at `path`, or in `:memory:`.

    Raises CacheFailure, and TooLarge beyond a bound.
    """

    def __init__(self, path: str) -> None:
        with _write_errors():
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._connection.executescript(
                "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA locking_mode=EXCLUSIVE;"
                f"PRAGMA cache_size=-{_CACHE_KIB};"
                f"{SCHEMA} BEGIN"
            )
        self._rows = _Rows(self._connection)
        self._inodes = IMPLICIT
        self._entries = 0
        self._bytes = 0
        self._directories: set[bytes] = set()
        self._parents = _PathFilter()
        self._links = _PathFilter()
        self._has_links = False
        self._stated_parent = self._parent = b""
        self._steps = 0

    def add(self, entry: Entry) -> None:
        stated = entry.path
        entry = self._placed(entry)
        self._count(entry)
        parent, name = split_path(entry.path)
        is_reserved = _is_reserved(entry.path) and (name != _OPAQUE or _is_reserved(parent))
        is_whiteout = name.startswith(_WHITEOUT)
        # Where a directory became a link, whiteouts of what was in it may follow: they apply to
        # where the link leads, and create nothing there.
        if not is_reserved and (entry.path == stated or not is_whiteout):
            self._imply(parent)
        if is_reserved:
            self._set_aside(entry)
        elif is_whiteout:
            self._hide(parent, name)
        elif entry.is_hard_link:
            self._add_link(entry, parent, name)
        else:
            self._give_name(parent, name, self._new_inode(entry), entry.mode)
        if len(self._rows.names) + len(self._rows.pieces) > _BATCH:
            self._rows.insert()

    def flush(self) -> None:
        """Write what was added, so that it can be looked up."""
        self._rows.insert()

    def so_far(self) -> LayerIndex:
        """Return the index of what was added and flushed, to be used until `finish`."""
        return LayerIndex(self._connection, self._rows.lock)

    def set_gzip_points(self, points: bytes | memoryview) -> None:
        self._rows.run("INSERT INTO gzip_points (part) VALUES (?)", points)

    def add_span(self, span: Span, window: bytes) -> None:
        """Record a span of a gzip layer, and its window (see `LayerIndex.window`)."""
        self._rows.run("INSERT INTO span VALUES (?, ?, ?, ?, ?, ?, ?)", *span, window)

    def set_meta(self, key: str, value: str | int) -> None:
        """Record a fact about the layer as a whole."""
        self._rows.run("INSERT INTO meta VALUES (?, ?)", key, value)

    def finish(self) -> sqlite3.Connection:
        """Complete the index; return its connection, to be closed or read from."""
        # A name may have gone to another inode since.
        self._rows.run(
            "DELETE FROM alias WHERE inode IS NOT (SELECT inode FROM name "
            "WHERE name.parent = alias.parent AND name.name = alias.name)"
        )
        self._rows.run("COMMIT")
        return self._connection

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close an index that was not completed."""
        if kind is not None:
            self._connection.close()

    def _count(self, entry: Entry) -> None:
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise TooLarge(f"a layer of more than {MAX_ENTRIES} entries")
        size = _ROW_BYTES * (1 + len(entry.pieces)) + len(entry.path) + len(entry.link)
        size += sum(len(name) + len(value) for name, value in entry.xattrs.items())
        self._count_bytes(size)

    def _count_bytes(self, count: int) -> None:
        self._bytes += count
        if self._bytes > MAX_BYTES:
            raise TooLarge(f"a layer whose index would be over {MAX_BYTES} bytes")

    def _hide(self, parent: bytes, name: bytes) -> None:
        hidden = b"" if name == _OPAQUE else name.removeprefix(_WHITEOUT)
        if name == _OPAQUE or hidden not in (b"", b".", b".."):
            self._rows.run("INSERT OR IGNORE INTO hidden VALUES (?, ?)", parent, hidden)

    def _placed(self, entry: Entry) -> Entry:
        """Return an entry with its path, and a hard link's target, where the layer's links lead."""
        stated, name = split_path(entry.path)
        if stated != self._stated_parent:
            # What is put into a directory seldom changes the way to it, so it is kept.
            self._stated_parent, self._parent = stated, self._follow(stated)
        if self._parent != stated:
            entry = entry._replace(path=join_path(self._parent, name))
            is_link = entry.is_hard_link or stat.S_ISLNK(entry.mode)
            if is_link or entry.path in self._links:
                # It may change the way that led here.
                self._stated_parent = self._parent = b""
        if entry.is_hard_link and self._has_links:
            stated, name = split_path(entry.link)
            entry = entry._replace(link=join_path(self._follow(stated), name))
        return entry

    def _follow(self, directory: bytes) -> bytes:
        """Return where a path leads by the layer's own links, none of which leaves the root."""
        if not self._has_links:
            return directory
        found, links, names = b"", 0, directory.split(b"/")[::-1]
        while names:
            name = names.pop()
            if name == b"..":
                found, _ = split_path(found)
            elif name not in (b"", b"."):
                target = self._target(found, name)
                if target is None:
                    found = join_path(found, name)
                    continue
                links += 1
                if links > MAX_LINKS or len(target) > MAX_PATH_BYTES:
                    raise ProtocolViolation("a layer with an entry below a dead link")
                found = b"" if target.startswith(b"/") else found
                names += target.split(b"/")[::-1]
        try:
            return clean_path(found)
        except InvalidName as error:
            raise ProtocolViolation(f"links in a layer lead to {error}") from None

    def _target(self, parent: bytes, name: bytes) -> bytes | None:
        """Return a link's target; None if it is not a link."""
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise TooLarge(f"a layer with over {MAX_STEPS} directories on the way to its entries")
        if join_path(parent, name) not in self._links:
            return None
        query = (
            "SELECT link FROM name JOIN inode ON id = inode WHERE parent=? AND name=? "
            f"AND mode & {_TYPE_BITS} = {stat.S_IFLNK}"
        )
        row = self._rows.find(parent, name, query)
        return None if row is None else bytes(row[0])

    def _imply(self, directory: bytes) -> None:
        """Make a path a directory, and its parents too, where they are none."""
        if directory in self._directories:
            return
        implied = directory
        while implied:
            parent, name = split_path(implied)
            if not self._rows.imply(parent, name):
                break
            # A long key takes up about twice its length in SQLite's pages.
            self._count_bytes(_ROW_BYTES + 2 * len(implied))
            self._note_directory(implied)
            implied = parent
        else:
            self._rows.run("INSERT OR IGNORE INTO name VALUES (x'', x'', ?)", IMPLICIT)
        self._note_directory(directory)

    def _note_directory(self, path: bytes) -> None:
        """Remember that a path is a directory; of exact paths, only the latest are kept."""
        if len(self._directories) >= _KNOWN_DIRECTORIES:
            self._directories.clear()
        self._directories.add(path)
        self._parents.add(path)

    def _set_aside(self, entry: Entry) -> None:
        """Keep one of AUFS's own files only as a target of hard links."""
        if entry.is_hard_link:
            inode, mode, link, _ = self._linked(entry)
            if not mode:
                inode = self._new_inode(entry._replace(path=b"", mode=0, link=link))
        elif stat.S_ISDIR(entry.mode):
            return
        else:
            inode = self._new_inode(entry._replace(path=b""))
        self._rows.names[_place(entry.path)] = inode

    def _new_inode(self, entry: Entry) -> int:
        self._inodes += 1
        number = self._inodes
        attributes = entry[1:8]  # from mode to link, as in the table
        xattrs = json.dumps({name: raw.decode("latin-1") for name, raw in entry.xattrs.items()})
        self._rows.inodes.append((number, *attributes, xattrs, entry.path))
        self._rows.pieces += [(number, *piece) for piece in entry.pieces]
        return number

    def _linked(self, entry: Entry) -> tuple[int, int, bytes, bytes]:
        """Return a hard link's inode, its mode and link, and the path it was first given.

        The mode is 0 if the target is in a lower layer, at the path `link`.
        """
        query = (
            "SELECT inode, mode, link, first FROM name JOIN inode ON id = inode "
            f"WHERE parent=? AND name=? AND mode & {_TYPE_BITS} != {stat.S_IFDIR}"
        )
        found: tuple[int, int, bytes, bytes] | None = self._rows.find(*_place(entry.link), query)
        return found or (IMPLICIT, 0, entry.link, b"")

    def _add_link(self, entry: Entry, parent: bytes, name: bytes) -> None:
        inode, mode, link, first = self._linked(entry)
        if not mode:  # the target, or the target of that, is in a lower layer
            inode = self._new_inode(entry._replace(mode=0, link=link))
        self._give_name(parent, name, inode, mode)
        if not mode:
            self._rows.run("INSERT OR IGNORE INTO foreign_link VALUES (?, ?)", link, entry.path)
        elif not first:  # it was set aside, and this is the first name to be shown
            self._rows.run("UPDATE inode SET first=? WHERE id=?", entry.path, inode)
        else:
            self._rows.aliases += [(inode, *split_path(path)) for path in (first, entry.path)]

    def _give_name(self, parent: bytes, name: bytes, inode: int, mode: int) -> None:
        path = join_path(parent, name)
        if stat.S_ISDIR(mode):
            self._note_directory(path)
        else:
            self._directories.discard(path)
            if path in self._parents:
                self._remove_below(path)
        if stat.S_ISLNK(mode):
            self._has_links = True
            self._links.add(path)
        self._rows.names[parent, name] = inode

    def _remove_below(self, path: bytes) -> None:
        """Remove what was below a directory; 0 follows / in ASCII."""
        if self._rows.run("DELETE FROM name WHERE parent = ?", path):
            below = (path + b"/", path + b"0")
            self._rows.run("DELETE FROM name WHERE parent > ? AND parent < ?", *below)
            self._directories.clear()


def _is_reserved(path: bytes) -> bool:
    """Whether a path has one of AUFS's own names in it, such as `.wh..wh.plnk`."""
    return path.startswith(_RESERVED) or b"/" + _RESERVED in path


def _place(path: bytes) -> tuple[bytes, bytes]:
    """Return a path's parent and name in the index."""
    parent, name = split_path(path)
    return (_ASIDE + parent, name) if _is_reserved(path) else (parent, name)
