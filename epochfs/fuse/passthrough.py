"""Kernel passthrough: the kernel reads a cached blob by itself, without asking us.

The blob's file is registered with the kernel (FUSE_DEV_IOC_BACKING_OPEN in linux/fuse.h). An open
that is answered with the number of that registration reads and maps that file.

The kernel has an inode open either that way or through its page cache, never both at a time: an
open of the other kind fails with EIO (fs/fuse/iomode.c). So the first open of an inode decides for
all others until the last of them is released. The kernel asks before it opens, and reports a
release after the fact: whatever it has open is open here too.

Locks: `Passthrough._lock` guards the table of open inodes; no file and no device is touched under
it. `_device` is set before the first open, and `_refusal` is only shown: both are used without it.
"""

from __future__ import annotations

import fcntl
import logging
import platform
import re
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path

from epochfs.counters import gauge
from epochfs.fuse.mountinfo import file_system_of

log = logging.getLogger(__name__)

_LIBFUSE = (3, 17)
_KERNEL = (6, 9)
_CAP_SYS_ADMIN = 1 << 21
_STACKED = frozenset({"overlay", "ecryptfs"})
"""File systems whose files are other file systems' files."""

_BACKING_OPEN = 0x4010E501
_BACKING_CLOSE = 0x4004E502
_BACKING_MAP = "iIQ"
"""`struct fuse_backing_map`: a descriptor, then flags and padding, which are 0."""

_PROCESS = Path("/proc/self")
_ALL_USERS = ["0", "0", "4294967295"]


def obstacle(library: tuple[int, int]) -> str:
    """Return why this process cannot use passthrough with a version of libfuse; "" if it can."""
    if library < _LIBFUSE:
        return f"libfuse {_dotted(library)} cannot: install {_dotted(_LIBFUSE)} (Debian 13 has it)"
    kernel = re.match(r"(\d+)\.(\d+)", platform.release())
    if kernel is None or (int(kernel[1]), int(kernel[2])) < _KERNEL:
        return f"Linux {platform.release()} cannot: boot {_dotted(_KERNEL)} or newer"
    if not _is_administrator():
        return "it needs CAP_SYS_ADMIN outside of any user namespace: mount as root"
    return ""


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _is_administrator() -> bool:
    """Whether this process has CAP_SYS_ADMIN in the initial user namespace, as the kernel wants."""
    try:
        status = (_PROCESS / "status").read_text()
        users = (_PROCESS / "uid_map").read_text()
    except OSError:
        return False
    capabilities = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    has_it = capabilities is not None and int(capabilities[1], 16) & _CAP_SYS_ADMIN
    return bool(has_it) and users.split() == _ALL_USERS


@dataclass(frozen=True, slots=True)
class PassthroughStatus:
    """Whether passthrough is on, why not, and how many inodes use it now."""

    on: bool = field(metadata=gauge("Whether the kernel may read cached blobs by itself."))
    reason: str
    open: int = field(metadata=gauge("Inodes that it has open so."))


@dataclass(slots=True, eq=False)
class _Inode:
    """An open file: `backing` is its number with the kernel, or 0 if it is read through us."""

    path: str
    backing: int
    handles: int = 0


class Passthrough:
    """The passthrough of one mount, off before `start`."""

    def __init__(self, cache: Path, library: tuple[int, int]) -> None:
        """`cache` is the directory of the files; `library` is the version of libfuse."""
        self._cache = cache
        self._device: int | None = None
        self._refusal = obstacle(library)
        self._lock = threading.Lock()
        self._inodes: dict[str, _Inode] = {}
        self._handles: dict[int, _Inode] = {}

    @property
    def possible(self) -> bool:
        """Whether to ask the kernel for it."""
        return not self._refusal

    @property
    def stack_depth(self) -> int:
        """How many file systems are stacked below the cache's files, for the kernel.

        It is not always 1, because an overlayfs could then not be put over the mount.
        """
        return int(file_system_of(self._cache) in _STACKED)

    def start(self, device: int) -> None:
        """Begin, once the kernel has offered it; `device` is the descriptor of /dev/fuse."""
        self._device = device

    def refuse(self, reason: str) -> None:
        """Stay off, and show why in `status`."""
        self._refusal = reason

    def status(self) -> PassthroughStatus:
        with self._lock:
            count = sum(inode.backing != 0 for inode in self._inodes.values())
        on = self._device is not None and not self._refusal
        return PassthroughStatus(on, self._refusal, count)

    def open(self, path: str, handle: int, fd: int | None) -> int:
        """Return the number to answer an open with; 0 if the file is to be read through us.

        `fd` is open on the verified bytes of the file, if they are cached. Release each `handle`
        once.
        """
        if self._device is None:
            return 0
        with self._lock:
            decided = path in self._inodes
        # Several first opens may register it at once; all but one number is given back.
        fresh = 0 if decided or fd is None else self._register(self._device, fd)
        with self._lock:
            inode = self._inodes.setdefault(path, _Inode(path, fresh))
            inode.handles += 1
            self._handles[handle] = inode
        if fresh and inode.backing != fresh:
            self._unregister(self._device, fresh)
        return inode.backing

    def release(self, handle: int) -> None:
        """Release a handle; after an inode's last, the next open decides anew."""
        with self._lock:
            inode = self._handles.pop(handle, None)
            if inode is None:
                return
            inode.handles -= 1
            if inode.handles:
                return
            del self._inodes[inode.path]
        if inode.backing and self._device is not None:
            self._unregister(self._device, inode.backing)

    def _register(self, device: int, fd: int) -> int:
        """Return the kernel's number for a file, or 0 if it refuses the file."""
        argument = bytearray(struct.pack(_BACKING_MAP, fd, 0, 0))
        try:
            number: int = fcntl.ioctl(device, _BACKING_OPEN, argument)
        except OSError as error:
            self._refusal = f"the kernel refused a cached file: {error.strerror}"
            log.debug("%s", self._refusal)
            return 0
        self._refusal = ""
        return number

    def _unregister(self, device: int, number: int) -> None:
        try:
            fcntl.ioctl(device, _BACKING_CLOSE, bytearray(struct.pack("I", number)))
        except OSError as error:
            log.warning("the kernel did not release a cached file: %s", error)
