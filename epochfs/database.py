"""SQLite files of the cache: opened by several processes at once, and begun anew when damaged.

A `flock` of the directory lets one process at a time open a file: two that make it at once would
each find it locked, and take that for damage. Write-ahead logging lets several mounts share it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

_BUSY_SECONDS = 5.0


def open_database(path: Path, schema: str, what: str) -> sqlite3.Connection:
    """Open a file that has the tables of `schema`, or a new one in its place if it is damaged.

    `what` is in it, as a log line may say. The connection may be used by any thread, one at a
    time. Raises OSError and sqlite3.Error.
    """
    with _alone_in(path.parent):
        try:
            return _connect(path, schema)
        except sqlite3.OperationalError:
            raise  # locked, or a disk that fails: nothing is known to be wrong with the file
        except sqlite3.DatabaseError as error:
            log.warning("%s in %s is damaged and begins anew: %s", what, path, error)
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        return _connect(path, schema)


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


def _connect(path: Path, schema: str) -> sqlite3.Connection:
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.executescript(schema)
    connection.commit()
    return connection
