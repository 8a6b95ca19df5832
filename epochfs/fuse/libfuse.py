"""libfuse, through its Python binding, and what the binding lacks, through ctypes and sysfs.

The only importer of the binding, mfusepy or fusepy. Importing this module raises OSError or
AttributeError where no libfuse can be loaded.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epochfs.config import MAX_READ
from epochfs.errors import MountFailure
from epochfs.fuse.memory import IN_FILE, Vector, allocate, free, view_of
from epochfs.fuse.mountinfo import mounted_on
from epochfs.fuse.passthrough import Passthrough
from epochfs.fuse.stat import Stat, fill
from epochfs.fuse.thread_states import ThreadStates

try:
    import mfusepy as binding
except ModuleNotFoundError:
    import fuse as binding

log = logging.getLogger(__name__)

FuseOSError = binding.FuseOSError
"""The only exception that may leave a callback; it takes an errno."""

Operations = binding.Operations
"""The base class of the callbacks."""

_CAP_PASSTHROUGH = 1 << 29
"""FUSE_CAP_PASSTHROUGH of libfuse 3.17's fuse_common.h."""

_CAP_SPLICE_READ = 1 << 9
"""FUSE_CAP_SPLICE_READ of libfuse's fuse_common.h."""

_CAP_SPLICE_WRITE = 1 << 7
"""FUSE_CAP_SPLICE_WRITE of libfuse's fuse_common.h."""

_LEAST_SPLICED = 128 * 1024
"""What is less is copied, in bytes. When its read-ahead fails, the kernel asks again page by page,
and these reads find another way where the cache's disk fails."""

_MAX_BACKGROUND = 40
"""How many read-ahead requests the kernel sends at a time, each of which holds a MiB of memory.
While so many wait for a slow registry, cached blobs are not read ahead either."""

_MAX_THREADS = 128
_MAX_IDLE_THREADS = 16
"""Of a mount that can be written to, where each thread may hold a MiB that was written."""

READDIR_PLUS = 1 << 0
"""FUSE_READDIR_PLUS of libfuse 3's fuse.h, a flag of `readdir`."""

_FILL_DIR_PLUS = 1 << 1
"""FUSE_FILL_DIR_PLUS, a flag of its filler."""

_LOOP_FAILED = "8"
"""What libfuse 3 returns if reading from the kernel failed, even at the end (fuse_main_real)."""


@dataclass(frozen=True, slots=True)
class FuseOptions:
    """How to mount: `kernel_ttl` in seconds, `extra` words for the kernel."""

    fsname: str
    kernel_ttl: float
    uid: int
    gid: int
    allow_other: bool = False
    extra: tuple[str, ...] = ()
    writable: bool = False


def library_version() -> tuple[int, int]:
    """Return the version of the libfuse that was loaded."""
    if hasattr(binding, "fuse_version_major"):
        return binding.fuse_version_major, binding.fuse_version_minor
    return 2, 9


def serve(operations: Any, mountpoint: Path, options: FuseOptions) -> None:  # noqa: ANN401
    """Mount, and have `operations` answer the kernel until unmounted.

    Raises MountFailure if libfuse cannot mount, which says why on stderr, and if the kernel ends
    the connection of a mount that still exists.
    """
    try:
        states = ThreadStates() if _keeps_threads(options) else None
        _Fuse(operations, str(mountpoint), states, **_libfuse_options(options))
    except RuntimeError as error:
        if str(error) == _LOOP_FAILED:
            if mounted_on(mountpoint.absolute()) is None:
                # An unmount may close the connection just as a thread begins to read from it.
                log.debug("%s was unmounted while it was read from", mountpoint)
                return
            raise MountFailure(
                f"the kernel ended the connection of the mount on {mountpoint}: unmount it"
            ) from None
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
        # The default of ten is used up by ten readers of a slow registry.
        values["max_threads"] = _MAX_THREADS
        values["max_idle_threads"] = _MAX_THREADS if _keeps_threads(options) else _MAX_IDLE_THREADS
    if options.writable:
        values = {**values, **_options_to_write(options)}
    return {**values, **dict.fromkeys(options.extra, True)}


