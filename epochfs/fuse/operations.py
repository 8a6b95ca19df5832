"""The FUSE operations: translates between the binding and `vfs`, and decides nothing.

The only importer of the binding, mfusepy or fusepy, and of errno. Importing this module raises
OSError or AttributeError where no libfuse can be loaded. The binding calls these methods from many
threads; no exception but the binding's own OSError leaves them.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from epochfs.config import MAX_READ
from epochfs.errors import (
    CacheFailure,
    ContentMismatch,
    CredentialsUnavailable,
    DeadlineExceeded,
    Denied,
    EpochfsError,
    InvalidName,
    MountFailure,
    NameTooLong,
    NeverThere,
    NotFound,
    ProtocolViolation,
    ReadOnly,
    TlsFailure,
    TooLarge,
    Unavailable,
    UnconfirmedNotFound,
    Unsupported,
    UsageError,
    Vanished,
    printable,
)
from epochfs.fuse.mountinfo import mounted_on
from epochfs.fuse.passthrough import Passthrough
from epochfs.oci.names import NAME_MAX
from epochfs.vfs.filesystem import FileSystem, Listing
from epochfs.vfs.node import Attr, inode

try:
    import mfusepy as binding
except ModuleNotFoundError:
    import fuse as binding

log = logging.getLogger(__name__)

_CAP_PASSTHROUGH = 1 << 29
"""FUSE_CAP_PASSTHROUGH of libfuse 3.17's fuse_common.h."""

_MAX_BACKGROUND = 40
"""How many READs ahead the kernel has under way, each of which takes a MiB of memory until it is
answered. While so many wait for a slow registry, what is cached is not read ahead either."""

_MAX_THREADS = 128
_MAX_IDLE_THREADS = 16
_BLOCK = 512

_DOTS = 2
"""How many entries a directory has before what is listed: `.` and `..`."""

_DirectoryEntry = tuple[str, dict[str, int], int]
"""A name, what is known of its attributes, and the offset of the entry behind it."""

ERRNO: dict[type[EpochfsError], int] = {
    NotFound: errno.ENOENT,
    UnconfirmedNotFound: errno.ENOENT,
    InvalidName: errno.ENOENT,
    NameTooLong: errno.ENAMETOOLONG,
    Denied: errno.EACCES,
    CredentialsUnavailable: errno.EACCES,
    ReadOnly: errno.EROFS,
    DeadlineExceeded: errno.ETIMEDOUT,
    ContentMismatch: errno.EIO,
    ProtocolViolation: errno.EIO,
    Unavailable: errno.EIO,
    TlsFailure: errno.EIO,
    Unsupported: errno.EIO,
    CacheFailure: errno.EIO,
    Vanished: errno.ESTALE,
    NeverThere: errno.ESTALE,
    TooLarge: errno.EFBIG,
    UsageError: errno.EINVAL,
    MountFailure: errno.EIO,
}
"""The one table from errors to errno; every class of `errors` has a row."""

_OF_NAMES = (errno.ENOENT, errno.ENAMETOOLONG)
"""What nobody need be told of but who asked."""

