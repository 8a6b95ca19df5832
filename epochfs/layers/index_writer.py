"""Writes the index of a layer, entry by entry, with a bound on everything.

What is in a layer is applied as extracting it in order would: a later entry of the same path takes
the name, a hard link is one more name of whatever its target was at that moment, and an entry below
a link goes where that leads.
"""

from __future__ import annotations

import json
import sqlite3
import stat

from epochfs.errors import CacheFailure, InvalidName, ProtocolViolation, TooLarge
from epochfs.layers.entry import MAX_PATH_BYTES, Entry, clean_path, join_path, split_path
from epochfs.layers.index import IMPLICIT, SCHEMA
from epochfs.layers.indexrows import IndexRows, Sieve

MAX_LINKS = 40
"""Of so many links on the way to one path, Linux follows all."""

MAX_STEPS = 20_000_000
"""How many directories are passed through on the ways to all entries of a layer."""

MAX_ENTRIES = 1_000_000
MAX_BYTES = 256 << 20
"""How many entries and bytes of names, links and attributes are taken of one layer."""

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_RESERVED = b".wh..wh."
_ASIDE = b"\0"
"""What the directories of names begin with that are never shown: no path that is looked up does."""

_ROW_BYTES = 100
_TYPE_BITS = 0o170000
_CACHE_KIB = 16 << 10
_KNOWN_DIRECTORIES = 10_000
_NO_XATTRS = "{}"

_IMPLY = (
    "INSERT INTO name VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET inode = excluded.inode WHERE "
    f"(SELECT mode & {_TYPE_BITS} != {stat.S_IFDIR} FROM inode WHERE id = name.inode)"
)
"""Have a directory of a name, unless there is one."""


