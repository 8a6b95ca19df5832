"""Which mounts use a cache: each keeps a file there that says who it is, locked while it lives.

::

    <directory>/v1/mounts/<pid>.<random>

A file that nobody has locked is left from a mount that was killed, and removed by whoever comes
upon it. Files are made and looked at in `CacheDirectory.alone`, so that none is met half made.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import secrets
from dataclasses import dataclass

from epochfs.cachedir import CacheDirectory, cache_errors

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


def announce(directory: CacheDirectory, user: CacheUser) -> int:
    """Let others see that `user` uses the cache, until the returned descriptor is closed.

    Raises CacheFailure.
    """
    text = json.dumps(dataclasses.asdict(user)).encode()
    name = f"{user.pid}.{secrets.token_hex(4)}"
    with (
        cache_errors("announcing the mount"),
        directory.alone(),
        directory.opened(_MOUNTS) as mounts,
    ):
        fd = os.open(name, _NEW_FLAGS, 0o600, dir_fd=mounts)
        try:
            os.fchmod(fd, 0o600)
            os.write(fd, text)
            fcntl.flock(fd, fcntl.LOCK_EX)
        except BaseException:
            os.close(fd)
            raise
    return fd


def users(directory: CacheDirectory) -> list[CacheUser]:
    """Return the mounts that use the cache now. The caller is in `directory.alone`."""
    with directory.opened(_MOUNTS) as mounts:
        with os.scandir(mounts) as files:
            names = sorted(file.name for file in files)
        found = [_user(mounts, name) for name in names]
    return [user for user in found if user is not None]


def _user(mounts: int, name: str) -> CacheUser | None:
    """Return who holds a file; None, and the file is gone, where nobody does."""
    try:
        fd = os.open(name, _READ_FLAGS, dir_fd=mounts)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _parse(os.read(fd, _MOST_BYTES))
    else:
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