def _keeps_threads(options: FuseOptions) -> bool:
    """Whether libfuse ends no thread while the mount lasts: those that idle are not too many."""
    return library_version() >= (3, 12) and not options.writable


def _options_to_write(options: FuseOptions) -> dict[str, object]:
    """Return what differs in a mount that can be written to."""
    values: dict[str, object] = {
        "ro": False,
        # A file that is removed while it is open is gone, and not renamed to .fuse_hidden….
        "hard_remove": True,
        # A name may be gone, or lead elsewhere, as soon as something else was written.
        "entry_timeout": 0,
        "attr_timeout": 0,
        # Those who may look at the mount may not all write with the credentials of its owner.
        "default_permissions": options.allow_other,
    }
    if library_version() < (3, 0):
        # In libfuse 3 these are the default, or set by `copy_writes_once`.
        values |= {"big_writes": True, "atomic_o_trunc": True, "no_splice_read": True}
    return values


KEEPS_LISTINGS = library_version() >= (3, 15)
"""Whether libfuse passes on that the kernel may keep a listing (before, only its low-level API)."""


class Answer:
    """A whole listing as libfuse takes it, with attributes, to be given any number of times."""

    __slots__ = ("_fills", "_names", "_stats")

    def __init__(self, entries: Sequence[tuple[str, Stat, int]]) -> None:
        """`entries` have a name, its attributes as far as known, and where the next begins."""
        self._names = [name.encode("utf-8", "surrogateescape") for name, _, _ in entries]
        self._stats = (binding.c_stat * len(entries))()
        self._fills = bytes(_FILL_DIR_PLUS if known.links else 0 for _, known, _ in entries)
        for stat, (_, known, _) in zip(self._stats, entries, strict=True):
            fill(stat, known)

    def __len__(self) -> int:
        return len(self._names)

    def give(self, buffer: int, filler: Any) -> int:  # noqa: ANN401
        """Fill libfuse's buffer, which has room for all."""
        entries = zip(self._names, self._stats, self._fills, strict=True)
        for following, (name, stat, fills) in enumerate(entries, start=1):
            filler(buffer, name, stat, following, fills)
        return 0


