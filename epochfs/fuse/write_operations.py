"""The FUSE operations of a mount that can be written to: they only translate for `vfs.writing`.

Importing this module fails where `libfuse` cannot be imported. The methods are called from many
threads, and raise only FuseOSError. A path is None where the file was removed while it is open.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from epochfs.errors import NotPermitted, Unsupported, UsageError, Vanished
from epochfs.fuse import errnos
from epochfs.fuse.libfuse import Answer, FuseOptions, FuseOSError, caller, copy_writes_once
from epochfs.fuse.operations import DirectoryEntry, EpochOperations, translated
from epochfs.fuse.passthrough import Passthrough
from epochfs.fuse.stat import Stat
from epochfs.vfs.filesystem import OpenFile
from epochfs.vfs.writing.writable import WritableFileSystem

_NO_REPLACE = 1 << 0
"""RENAME_NOREPLACE of renameat2(2)."""

_KEEP_SIZE = 1 << 0
"""FALLOC_FL_KEEP_SIZE of fallocate(2)."""

_NOW = (1 << 30) - 1
_OMIT = (1 << 30) - 2
"""UTIME_NOW and UTIME_OMIT of utimensat(2), which come with 0 seconds."""

_BLOCK_SIZE = 4096


class WritableOperations(EpochOperations):
    """The callbacks; see `EpochOperations` for the types."""

    flag_nullpath_ok = True
    """libfuse 2 passes no path of a file that was removed, instead of failing."""

    def __init__(
        self,
        filesystem: WritableFileSystem,
        mountpoint: Path,
        options: FuseOptions,
        passthrough: Passthrough,
        on_ready: Callable[[], None],
    ) -> None:
        super().__init__(filesystem, mountpoint, options, passthrough, on_ready)
        self._writable = filesystem

    def init_with_config(self, connection: Any, config: Any) -> None:  # noqa: ANN401
        """Configure the connection. Called by mfusepy while the mount is being made."""
        if connection is not None:
            copy_writes_once(connection)
        super().init_with_config(connection, config)

    @translated()
    def getattr(self, path: str | None, fi: Any = None) -> Stat:  # noqa: ANN401
        """stat(2), and fstat(2) of what is being written."""
        attr = self._writable.getattr_open(fi.fh) if fi is not None else None
        if attr is None:
            if path is None:
                raise Vanished("the file was removed")
            attr = self._writable.getattr(path)
        return self._stat(path or f"removed while open: {fi.fh}", attr)

    @translated()
    def statfs(self, path: str) -> dict[str, int]:
        """Says what room there is for files that are being written: that of the cache's disk."""
        total, free = (size // _BLOCK_SIZE for size in self._writable.room())
        return {**super().statfs(path), "f_blocks": total, "f_bfree": free, "f_bavail": free}

    @translated()
    def readlink(self, path: str) -> str:
        """Where a link points."""
        target = self._writable.readlink(path)
        self._writable.followed_by(path, target, caller())
        return target

    # ---- files -------------------------------------------------------------------------------

    @translated()
    def create(self, path: str, mode: int, fi: Any) -> int:  # noqa: ANN401
        """Create a file and open it for writing. One that nobody may read holds a place, as tar
        has it for links that it makes last."""
        self._writable.changed_by(path, caller())
        file = self._writable.create(path, placeholder=not stat.S_IMODE(mode))
        return self._opened(file, fi)

    @translated()
    def open(self, path: str, fi: Any) -> int:  # noqa: ANN401
        """Open for reading or writing."""
        truncate = bool(fi.flags & os.O_TRUNC)
        if fi.flags & os.O_ACCMODE == os.O_RDONLY and not truncate:
            return super().open(path, fi)
        return self._opened(self._writable.open_to_write(path, truncate=truncate), fi)

    def _opened(self, file: OpenFile, fi: Any) -> int:  # noqa: ANN401
        fi.fh = file.handle
        fi.direct_io = file.direct_io
        return 0

    @translated()
    def write(self, path: str | None, view: memoryview, offset: int, fi: Any) -> int:  # noqa: ANN401
        """Write from libfuse's buffer; return the number of bytes."""
        self._writable.write(fi.fh, view, offset)
        return len(view)

    @translated()
    def truncate(self, path: str, length: int, fi: Any = None) -> int:  # noqa: ANN401
        """truncate(2) and ftruncate(2)."""
        if fi is None:
            self._writable.truncate_path(path, length)
        else:
            self._writable.truncate(fi.fh, length)
        return 0

    @translated()
    def fallocate(self, path: str | None, mode: int, offset: int, length: int, fi: Any) -> int:  # noqa: ANN401
        """Reserve room; punching holes and the like cannot be done."""
        if mode & ~_KEEP_SIZE:
            raise FuseOSError(errnos.NOT_OFFERED)
        self._writable.reserve(fi.fh, offset + length, extend=not mode)
        return 0

    @translated(refusals=logging.DEBUG)
    def flush(self, path: str | None, fi: Any) -> int:  # noqa: ANN401
        """close(2) of one of the descriptors of a file; the file system logs what it refuses."""
        self._writable.flush(fi.fh)
        return 0

    @translated()
    def fsync(self, path: str | None, datasync: int, fi: Any) -> int:  # noqa: ANN401
        """fsync(2)."""
        self._writable.fsync(fi.fh)
        return 0

    # ---- names -------------------------------------------------------------------------------

    @translated()
    def readdir_with_offset(
        self, path: str, offset: int, reader: int, flags: int = 0
    ) -> Iterable[DirectoryEntry] | Answer:
        """List a directory: who made it may look at it."""
        if offset == 0:
            self._writable.listed_by(path, caller())
        return super().readdir_with_offset(path, offset, reader, flags)

    @translated()
    def readdir(self, path: str, fh: int) -> Iterator[tuple[str, dict[str, int], int]]:
        """All of a directory at once."""
        self._writable.listed_by(path, caller())
        return super().readdir(path, fh)

    @translated()
    def fsyncdir(self, path: str | None, datasync: int, fh: int) -> int:
        """fsync(2) of a directory: of all that is below it."""
        if path is not None:
            self._writable.fsyncdir(path)
        return 0

    @translated()
    def mknod(self, path: str, mode: int, device: int) -> int:
        """mknod(2), which can make regular files alone."""
        if not stat.S_ISREG(mode):
            raise NotPermitted("a registry has no devices, sockets and pipes")
        file = self._writable.create(path)
        try:
            self._writable.flush(file.handle)
        finally:
            self._writable.release(file.handle)
        return 0

    @translated()
    def link(self, path: str, existing: str) -> int:
        """link(2), which cannot be done."""
        raise NotPermitted("a registry has no hard links")

    @translated()
    def mkdir(self, path: str, mode: int) -> int:
        """mkdir(2)."""
        self._writable.changed_by(path, caller())
        self._writable.mkdir(path, caller())
        return 0

    @translated()
    def rmdir(self, path: str) -> int:
        """rmdir(2)."""
        self._writable.rmdir(path)
        return 0

    @translated()
    def unlink(self, path: str) -> int:
        """unlink(2)."""
        self._writable.unlink(path)
        return 0

    @translated()
    def symlink(self, path: str, target: str) -> int:
        """symlink(2): the binding passes the new name first."""
        self._writable.changed_by(path, caller())
        self._writable.symlink(target, path)
        return 0

    @translated()
    def rename(self, old: str, new: str, flags: int = 0) -> int:
        """rename(2) and renameat2(2), without RENAME_EXCHANGE."""
        if flags & ~_NO_REPLACE:
            raise UsageError(f"names cannot be exchanged (flags {flags:#x})")
        self._writable.changed_by(new, caller())
        self._writable.rename(old, new, replace=not flags)
        return 0

    # ---- what is accepted, and not kept ----------------------------------------------------------

    @translated()
    def chmod(self, path: str | None, mode: int) -> int:
        """chmod(2)."""
        return self._ignored(path)

    @translated()
    def chown(self, path: str | None, uid: int, gid: int) -> int:
        """chown(2)."""
        return self._ignored(path)

    def _ignored(self, path: str | None) -> int:
        if path is not None:
            self._writable.check_settable(path)
        return 0

    @translated()
    def utimens(self, path: str | None, times: tuple[int, int] | None) -> int:
        """utimensat(2)."""
        modified = _NOW if times is None else times[1]
        if path is None or modified == _OMIT:
            return self._ignored(path)
        self._writable.set_time(path, time.time_ns() if modified == _NOW else modified)
        return 0

    @translated()
    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
        """setxattr(2)."""
        return self._set_xattr(path, name)

    @translated()
    def removexattr(self, path: str, name: str) -> int:
        """removexattr(2)."""
        return self._set_xattr(path, name)

    def _set_xattr(self, path: str, name: str) -> int:
        try:
            self._writable.set_xattr(path, name)
        except Unsupported:
            # What every copy tool tries, and every file system without them says.
            raise FuseOSError(errnos.NOT_OFFERED) from None
        return 0