class IndexWriter:
    """Writes one index to a new file at `path`, or `:memory:`.

    Raises CacheFailure, and TooLarge over a bound.
    """

    def __init__(self, path: str) -> None:
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._connection.executescript(
                "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA locking_mode=EXCLUSIVE;"
                f"PRAGMA cache_size=-{_CACHE_KIB};"
                f"{SCHEMA} BEGIN"
            )
        except sqlite3.Error as error:
            raise CacheFailure(f"cannot write the index of a layer: {error}") from error
        self._rows = IndexRows(self._connection)
        self._inodes = IMPLICIT
        self._entries = 0
        self._bytes = 0
        self._directories: set[bytes] = set()
        self._parents = Sieve()
        self._links: Sieve | None = None
        self._stated_parent = self._parent = b""
        self._steps = 0

    def add(self, entry: Entry) -> None:
        """Add the next entry of the layer."""
        stated = entry.path
        entry = self._placed(entry)
        self._count(entry)
        parent, name = split_path(entry.path)
        if _is_reserved(parent) or (name.startswith(_RESERVED) and name != _OPAQUE):
            self._set_aside(entry)
            return
        hides = name.startswith(_WHITEOUT)
        # Where a directory became a link, whiteouts of what was in it may come behind the link:
        # they are for where it leads, and make nothing there.
        if entry.path == stated or not hides:
            self._imply(parent)
        if hides:
            self._hide(parent, name)
        elif entry.is_hard_link:
            self._add_link(entry, parent, name)
        else:
            self._add_inode(entry, parent, name)
        self._rows.write_some()

    def set_gzip_points(self, points: bytes) -> None:
        """Record the index of a gzip stream."""
        self._rows.run("INSERT INTO gzip_points (part) VALUES (?)", points)

    def set_meta(self, key: str, value: str | int) -> None:
        """Record something about the layer as a whole."""
        self._rows.run("INSERT INTO meta VALUES (?, ?)", key, value)

    def finish(self) -> sqlite3.Connection:
        """Complete the index; return the connection to it, to be closed or read from."""
        # A name that was given to something else meanwhile is no name of the inode any more.
        self._rows.run(
            "DELETE FROM alias WHERE inode IS NOT (SELECT inode FROM name "
            "WHERE name.parent = alias.parent AND name.name = alias.name)"
        )
        self._rows.run("COMMIT")
        return self._connection

    def abandon(self) -> None:
        """Close the file, which is then worth nothing."""
        self._connection.close()

    def _count(self, entry: Entry) -> None:
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise TooLarge(f"a layer of more than {MAX_ENTRIES} entries")
        size = _ROW_BYTES * (1 + len(entry.pieces)) + len(entry.path) + len(entry.link)
        if entry.xattrs:
            size += sum(len(name) + len(value) for name, value in entry.xattrs.items())
        self._count_bytes(size)

    def _count_bytes(self, count: int) -> None:
        self._bytes += count
        if self._bytes > MAX_BYTES:
            raise TooLarge(f"a layer whose index would be over {MAX_BYTES} bytes")

    def _hide(self, parent: bytes, name: bytes) -> None:
        """Record a whiteout."""
        hidden = b"" if name == _OPAQUE else name.removeprefix(_WHITEOUT)
        if name == _OPAQUE or hidden not in (b"", b".", b".."):
            self._rows.run("INSERT OR IGNORE INTO hidden VALUES (?, ?)", parent, hidden)

    def _placed(self, entry: Entry) -> Entry:
        """Return an entry as it is where the layer's own links lead."""
        stated, name = split_path(entry.path)
        if stated != self._stated_parent:
            # What is put into a directory seldom changes the way to it; so it holds for them all.
            self._stated_parent, self._parent = stated, self._follow(stated)
        if self._parent != stated:
            entry = entry._replace(path=join_path(self._parent, name))
            if self._may_lead_elsewhere(entry):
                self._stated_parent = self._parent = b""
        if entry.is_hard_link and self._links is not None:
            stated, name = split_path(entry.link)
            entry = entry._replace(link=join_path(self._follow(stated), name))
        return entry

    def _may_lead_elsewhere(self, entry: Entry) -> bool:
        """Return whether an entry that is put behind a link may be on the way that led there."""
        is_link = entry.is_hard_link or stat.S_ISLNK(entry.mode)
        return is_link or (self._links is not None and entry.path in self._links)

    def _follow(self, directory: bytes) -> bytes:
        """Return where a directory is, by the layer's own links, of which none leaves the root."""
        if self._links is None:
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
                    raise ProtocolViolation("a layer with an entry below links that lead nowhere")
                found = b"" if target.startswith(b"/") else found
                names += target.split(b"/")[::-1]
        try:
            return clean_path(found)
        except InvalidName as error:
            raise ProtocolViolation(f"links in a layer lead to {error}") from None

    def _target(self, parent: bytes, name: bytes) -> bytes | None:
        """Return where a link leads; None for what is no link."""
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise TooLarge(f"a layer with more than {MAX_STEPS} directories on the ways to entries")
        if self._links is None or join_path(parent, name) not in self._links:
            return None
        query = (
            "SELECT link FROM name JOIN inode ON id = inode WHERE parent=? AND name=? "
            f"AND mode & {_TYPE_BITS} = {stat.S_IFLNK}"
        )
        row = self._rows.run_of(parent, name, query).fetchone()
        return None if row is None else bytes(row[0])

    def _imply(self, directory: bytes) -> None:
        """Have a directory, and those it is in, where the layer has none of that name yet."""
        if directory in self._directories:
            return
        implied = directory
        while implied:
            parent, name = split_path(implied)
            if not self._rows.run_of(parent, name, _IMPLY, IMPLICIT).rowcount:
                break
            # A long key takes about twice its length in SQLite's pages.
            self._count_bytes(_ROW_BYTES + 2 * len(implied))
            self._is_directory(implied)
            implied = parent
        else:
            self._rows.run("INSERT OR IGNORE INTO name VALUES (x'', x'', ?)", IMPLICIT)
        self._is_directory(directory)

    def _is_directory(self, path: bytes) -> None:
        """Take note of a directory. Only of those seen last is it known that they are there."""
        if len(self._directories) >= _KNOWN_DIRECTORIES:
            self._directories.clear()
        self._directories.add(path)
        self._parents.add(path)

    def _set_aside(self, entry: Entry) -> None:
        """Have a file that AUFS keeps for itself there as a target of hard links, and no more."""
        if entry.is_hard_link:
            inode, mode, link, _ = self._linked(entry)
            if not mode:
                inode = self._new_inode(entry._replace(path=b"", mode=0, link=link))
        elif stat.S_ISDIR(entry.mode):
            return
        else:
            inode = self._new_inode(entry._replace(path=b""))
        self._rows.names[_place(entry.path)] = inode
        self._rows.write_some()

    def _new_inode(self, entry: Entry) -> int:
        self._inodes += 1
        text = _NO_XATTRS
        if entry.xattrs:
            text = json.dumps({key: raw.decode("latin-1") for key, raw in entry.xattrs.items()})
        number = self._inodes
        self._rows.inodes.append(
            (
                *(number, entry.mode, entry.uid, entry.gid, entry.size, entry.time_ns),
                *(entry.rdev, entry.link, text, entry.path),
            )
        )
        for piece in entry.pieces:
            self._rows.pieces.append((number, *piece))
        return number

    def _add_inode(self, entry: Entry, parent: bytes, name: bytes) -> None:
        self._give_name(parent, name, self._new_inode(entry), entry.mode & _TYPE_BITS)

    def _linked(self, entry: Entry) -> tuple[int, int, bytes, bytes]:
        """Return the inode that a hard link is to, its mode and link, and the path it was given.

        The mode is 0 where it is in a lower layer, at the path `link`.
        """
        query = (
            "SELECT inode, mode, link, first FROM name JOIN inode ON id = inode "
            f"WHERE parent=? AND name=? AND mode & {_TYPE_BITS} != {stat.S_IFDIR}"
        )
        found = self._rows.run_of(*_place(entry.link), query).fetchone()
        return found or (IMPLICIT, 0, entry.link, b"")

    def _add_link(self, entry: Entry, parent: bytes, name: bytes) -> None:
        inode, mode, link, first = self._linked(entry)
        if mode == 0:  # the target is in a lower layer, or a name of what is
            self._add_inode(entry._replace(mode=0, link=link), parent, name)
            self._rows.run("INSERT OR IGNORE INTO foreign_link VALUES (?, ?)", link, entry.path)
            return
        self._give_name(parent, name, inode, mode & _TYPE_BITS)
        if not first:  # it was set aside, and this is its first name that is shown
            self._rows.run("UPDATE inode SET first=? WHERE id=?", entry.path, inode)
            return
        for path in (first, entry.path):
            self._rows.aliases.append((inode, *split_path(path)))

    def _give_name(self, parent: bytes, name: bytes, inode: int, kind: int) -> None:
        """Have a name be that of an inode of a type."""
        path = join_path(parent, name)
        if kind == stat.S_IFDIR:
            self._is_directory(path)
        else:
            self._directories.discard(path)
            if path in self._parents:
                self._remove_below(path)
        if kind == stat.S_IFLNK:
            self._links = self._links or Sieve()
            self._links.add(path)
        self._rows.names[parent, name] = inode

    def _remove_below(self, path: bytes) -> None:
        """Have what was below a directory go with it; 0 is what follows / in ASCII."""
        if self._rows.run("DELETE FROM name WHERE parent = ?", path).rowcount:
            below = (path + b"/", path + b"0")
            self._rows.run("DELETE FROM name WHERE parent > ? AND parent < ?", *below)
            self._directories.clear()


def _is_reserved(path: bytes) -> bool:
    """Whether something on a path is AUFS's own, such as `.wh..wh.plnk`."""
    return path.startswith(_RESERVED) or b"/" + _RESERVED in path


def _place(path: bytes) -> tuple[bytes, bytes]:
    """Return the parent and the name that a path has in the index."""
    parent, name = split_path(path)
    return (_ASIDE + parent, name) if _is_reserved(path) else (parent, name)
