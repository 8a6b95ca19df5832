"""SQLite files of the cache: shared by several processes, and replaced when damaged.

A `flock` of the directory lets one process at a time open a file: two that make it at once would
each find it locked, and take that for damage. Write-ahead logging lets several mounts share it.

Most damage shows only when a page is read. Then the file is opened again, since another mount may
have replaced it by now, and replaced only if a check of the whole file finds the damage too.

A file on a disk that cannot be written to is still read.
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
from epochfs.errors import CacheFailure, printable

log = logging.getLogger(__name__)

_BUSY_SECONDS = 5.0

T = TypeVar("T")


class Database:
    """A file that has the tables of `schema`; used by any thread, but by one at a time.

    `what` it holds is said in log lines. `prepare` is called with each connection made, which may
    be read-only; `make_room` when the disk is full, and returns whether there is some now. Without
    a path, where the disk is at fault, and after `close`, there is no file: it is not `is_open`,
    and nothing is done. What fails is told to `report`.
    """

    def __init__(
        self,
        path: Path | None,
        schema: str,
        what: str,
        make_room: Callable[[], bool],
        report: Callable[[object], None],
        prepare: Callable[[sqlite3.Connection], None] = lambda _: None,
    ) -> None:
        """Raises CacheFailure if the file cannot be opened and the disk is not at fault."""
        self._schema = schema
        self._what = what
        self._make_room = make_room
        self._report = report
        self._prepare = prepare
        self._connection: sqlite3.Connection | None = None
        if path is None:
            return
        self._path = path
        try:
            self._connection = self._open(_connect)
        except (OSError, sqlite3.Error) as error:
            problem = f"cannot keep {what} in {path}: {error}"
            if not is_shortage(error):
                raise CacheFailure(problem) from error
            report(problem)

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    def run(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """Return what `work` makes of the connection, or `otherwise` if that fails.

        It is tried again if the disk was full and there is room now, and with a new connection if
        the file proves damaged.
        """
        if self._connection is None:
            return otherwise
        try:
            try:
                return work(self._connection)
            except sqlite3.DatabaseError as error:
                return self._work_again(self._connection, work, error)
        except (OSError, sqlite3.Error) as error:
            self._report(f"{self._what}: {error}")
            return otherwise

    def _work_again(
        self,
        connection: sqlite3.Connection,
        work: Callable[[sqlite3.Connection], T],
        error: sqlite3.DatabaseError,
    ) -> T:
        """Do the same with more room or a new file; raises the error if neither would help."""
        is_full = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
        if is_full and self._make_room():
            return work(connection)
        if not _is_damage(error):
            raise error
        log.info("%s in %s seems damaged: %s", self._what, self._path, error)
        fresh = self._open(_connect_checked)
        self.close()
        self._connection = fresh
        return work(fresh)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _open(self, connect: Callable[[Path, str], sqlite3.Connection]) -> sqlite3.Connection:
        """Open the file, or a new one in its place if it is damaged."""
        with _alone_in(self._path.parent):
            try:
                connection = _connect_somehow(connect, self._path, self._schema)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                problem = printable(error)
                log.warning(
                    "%s in %s is damaged and begins anew: %s", self._what, self._path, problem
                )
                for suffix in ("", "-wal", "-shm"):
                    Path(f"{self._path}{suffix}").unlink(missing_ok=True)
                connection = _connect(self._path, self._schema)
            self._prepare(connection)
            return connection


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether an error says that the file is wrong. Its subclasses are about other things, such as
    a file that is locked or a disk that fails.
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
    """Connect; read-only if the disk cannot be written to and the file has something in it.

    A file in which another process may have written last is read with its log of writes; that
    needs shared memory, which may not exist where nobody can write.
    """
    try:
        return connect(path, schema)
    except (OSError, sqlite3.OperationalError) as error:
        if not is_shortage(error):
            raise
        for how in ("mode=ro", "mode=ro&immutable=1"):
            uri = f"file:{quote(os.fsencode(path))}?{how}"
            with (
                contextlib.suppress(sqlite3.OperationalError),
                _closed_on_error(sqlite3.connect(uri, uri=True, check_same_thread=False)) as found,
            ):
                if found.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
                    return found
                raise sqlite3.OperationalError("there is nothing in it") from None
        raise


def _connect(path: Path, schema: str) -> sqlite3.Connection:
    path.touch(mode=0o600)
    found = sqlite3.connect(path, timeout=_BUSY_SECONDS, check_same_thread=False)
    with _closed_on_error(found) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.executescript(schema)
        connection.commit()
    return connection


def _connect_checked(path: Path, schema: str) -> sqlite3.Connection:
    """Connect, and read all of the file; raises sqlite3.DatabaseError if it is damaged."""
    with _closed_on_error(_connect(path, schema)) as connection:
        [found] = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found)
    return connection


@contextlib.contextmanager
def _closed_on_error(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    try:
        yield connection
    except sqlite3.Error:
        connection.close()
        raise
