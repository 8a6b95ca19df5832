"""Registers the mounts that use a cache: each keeps a file there, locked while it lives.

::

    <directory>/v1/mounts/<pid>.<random>

Who ends removes its file. One that nobody has locked is left from a mount that was killed, and is
removed by whoever comes upon it, the next mount at the latest. Files are made and looked at in
`CacheDirectory.alone`, so that none is met half made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from epochfs.cache.directory import CacheDirectory, cache_errors

_MOUNTS = "mounts"
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class CacheUser:
    """A mount: its process, where it is, what it shows, and how many bytes it lets be cached."""

    pid: int
    mountpoint: str
    registry: str
    size_limit: int


@contextlib.contextmanager
def announced(directory: CacheDirectory, user: CacheUser) -> Iterator[None]:
    """Let others see meanwhile that `user` uses the cache.

    Files of mounts that were killed are removed first. Raises CacheFailure.
    """
    name = f"{user.pid}.{secrets.token_hex(4)}"
    with cache_errors("announcing the mount"), directory.alone():
        users(directory)
        fd = _announce(directory, name, json.dumps(dataclasses.asdict(user)).encode())
    try:
        yield
    finally:
        with contextlib.suppress(OSError), directory.opened(_MOUNTS) as mounts:
            os.unlink(name, dir_fd=mounts)
        os.close(fd)


def _announce(directory: CacheDirectory, name: str, text: bytes) -> int:
    """Make a file with this text; return a descriptor that has it locked."""
    with directory.opened(_MOUNTS) as mounts:
        fd = os.open(name, _NEW_FLAGS, 0o600, dir_fd=mounts)
        try:
            os.fchmod(fd, 0o600)
            os.write(fd, text)
            fcntl.flock(fd, fcntl.LOCK_EX)
        except BaseException:
            os.close(fd)
            os.unlink(name, dir_fd=mounts)
            raise
    return fd


def users(directory: CacheDirectory) -> list[CacheUser]:
    """Return the mounts that use the cache now. The caller is in `directory.alone`."""
    found: list[CacheUser | None] = []
    with (
        contextlib.suppress(FileNotFoundError),
        directory.opened(_MOUNTS, make=False) as mounts,
        os.scandir(mounts) as files,
    ):
        found = [_user(mounts, name) for name in sorted(file.name for file in files)]
    return [user for user in found if user is not None]


def _user(mounts: int, name: str) -> CacheUser | None:
    """Return who holds a file; None where nobody does, and the file is removed if it can be."""
    try:
        fd = os.open(name, _READ_FLAGS, dir_fd=mounts)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _parse(os.read(fd, _MOST_BYTES))
    else:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=mounts)
        return None
    finally:
        os.close(fd)


def _parse(raw: bytes) -> CacheUser:
    """Return who a file says holds it; nameless if it does not say, for somebody does hold it."""
    try:
        said = json.loads(raw)
        return CacheUser(
            int(said["pid"]),
            str(said["mountpoint"]),
            str(said["registry"]),
            int(said["size_limit"]),
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return CacheUser(0, "?", "?", 0)
