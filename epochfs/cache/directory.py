"""The cache's directory as a boundary: who owns it, who may enter, and that no link leads out.

::

    <directory>/v1/blobs, v1/partial    verified blobs, and those being downloaded (`cache.blobs`)
    <directory>/v1/tags.sqlite          when each tag got its digest (`tag_history`)
    <directory>/v1/answers.sqlite       what the registry said (`answers`)
    <directory>/v1/layers               indexes of the layers of images (`layers`)
    <directory>/v1/mounts               a locked file for each mount that uses the cache

`v1` is the format: a version of epochfs that needs another makes a directory of its own beside it,
and whatever lies beside `v1` is left alone.

The directory itself is the user's choice and may be reached through links. As sshd does with
`~/.ssh` (StrictModes), it is refused if it belongs to somebody else or others can write to it: they
could swap what is in it, and to mend it might take `/tmp` from everybody. That others can list it
does no harm, for everything below is ours, 0700 and 0600 whatever the umask, mended where it is
wider, and is entered one component at a time without following links.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import logging
import os
import secrets
import sqlite3
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from epochfs.errors import CacheFailure, printable

log = logging.getLogger(__name__)

FORMAT = "v1"
LAYERS = "layers"
READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW_FILE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_MOUNTS = "mounts"
_TOP_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_DIRECTORY_FLAGS = _TOP_FLAGS | os.O_NOFOLLOW
_OTHERS_WRITE = 0o022
_SQLITE_SUFFIXES = ("", "-wal", "-shm", "-journal")
_QUIET_SECONDS = 3600.0
_FAILING_SECONDS = 5.0
_MAX_USER_BYTES = 64 * 1024

_SHORT = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ESTALE,
    }
)
_SHORT_SQLITE = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_NOMEM,
    }
)


class CacheDirectory:
    """The directory of a cache at `path`, which need not exist yet.

    One that is `off` is never touched: it fails as one on a full disk does, and so is done without.
    """

    def __init__(self, path: Path, *, off: bool = False) -> None:
        self.path = path
        self.off = off
        self._quiet_until = 0.0
        self._failing_until = 0.0

    @property
    def fails_now(self) -> bool:
        """Whether something could not be cached a moment ago."""
        return self.off or time.monotonic() < self._failing_until

    def report(self, problem: object) -> None:
        """Log that something cannot be cached: one warning, whatever else fails within the hour.

        Readers are not affected, so there is no more to say.
        """
        if self.off:
            return
        now = time.monotonic()
        level = logging.DEBUG if now < self._quiet_until else logging.WARNING
        self._quiet_until = now + _QUIET_SECONDS
        self._failing_until = now + _FAILING_SECONDS
        log.log(
            level,
            "the cache '%s' cannot keep everything (%s): what it lacks is read from the registry "
            "each time; see that its disk has room and can be written to, or choose another "
            "--cache-dir",
            printable(self.path),
            printable(problem),
        )

    def check(self) -> None:
        """Raise OSError where a directory that exists is not ours alone to write to."""
        os.close(self._open_top())

    @contextlib.contextmanager
    def opened(self, *parts: str, make: bool = True) -> Iterator[int]:
        """Open a directory below `v1` as `open` does, and close it at the end."""
        fd = self.open(*parts, make=make)
        try:
            yield fd
        finally:
            os.close(fd)

    def open(self, *parts: str, make: bool = True) -> int:
        """Open (and `make`, where missing) a directory below `v1`; the caller closes it.

        Raises OSError, also where the cache is not ours alone to write to.
        """
        fd = self._open_top()
        for part in (FORMAT, *parts):
            parent = fd
            try:
                fd = os.open(part, _DIRECTORY_FLAGS, dir_fd=parent)
            except FileNotFoundError:
                if not make:
                    raise
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=parent)
                    os.chmod(part, 0o700, dir_fd=parent)
                fd = os.open(part, _DIRECTORY_FLAGS, dir_fd=parent)
            finally:
                os.close(parent)
            try:
                status = os.fstat(fd)
                if status.st_uid != os.geteuid():
                    raise PermissionError(f"its directory {part} belongs to user {status.st_uid}")
                if stat.S_IMODE(status.st_mode) != 0o700:
                    os.fchmod(fd, 0o700)
            except BaseException:
                os.close(fd)
                raise
        return fd

    def status(self, kind: str, algorithm: str, name: str) -> os.stat_result | None:
        """Return the status of a file below `v1`; None if there is none to be had."""
        with contextlib.suppress(OSError), self.opened(kind, algorithm, make=False) as directory:
            return os.stat(name, dir_fd=directory, follow_symlinks=False)
        return None

    @contextlib.contextmanager
    def alone(self) -> Iterator[int]:
        """Open `v1`, and keep out other processes that do the same until the end."""
        with self.opened() as fd:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd

    def private_file(self, name: str) -> Path | None:
        """Return the path of an SQLite file in `v1`, made where it is missing, 0600 and ours.

        None, which is reported, where the disk has no room for it. SQLite opens files by path and
        follows links. So that there is none, whatever has the name or a companion's is checked
        here, in a directory nobody else can write to. Raises CacheFailure.
        """
        with self.short_reported(), cache_errors(f"opening {name}"), self.opened() as directory:
            for suffix in _SQLITE_SUFFIXES:
                _check_file(directory, f"{name}{suffix}", create=not suffix)
            return self.path / FORMAT / name
        return None

    @contextlib.contextmanager
    def short_reported(self) -> Iterator[None]:
        """End the block at a CacheFailure that is a shortage, and report that; raise any other."""
        try:
            yield
        except CacheFailure as error:
            if not is_shortage(error):
                raise
            self.report(error)

    def _open_top(self) -> int:
        if self.off:
            raise OSError(errno.EROFS, "the cache is off")
        try:
            fd = os.open(self.path, _TOP_FLAGS)
        except FileNotFoundError:
            self.path.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o700)
            fd = os.open(self.path, _TOP_FLAGS)
        status = os.fstat(fd)
        if status.st_uid == os.geteuid() and not status.st_mode & _OTHERS_WRITE:
            return fd
        os.close(fd)
        if status.st_uid != os.geteuid():
            raise PermissionError(f"it belongs to user {status.st_uid}")
        raise PermissionError("others can write to it: chmod go-w it, or name a directory in it")


def is_shortage(error: BaseException | None) -> bool:
    """Whether the machine has run short of something: room, descriptors, a writable disk.

    Then epochfs does without the cache. Anything else that goes wrong when it is opened is for the
    user to mend, such as a directory that belongs to somebody else.
    """
    if isinstance(error, sqlite3.Error):
        # The upper bits of an extended code only refine the lower ones.
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _SHORT_SQLITE
    if isinstance(error, OSError):
        return error.errno in _SHORT
    return isinstance(error, CacheFailure) and is_shortage(error.__cause__)


def unnamed_file(directory: int) -> int:
    """Open a new file without a name, which ends with its last descriptor."""
    name = f"unnamed.{secrets.token_hex(8)}"
    fd = os.open(name, NEW_FILE_FLAGS, 0o600, dir_fd=directory)
    try:
        os.unlink(name, dir_fd=directory)
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_ours(status: os.stat_result) -> bool:
    """Whether a file is a regular one that nobody else could have written to."""
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_uid == os.geteuid()
        and not status.st_mode & _OTHERS_WRITE
    )


def unlink(directory: int, name: str) -> None:
    """Remove a name, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


