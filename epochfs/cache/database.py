"""SQLite files of the cache: opened by several processes at once, and begun anew when damaged.

A `flock` of the directory lets one process at a time open a file: two that make it at once would
each find it locked, and take that for damage. Write-ahead logging lets several mounts share it.

Most damage shows only when a page is read. Who meets it then opens the file again, which another
mount may have replaced by then, and replaces it only if a check of the whole finds the damage too.

A file on a disk that cannot be written to is read all the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from epochfs.cache.directory import is_shortage
from epochfs.errors import printable

log = logging.getLogger(__name__)

_BUSY_SECONDS = 5.0

T = TypeVar("T")


class Database:
    """A file that has the tables of `schema`; used by any thread, but by one at a time.

    `what` is in it, as a log line may say. `prepare` is called with each connection made, which may
    be one that cannot write; `make_room` when the disk is full, and returns whether there is some
    now. Raises OSError and sqlite3.Error, as does `run`.
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        what: str,
        prepare: Callable[[sqlite3.Connection], None] = lambda _: None,
        make_room: Callable[[], bool] = lambda: False,
    ) -> None:
        self._path = path
        self._schema = schema
        self._what = what
        self._prepare = prepare
        self._make_room = make_room
        self._connection = self._open(_connect)

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do this with the connection; once more, where the file proves damaged, with a new one.

        Also once more where the disk was full and there is room now.
        """
        try:
            return self._with_room(work)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            log.info("%s in %s seems damaged: %s", self._what, self._path, error)
        fresh = self._open(_checked)
        self.close()
        self._connection = fresh
        return work(fresh)

    def _with_room(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return work(self._connection)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL or not self._make_room():
                raise
        return work(self._connection)

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def _open(self, connect: Callable[[Path, str], sqlite3.Connection]) -> sqlite3.Connection:
        """Open the file, or a new one in its place if it is damaged."""
        with _alone_in(self._path.parent):
            try:
                connection = _connect_somehow(connect, self._path, self._schema)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                log.warning(
                    "%s in %s is damaged and begins anew: %s",
                    self._what,
                    self._path,
                    printable(error),
                )
                for suffix in ("", "-wal", "-shm"):
                    Path(f"{self._path}{suffix}").unlink(missing_ok=True)
                connection = _connect(self._path, self._schema)
            self._prepare(connection)
            return connection


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether an error says that the file is wrong; its subclasses are about other things.

    Such as a file that is locked, or a disk that fails.
    """
    return type(error) is sqlite3.DatabaseError


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Make the directory where it is missing, and keep other processes out of it meanwhile."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _connect_somehow(
    connect: Callable[[Path, str], sqlite3.Connection], path: Path, schema: str
) -> sqlite3.Connection:
    """Connect, to read only if the disk lets nobody write and the file has something in it.

    A file in which another process may have written last is read with its log of writes; that
    needs memory they share, which where nobody can write may not be there.
    """
    try:
        return connect(path, schema)
    except (OSError, sqlite3.OperationalError) as error:
        if not is_shortage(error):
            raise
        for how in ("mode=ro", "mode=ro&immutable=1"):
            with contextlib.suppress(sqlite3.OperationalError):
                return _connect_to_read(path, how)
        raise


def _connect_to_read(path: Path, how: str) -> sqlite3.Connection:
    uri = f"file:{quote(str(path))}?{how}"
    connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
    try:
        if not connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            raise sqlite3.OperationalError("there is nothing in it")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _connect(path: Path, schema: str) -> sqlite3.Connection:
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.executescript(schema)
        connection.commit()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _checked(path: Path, schema: str) -> sqlite3.Connection:
    """Connect, and read all of the file; raises sqlite3.DatabaseError if it is damaged."""
    connection = _connect(path, schema)
    try:
        [found] = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found)
    except sqlite3.Error:
        connection.close()
        raise
    return connection