class _Fuse(binding.FUSE):  # type: ignore[misc]
    """The binding's dispatcher, with a `read` and a `write` that copy nothing.

    The binding's own copy bytes between the operations and libfuse's buffer. Here the file is read
    straight into that buffer, which halves the time of a warm read, and written straight from it.
    With `read_buf`, which libfuse calls instead of `read` where the binding has it, a large read is
    answered with a file, whose pages libfuse hands to the kernel without having them in memory.
    What the binding leaves out for libfuse 3 is passed on, too: the flags of a rename, the handle
    of a truncate, and what the kernel may remember of a directory.
    """

    def __init__(
        self,
        operations: Any,  # noqa: ANN401
        path: str,
        states: ThreadStates | None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        """Serve until unmounted; `states` are kept where no thread ends before."""
        self._states = states
        super().__init__(operations, path, raw_fi=True, **options)

    def _wrapper(self, method: Any, *arguments: Any) -> int:  # noqa: ANN401
        """Called by libfuse for every callback, with its `method` here."""
        if self._states is not None:
            self._states.keep()
        try:
            return method(*arguments) or 0
        except FuseOSError as error:
            return -error.errno  # type: ignore[no-any-return]
        except BaseException as error:
            return super()._wrapper(_raising(error))  # type: ignore[no-any-return]

    def fgetattr(self, path: bytes | None, buffer: Any, fip: Any) -> int:  # noqa: ANN401
        """Called by libfuse with a `struct stat` of zeros, to be filled."""
        handle = fip.contents if fip else None
        fill(buffer.contents, self.operations.getattr(_text(path), handle))
        return 0

    def opendir(self, path: bytes, fip: Any) -> int:  # noqa: ANN401
        """Called by libfuse; the kernel keeps the listing of a directory that cannot change."""
        if self.operations.opendir(_text(path)):
            info = fip.contents
            info.cache_readdir = info.keep_cache = 1
        return 0

    def readdir_fuse_2(self, path: bytes, buffer: Any, filler: Any, offset: int, fip: Any) -> int:  # noqa: ANN401
        """Called by libfuse 2, whose filler takes no flags."""
        return self.readdir_fuse_3(path, buffer, lambda *told: filler(*told[:4]), offset, fip, 0)

    def readdir_fuse_3(
        self,
        path: bytes,
        buffer: Any,  # noqa: ANN401
        filler: Any,  # noqa: ANN401
        offset: int,
        fip: Any,  # noqa: ANN401
        flags: int,
    ) -> int:
        """Called by libfuse 3, which keeps one `buffer` for each reader of a directory."""
        stat = binding.c_stat()
        entries = self.operations.readdir_with_offset(_text(path), offset, buffer, flags)
        if isinstance(entries, Answer):
            return entries.give(buffer, filler)
        for name, known, following in entries:
            fill(stat, known)
            fills = _FILL_DIR_PLUS if known.links else 0
            if filler(buffer, name.encode("utf-8", "surrogateescape"), stat, following, fills):
                break
        return 0

    def readlink(self, path: bytes, buffer: Any, size: int) -> int:  # noqa: ANN401
        """Called by libfuse with `size` bytes for the target and a zero."""
        target = self.operations.readlink(_text(path)).encode("utf-8", "surrogateescape")
        ctypes.memmove(buffer, target, min(len(target) + 1, size))  # bytes end with a zero
        return 0

    def read(self, path: bytes | None, buffer: Any, size: int, offset: int, fip: Any) -> int:  # noqa: ANN401
        """Called by libfuse with a buffer of `size` bytes; returns how many were filled."""
        view = view_of(ctypes.addressof(buffer.contents) if size else 0, size)
        return self.operations.read(_text(path), view, offset, fip.contents)  # type: ignore[no-any-return]

    def read_buf(self, path: bytes | None, answer: Any, size: int, offset: int, fip: Any) -> int:  # noqa: ANN401
        """Called by libfuse, which takes over what it is given: a file's bytes, or memory's."""
        where = None
        if size >= _LEAST_SPLICED:
            where = self.operations.read_buf(_text(path), offset, size, fip.contents)
        vector = Vector.from_address(allocate(ctypes.sizeof(Vector)))
        ctypes.memset(ctypes.addressof(vector), 0, ctypes.sizeof(Vector))
        vector.count = 1
        if where is not None:
            vector.flags, vector.position = IN_FILE, offset
            vector.fd, vector.size = where
        else:
            vector.memory = allocate(size)
            try:
                view = view_of(vector.memory, size)
                vector.size = self.operations.read(_text(path), view, offset, fip.contents)
            except BaseException:
                free(vector.memory)
                free(ctypes.addressof(vector))
                raise
        ctypes.c_void_p.from_buffer(answer.contents).value = ctypes.addressof(vector)
        return 0

    def write(self, path: bytes | None, buffer: Any, size: int, offset: int, fip: Any) -> int:  # noqa: ANN401
        """Called by libfuse with `size` bytes; returns how many were written: all."""
        view = view_of(ctypes.addressof(buffer.contents) if size else 0, size)
        return self.operations.write(_text(path), view, offset, fip.contents)  # type: ignore[no-any-return]

    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
        """Called by libfuse 3."""
        return self.operations.rename(_text(old), _text(new), flags)  # type: ignore[no-any-return]

    def truncate_fuse_3(self, path: bytes | None, length: int, fip: Any) -> int:  # noqa: ANN401
        """Called by libfuse 3, with a handle for ftruncate(2)."""
        handle = fip.contents if fip else None
        return self.operations.truncate(_text(path), length, handle)  # type: ignore[no-any-return]


def _text(path: bytes | None) -> str | None:
    return None if path is None else path.decode("utf-8", "surrogateescape")


def _raising(error: BaseException) -> Callable[[], int]:
    """Return a callback that raises an error, for the binding to handle in its way."""

    def callback() -> int:
        raise error

    return callback


def copy_writes_once(connection: Any) -> None:  # noqa: ANN401
    """Have libfuse read what is written straight into its buffer.

    It would otherwise pass it on through a pipe, and copy it out of that into new memory. See
    `configure` for `connection`.
    """
    wanted = _wanted()
    setattr(connection, wanted, getattr(connection, wanted) & ~_CAP_SPLICE_READ)


def _want(connection: Any, capability: int) -> None:  # noqa: ANN401
    wanted = _wanted()
    setattr(connection, wanted, getattr(connection, wanted) | capability)


def _offered(connection: Any) -> int:  # noqa: ANN401
    """Return what the kernel is able to do."""
    return int(connection.capable_ext if library_version() >= (3, 17) else connection.capable)


def _wanted() -> str:
    """Return the field of `struct fuse_conn_info` that says what is asked of the kernel."""
    return "want_ext" if library_version() >= (3, 17) else "want"


def configure(connection: Any, passthrough: Passthrough) -> None:  # noqa: ANN401
    """Ask the kernel for large and many reads, and for passthrough if possible.

    `connection` is libfuse's `struct fuse_conn_info`, while the mount is being made.
    """
    if hasattr(connection, "max_read"):
        connection.max_read = MAX_READ
    if library_version() >= (3, 0) and _offered(connection) & _CAP_SPLICE_WRITE:
        _want(connection, _CAP_SPLICE_WRITE)
    connection.max_background = _MAX_BACKGROUND
    connection.congestion_threshold = _MAX_BACKGROUND
    if not passthrough.possible:
        return
    if not _offered(connection) & _CAP_PASSTHROUGH:
        passthrough.refuse("this kernel was built without it (CONFIG_FUSE_PASSTHROUGH)")
        return
    _want(connection, _CAP_PASSTHROUGH)
    connection.max_backing_stack_depth = passthrough.stack_depth
    passthrough.start(_session_device())


def _session_device() -> int:
    """Return the session's descriptor of /dev/fuse; only within a callback."""
    libfuse = binding._libfuse
    libfuse.fuse_get_session.argtypes = [ctypes.c_void_p]
    libfuse.fuse_get_session.restype = ctypes.c_void_p
    libfuse.fuse_session_fd.argtypes = [ctypes.c_void_p]
    session = libfuse.fuse_get_session(libfuse.fuse_get_context().contents.fuse)
    return libfuse.fuse_session_fd(session)  # type: ignore[no-any-return]


def set_backing_id(fi: Any, number: int) -> None:  # noqa: ANN401
    """Set `backing_id`, which libfuse 3.17 keeps after the 32 bits of `poll_events`.

    In mfusepy 3.1 both are one field of 64 bits of `struct fuse_file_info`.
    """
    offset = type(fi).poll_events.offset + ctypes.sizeof(ctypes.c_uint32)
    ctypes.c_int32.from_buffer(fi, offset).value = number


def raise_read_ahead(mountpoint: Path) -> None:
    """Let the kernel read ahead by `MAX_READ`, if permitted.

    Its default of 128 KiB limits every sequential read. Only root may raise it, and only once the
    mount has answered: the kernel sets the default on the answer to FUSE_INIT.
    """
    try:
        mount = mounted_on(mountpoint.absolute())
        if mount is not None:
            limit = Path(f"/sys/class/bdi/{mount.device}/read_ahead_kb")
            limit.write_text(f"{MAX_READ // 1024}\n")
    except OSError as error:
        log.debug("cannot raise the kernel's read-ahead: %s", error)


def caller() -> int:
    """Return the number of the thread whose system call is served; 0 if it is not seen here."""
    return int(binding.fuse_get_context()[2])
