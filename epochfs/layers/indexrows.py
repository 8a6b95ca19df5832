"""The rows of an index on their way into its file: many at a time, which takes a third of the time.

A name that is looked up meanwhile must be there, so all rows are written before if it is one of
them. What need not be looked up is told by sets that may say yes too often, but never no.
"""

from __future__ import annotations

import sqlite3

from epochfs.errors import CacheFailure

_BATCH = 2000
_FILTER_BITS = 1 << 23

Value = str | bytes | int

_INODE = "INSERT INTO inode VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_NAME = "INSERT OR REPLACE INTO name VALUES (?, ?, ?)"
_PIECE = "INSERT OR REPLACE INTO piece VALUES (?, ?, ?, ?, ?, ?)"
_ALIAS = "INSERT OR IGNORE INTO alias VALUES (?, ?, ?)"


class IndexRows:
    """The rows of one index: `names` by (parent, name), the others as they are in its tables.

    Raises CacheFailure.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.inodes: list[tuple[Value, ...]] = []
        self.names: dict[tuple[bytes, bytes], int] = {}
        self.pieces: list[tuple[Value, ...]] = []
        self.aliases: list[tuple[Value, ...]] = []

    def write_some(self) -> None:
        """Write the rows if there are many."""
        if len(self.names) + len(self.pieces) > _BATCH:
            self.write()

    def write(self) -> None:
        """Write the rows."""
        names = [(*key, inode) for key, inode in self.names.items()]
        self.names.clear()
        for statement, rows in (
            (_INODE, self.inodes),
            (_NAME, names),
            (_PIECE, self.pieces),
            (_ALIAS, self.aliases),
        ):
            try:
                self._connection.executemany(statement, rows)
            except sqlite3.Error as error:
                raise _failure(error) from error
            rows.clear()

    def run(self, statement: str, *values: Value) -> sqlite3.Cursor:
        """Execute a statement, all rows before it written."""
        self.write()
        return self._execute(statement, values)

    def run_of(self, parent: bytes, name: bytes, statement: str, *more: Value) -> sqlite3.Cursor:
        """Execute a statement about one name, which are its first values."""
        if (parent, name) in self.names:
            self.write()
        return self._execute(statement, (parent, name, *more))

    def _execute(self, statement: str, values: tuple[Value, ...]) -> sqlite3.Cursor:
        try:
            return self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise _failure(error) from error


def _failure(error: sqlite3.Error) -> CacheFailure:
    return CacheFailure(f"cannot write the index of a layer: {error}")


class Sieve:
    """A set of paths in a MiB, however many: of one that is not in it, it may say that it is."""

    def __init__(self) -> None:
        self._bits = bytearray(_FILTER_BITS // 8)

    def add(self, path: bytes) -> None:
        """Put a path into it."""
        place = hash(path) % _FILTER_BITS
        self._bits[place >> 3] |= 1 << (place & 7)

    def __contains__(self, path: bytes) -> bool:
        place = hash(path) % _FILTER_BITS
        return bool(self._bits[place >> 3] & 1 << (place & 7))
