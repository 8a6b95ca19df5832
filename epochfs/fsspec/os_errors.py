"""Errors as Python's own: `FileNotFoundError`, `PermissionError`, `TimeoutError`, `OSError`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from epochfs.errors import EpochfsError, ReadOnly
from epochfs.fuse import errnos


def os_error(error: EpochfsError, path: str) -> OSError:
    """Return an error as the OSError with its errno, of the subclass that Python has for that."""
    return OSError(errnos.errno_of(error), str(error), path)


@contextlib.contextmanager
def translated(path: str) -> Iterator[None]:
    """Raise each EpochfsError as an OSError."""
    try:
        yield
    except EpochfsError as error:
        raise os_error(error, path) from error


def read_only(path: str) -> OSError:
    """Return the error of every write."""
    return os_error(ReadOnly("this file system is read-only"), path)


def is_directory(path: str) -> OSError:
    """Return the error of reading a directory as a file."""
    return OSError(errnos.IS_DIRECTORY, "is a directory", path)


def too_many_links(path: str) -> OSError:
    """Return the error of a path that leads through links without end."""
    return OSError(errnos.LOOP, "too many links", path)