@contextlib.contextmanager
def cache_errors(doing: str) -> Iterator[None]:
    """Turn an OSError of the local disk into CacheFailure."""
    try:
        yield
    except OSError as error:
        raise CacheFailure(f"{doing}: {error.strerror or error}") from error


def _check_file(directory: int, name: str, *, create: bool) -> None:
    """Raise PermissionError unless a file is ours, and mend its mode; make it with `create`.

    One that exists is not opened: closing it would drop the locks SQLite has on it elsewhere in
    this process (fcntl(2)).
    """
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        if create:
            with contextlib.suppress(FileExistsError):
                fd = os.open(name, NEW_FILE_FLAGS, 0o600, dir_fd=directory)
                os.fchmod(fd, 0o600)
                os.close(fd)
        return
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        raise PermissionError(f"{name} is no regular file of ours: remove it")
    if stat.S_IMODE(status.st_mode) != 0o600:
        os.chmod(name, 0o600, dir_fd=directory)


# ---- the mounts that use a cache ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CacheUser:
    """A mount: its process, where it is, what it shows, and its maximum cache size in bytes.

    Its file, `v1/mounts/<pid>.<random>`, is locked while it lives and removed when it ends. One
    that nobody has locked is left from a mount that was killed, and the next to see it removes it.
    """

    pid: int
    mountpoint: str
    registry: str
    size_limit: int


@contextlib.contextmanager
def announced(directory: CacheDirectory, user: CacheUser) -> Iterator[None]:
    """Let others see that `user` uses the cache, until the end.

    Files of mounts that were killed are removed first. Raises CacheFailure.
    """
    name = f"{user.pid}.{secrets.token_hex(4)}"
    with contextlib.ExitStack() as closing:
        with cache_errors("announcing the mount"), directory.alone():
            users(directory)
            with directory.opened(_MOUNTS) as mounts:
                fd = os.open(name, NEW_FILE_FLAGS, 0o600, dir_fd=mounts)
            closing.callback(os.close, fd)
            closing.callback(_remove_user, directory, name)
            os.fchmod(fd, 0o600)
            os.write(fd, json.dumps(dataclasses.asdict(user)).encode())
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield


def _remove_user(directory: CacheDirectory, name: str) -> None:
    with contextlib.suppress(OSError), directory.opened(_MOUNTS) as mounts:
        os.unlink(name, dir_fd=mounts)


def users(directory: CacheDirectory) -> list[CacheUser]:
    """Return the mounts that use the cache now. Called within `directory.alone`, so that no file is
    seen half made."""
    found: list[CacheUser | None] = []
    with (
        contextlib.suppress(FileNotFoundError),
        directory.opened(_MOUNTS, make=False) as mounts,
        os.scandir(mounts) as files,
    ):
        found = [_user(mounts, name) for name in sorted(file.name for file in files)]
    return [user for user in found if user is not None]


def _user(mounts: int, name: str) -> CacheUser | None:
    """Return who holds a file; None if nobody does, and then the file is removed if it can be."""
    try:
        fd = os.open(name, READ_FLAGS | os.O_NONBLOCK, dir_fd=mounts)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _parse(os.read(fd, _MAX_USER_BYTES))
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
