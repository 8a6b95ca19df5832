"""Errors as Python's own: `FileNotFoundError`, `PermissionError`, `TimeoutError`, `OSError`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from epochfs.errors import EpochfsError
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