_Operation = TypeVar("_Operation", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class FuseOptions:
    """How to mount: `kernel_ttl` in seconds, `extra` as `name` or `name=value` for libfuse."""

    fsname: str
    kernel_ttl: float
    uid: int
    gid: int
    allow_other: bool = False
    extra: tuple[str, ...] = ()


def library_version() -> tuple[int, int]:
    """Return the version of the libfuse that was loaded."""
    if hasattr(binding, "fuse_version_major"):
        return binding.fuse_version_major, binding.fuse_version_minor
    return 2, 9


def serve(
    filesystem: FileSystem,
    mountpoint: Path,
    options: FuseOptions,
    passthrough: Passthrough,
    on_ready: Callable[[], None],
) -> None:
    """Mount and answer the kernel until unmounted; `on_ready` is called once the mount stands.

    Raises MountFailure when libfuse cannot mount, after it said why on stderr.
    """
    adapter = EpochOperations(filesystem, mountpoint, options, passthrough, on_ready)
    try:
        _Fuse(adapter, str(mountpoint), raw_fi=True, **_libfuse_options(options))
    except RuntimeError as error:
        raise MountFailure(f"libfuse could not mount on {mountpoint} (code {error})") from None


def _libfuse_options(options: FuseOptions) -> dict[str, object]:
    values: dict[str, object] = {
        "foreground": True,
        "fsname": options.fsname.replace(",", "\\,"),
        "subtype": "epochfs",
        "ro": True,
        "nosuid": True,
        "nodev": True,
        "use_ino": True,
        "allow_other": options.allow_other,
        "entry_timeout": options.kernel_ttl,
        "attr_timeout": options.kernel_ttl,
        "negative_timeout": 0,
    }
    if library_version() >= (3, 0):
        values["max_read"] = MAX_READ
    if library_version() >= (3, 12):
        # Ten by default, which ten readers of a slow registry would use up.
        values["max_threads"] = _MAX_THREADS
        values["max_idle_threads"] = _MAX_IDLE_THREADS
    for word in options.extra:
        name, is_pair, value = word.partition("=")
        values[name] = value if is_pair else True
    return values


def errno_of(error: EpochfsError) -> int:
    """Return the errno for an error, by its class or the nearest base of it in `ERRNO`."""
    for kind in type(error).__mro__:
        if kind in ERRNO:
            return ERRNO[kind]
    return errno.EIO


def _translated(operation: _Operation) -> _Operation:
    """Let nothing but FuseOSError leave a callback: an OSError of another make becomes EPERM."""

    @functools.wraps(operation)
    def wrapper(self: EpochOperations, path: str, *arguments: Any) -> Any:  # noqa: ANN401
        try:
            return operation(self, path, *arguments)
        except EpochfsError as error:
            number = errno_of(error)
            level = logging.DEBUG if number in _OF_NAMES else logging.WARNING
            name = errno.errorcode[number]
            log.log(level, "%s %s: %s: %s", operation.__name__, printable(path), name, error)
        except binding.FuseOSError:
            raise
        except Exception:
            number = errno.EIO
            log.exception("%s %s: unforeseen failure", operation.__name__, printable(path))
        raise binding.FuseOSError(number)

    return wrapper  # type: ignore[return-value]


class EpochOperations(binding.Operations):  # type: ignore[misc]
    """What libfuse calls. Paths are text, times are nanoseconds, file infos are the C structs."""

    use_ns = True

    def __init__(
        self,
        filesystem: FileSystem,
        mountpoint: Path,
        options: FuseOptions,
        passthrough: Passthrough,
        on_ready: Callable[[], None],
    ) -> None:
        self._filesystem = filesystem
        self._mountpoint = mountpoint
        self._options = options
        self._passthrough = passthrough
        self._on_ready = on_ready

    def init_with_config(self, connection: Any, config: Any) -> None:  # noqa: ANN401
        """Ask the kernel for large and many reads. Called by mfusepy once the mount stands."""
        if connection is not None:
            if hasattr(connection, "max_read"):
                connection.max_read = MAX_READ
            connection.max_background = _MAX_BACKGROUND
            connection.congestion_threshold = _MAX_BACKGROUND
            if self._passthrough.possible:
                self._ask_for_passthrough(connection)
        self.init("/")

    def _ask_for_passthrough(self, connection: Any) -> None:  # noqa: ANN401
        if not connection.capable_ext & _CAP_PASSTHROUGH:
            self._passthrough.refuse("this kernel was built without (CONFIG_FUSE_PASSTHROUGH)")
            return
        connection.want_ext |= _CAP_PASSTHROUGH
        connection.max_backing_stack_depth = self._passthrough.stack_depth
        self._passthrough.start(_session_device())

    def init(self, path: str) -> None:
        """Begin to settle. Called by fusepy; the mount answers nothing before this returns."""
        threading.Thread(target=self._settle, name="settle", daemon=True).start()

    def _settle(self) -> None:
        """Wait for the mount's first answer, let the kernel read ahead, and tell that it stands."""
        try:
            self._mountpoint.lstat()
        except OSError as error:
            log.debug("the mount ended before it answered: %s", error)
            return
        raise_read_ahead(self._mountpoint)
        self._on_ready()

    @_translated
    def getattr(self, path: str, fi: Any = None) -> dict[str, int]:  # noqa: ANN401
        """stat(2)."""
        return self._stat(path, self._filesystem.getattr(path))

    def opendir(self, path: str) -> int:
        """Open a directory; what it lists is asked for when it is read."""
        return self._filesystem.opendir()

    @_translated
    def readdir_with_offset(self, path: str, offset: int, fh: int) -> Iterator[_DirectoryEntry]:
        """Names, types and inode numbers of a directory, from the `offset` of one of them on.

        Called by mfusepy, again and again, each time for what fits into a buffer of the kernel's:
        without offsets libfuse would keep 200 bytes a name while the directory is open.
        """
        listing = self._filesystem.readdir(path, fh, anew=offset == 0)
        if listing.error is not None and offset >= _DOTS + len(listing):
            raise listing.error  # behind the last entry, as readdir(3) allows: the names were given
        return _shown(path, listing, offset)

    @_translated
    def readdir(self, path: str, fh: int) -> Iterator[_DirectoryEntry]:
        """All of a directory at once. Called by fusepy, which does not tell the offset."""
        listing = self._filesystem.readdir(path, fh, anew=True)
        if listing.error is not None:
            raise listing.error
        return ((name, attributes, 0) for name, attributes, _ in _shown(path, listing, 0))

    @_translated
    def releasedir(self, path: str, fh: int) -> int:
        """Close a directory."""
        self._filesystem.releasedir(fh)
        return 0

    @_translated
    def readlink(self, path: str) -> str:
        """Where a link points."""
        return self._filesystem.readlink(path)

    @_translated
    def open(self, path: str, fi: Any) -> int:  # noqa: ANN401
        """Open for reading; the kernel has refused everything else, the mount being read-only."""
        if fi.flags & os.O_ACCMODE != os.O_RDONLY:
            raise ReadOnly(f"{path} cannot be written to")
        file = self._filesystem.open(path)
        fi.fh = file.handle
        fi.direct_io = file.direct_io
        number = self._passthrough.open(path, file.handle, file.backing)
        if number:
            _set_backing_id(fi, number)
        else:
            # Beside a backing file the kernel refuses it: there are no pages to keep.
            fi.keep_cache = file.keep_cache
        return 0

    @_translated
    def read(self, path: str, view: memoryview, offset: int, fi: Any) -> int:  # noqa: ANN401
        """Read into the kernel's buffer, called by `_Fuse.read`; return how much there was."""
        return self._filesystem.read_into(fi.fh, view, offset)

    @_translated
    def release(self, path: str, fi: Any) -> int:  # noqa: ANN401
        """Close."""
        self._passthrough.release(fi.fh)
        self._filesystem.release(fi.fh)
        return 0

    @_translated
    def listxattr(self, path: str) -> list[str]:
        """Names of the extended attributes."""
        return list(self._filesystem.xattrs(path))

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        """One extended attribute; ENODATA where it is not set."""
        try:
            return self._getxattr(path, name)
        except binding.FuseOSError as error:
            if error.errno == errno.ENOENT:
                raise binding.FuseOSError(errno.ENODATA) from None
            raise

    @_translated
    def _getxattr(self, path: str, name: str) -> bytes:
        value = self._filesystem.xattr(path, name)
        return value if isinstance(value, bytes) else value.encode(errors="backslashreplace")

    @_translated
    def statfs(self, path: str) -> dict[str, int]:
        """A file system that has no blocks of its own, as /proc says; never asks the registry."""
        return {"f_bsize": 4096, "f_frsize": 4096, "f_namemax": NAME_MAX}

    def _stat(self, path: str, attr: Attr) -> dict[str, int]:
        return {
            "st_mode": attr.mode,
            "st_ino": inode(attr.identity or path),
            "st_nlink": attr.links,
            "st_uid": self._options.uid if attr.uid is None else attr.uid,
            "st_gid": self._options.gid if attr.gid is None else attr.gid,
            "st_rdev": attr.rdev,
            "st_size": attr.size,
            "st_blocks": -(-attr.size // _BLOCK),
            "st_blksize": MAX_READ,
            "st_atime": attr.time_ns,
            "st_mtime": attr.time_ns,
            "st_ctime": attr.time_ns,
        }


def _shown(path: str, listing: Listing, offset: int) -> Iterator[_DirectoryEntry]:
    """Yield a directory's entries from an offset on, each with the offset of the next."""
    if offset < 1:
        yield ".", {"st_mode": 0o040555, "st_ino": inode(path)}, 1
    if offset < _DOTS:
        yield "..", {}, _DOTS
    for number in range(max(0, offset - _DOTS), len(listing)):
        entry = listing[number]
        yield entry.name, {"st_mode": entry.mode, "st_ino": entry.inode}, number + _DOTS + 1


class _Fuse(binding.FUSE):  # type: ignore[misc]
    """The binding's dispatcher, with a `read` that copies nothing.

    The binding's own takes bytes from the operations and copies them into libfuse's buffer. Here
    the file is read straight into that buffer, which halves the time of a warm read.
    """

    def read(self, path: bytes | None, buffer: Any, size: int, offset: int, fip: Any) -> int:  # noqa: ANN401
        """Called by libfuse with a buffer of `size` bytes; returns how many were filled."""
        address = ctypes.addressof(buffer.contents) if size else 0
        view = memoryview((ctypes.c_char * size).from_address(address)).cast("B")
        shown = path.decode("utf-8", "surrogateescape") if path else "an open file"
        return self.operations.read(shown, view, offset, fip.contents)  # type: ignore[no-any-return]


def _session_device() -> int:
    """Return the descriptor of /dev/fuse of the session whose callback this thread is in."""
    libfuse = binding._libfuse
    libfuse.fuse_get_session.argtypes = [ctypes.c_void_p]
    libfuse.fuse_get_session.restype = ctypes.c_void_p
    libfuse.fuse_session_fd.argtypes = [ctypes.c_void_p]
    session = libfuse.fuse_get_session(libfuse.fuse_get_context().contents.fuse)
    return libfuse.fuse_session_fd(session)  # type: ignore[no-any-return]


def _set_backing_id(fi: Any, number: int) -> None:  # noqa: ANN401
    """Set what libfuse 3.17 has in `struct fuse_file_info` behind the 32 bits of `poll_events`.

    To mfusepy 3.1 both are one field of 64 bits.
    """
    offset = type(fi).poll_events.offset + ctypes.sizeof(ctypes.c_uint32)
    ctypes.c_int32.from_buffer(fi, offset).value = number


def raise_read_ahead(mountpoint: Path) -> None:
    """Let the kernel read ahead in pieces of `MAX_READ`, where that is permitted.

    Its default of 128 KiB bounds every sequential read. Only root may raise it, and only once the
    mount has answered: the kernel sets the default when it has the answer to FUSE_INIT.
    """
    try:
        mount = mounted_on(mountpoint.absolute())
        if mount is not None:
            limit = Path(f"/sys/class/bdi/{mount.device}/read_ahead_kb")
            limit.write_text(f"{MAX_READ // 1024}\n")
    except OSError as error:
        log.debug("cannot raise the kernel's read-ahead: %s", error)
