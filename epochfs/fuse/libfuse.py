"""libfuse, through its Python binding, and what the binding lacks, through ctypes and sysfs.

The only importer of the binding, mfusepy or fusepy. Importing this module raises OSError or
AttributeError where no libfuse can be loaded.
"""

from __future__ import annotations

import ctypes
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epochfs.config import MAX_READ
from epochfs.errors import MountFailure
from epochfs.fuse.mountinfo import mounted_on
from epochfs.fuse.passthrough import Passthrough

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

_MAX_BACKGROUND = 40
"""How many read-ahead requests the kernel sends at a time, each of which holds a MiB of memory.
While so many wait for a slow registry, cached blobs are not read ahead either."""

_MAX_THREADS = 128
_MAX_IDLE_THREADS = 16

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
        _Fuse(operations, str(mountpoint), raw_fi=True, **_libfuse_options(options))
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
        values["max_idle_threads"] = _MAX_IDLE_THREADS
    if options.writable:
        values = {**values, **_options_to_write(options)}
    return {**values, **dict.fromkeys(options.extra, True)}


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


class _Fuse(binding.FUSE):  # type: ignore[misc]
    """The binding's dispatcher, with a `read` and a `write` that copy nothing.

    The binding's own copy bytes between the operations and libfuse's buffer. Here the file is read
    straight into that buffer, which halves the time of a warm read, and written straight from it.
    What the binding leaves out for libfuse 3 is passed on, too: the flags of a rename, and the
    handle of a truncate.
    """

    def read(self, path: bytes | None, buffer: Any, size: int, offset: int, fip: Any) -> int:  # noqa: ANN401
        """Called by libfuse with a buffer of `size` bytes; returns how many were filled."""
        address = ctypes.addressof(buffer.contents) if size else 0
        view = memoryview((ctypes.c_char * size).from_address(address)).cast("B")
        shown = path.decode("utf-8", "surrogateescape") if path else "an open file"
        return self.operations.read(shown, view, offset, fip.contents)  # type: ignore[no-any-return]

    def write(self, path: bytes | None, buffer: Any, size: int, offset: int, fip: Any) -> int:  # noqa: ANN401
        """Called by libfuse with `size` bytes; returns how many were written: all."""
        address = ctypes.addressof(buffer.contents) if size else 0
        view = memoryview((ctypes.c_char * size).from_address(address)).cast("B")
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


def copy_writes_once(connection: Any) -> None:  # noqa: ANN401
    """Have libfuse read what is written straight into its buffer.

    It would otherwise pass it on through a pipe, and copy it out of that into new memory. See
    `configure` for `connection`.
    """
    wanted = "want_ext" if library_version() >= (3, 17) else "want"
    setattr(connection, wanted, getattr(connection, wanted) & ~_CAP_SPLICE_READ)


def configure(connection: Any, passthrough: Passthrough) -> None:  # noqa: ANN401
    """Ask the kernel for large and many reads, and for passthrough if possible.

    `connection` is libfuse's `struct fuse_conn_info`, while the mount is being made.
    """
    if hasattr(connection, "max_read"):
        connection.max_read = MAX_READ
    connection.max_background = _MAX_BACKGROUND
    connection.congestion_threshold = _MAX_BACKGROUND
    if not passthrough.possible:
        return
    if not connection.capable_ext & _CAP_PASSTHROUGH:
        passthrough.refuse("this kernel was built without it (CONFIG_FUSE_PASSTHROUGH)")
        return
    connection.want_ext |= _CAP_PASSTHROUGH
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
    _, _, thread = binding.fuse_get_context()
    return int(thread)
