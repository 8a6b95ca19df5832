"""The FUSE operations: translate between libfuse and `vfs`, and decide nothing.

Importing this module fails where `libfuse` cannot be imported. The methods are called from many
threads, and raise only FuseOSError.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from epochfs.errors import EpochfsError, ReadOnly, printable
from epochfs.fuse import errnos
from epochfs.fuse.libfuse import (
    KEEPS_LISTINGS,
    READDIR_PLUS,
    Answer,
    FuseOptions,
    FuseOSError,
    Operations,
    configure,
    raise_read_ahead,
    set_backing_id,
)
from epochfs.fuse.passthrough import Passthrough
from epochfs.fuse.repeated import Answers, Kept
from epochfs.fuse.stat import Stat
from epochfs.oci.names import NAME_MAX
from epochfs.vfs.directories import Listing
from epochfs.vfs.filesystem import FileSystem
from epochfs.vfs.node import Attr, inode

log = logging.getLogger(__name__)

_DIRECTORY = 0o040555

_DOTS = 2
"""How many entries come before what is listed: `.` and `..`."""

DirectoryEntry = tuple[str, Stat, int]
"""A name, its attributes as far as known, and the offset of the next entry."""

_PLUS_BYTES = 4096
"""The least that an answer with attributes may take. What does not fit into one, libfuse would
count as remembered by the kernel for ever: so none is longer, and the kernel asks for the rest."""

_PLUS_ENTRY = 152
"""What an entry takes in it, besides its name (`struct fuse_direntplus`)."""

_Operation = TypeVar("_Operation", bound=Callable[..., Any])


def translated(*, refusals: int = logging.WARNING) -> Callable[[_Operation], _Operation]:
    """Turn all exceptions into FuseOSError: of any other, the binding makes EPERM.

    Errors of ours are logged at the level of `refusals`, or lower.
    """

    def decorate(operation: _Operation) -> _Operation:
        @functools.wraps(operation)
        def wrapper(self: EpochOperations, path: str | None, *arguments: Any) -> Any:  # noqa: ANN401
            try:
                return operation(self, path, *arguments)
            except EpochfsError as error:
                number = errnos.errno_of(error)
                level = logging.DEBUG if number in errnos.OF_NAMES else refusals
                name = errnos.name_of(number)
                log.log(level, "%s %s: %s: %s", operation.__name__, _named(path), name, error)
            except FuseOSError:
                raise
            except Exception:
                number = errnos.UNFORESEEN
                log.exception("%s %s: unforeseen failure", operation.__name__, _named(path))
            raise FuseOSError(number)

        return wrapper  # type: ignore[return-value]

    return decorate


def _named(path: str | None) -> str:
    """Return how the log names a file; it has no path if it was removed while it is open."""
    return "an open file" if path is None else printable(path)


class EpochOperations(Operations):  # type: ignore[misc]
    """The callbacks. Paths are text, times are nanoseconds, file infos are the C structs."""

    use_ns = True

    def __init__(
        self,
        filesystem: FileSystem,
        mountpoint: Path,
        options: FuseOptions,
        passthrough: Passthrough,
        on_ready: Callable[[], None],
    ) -> None:
        """`on_ready` is called once the mount on `mountpoint` answers."""
        self._filesystem = filesystem
        self._mountpoint = mountpoint
        self._options = options
        self._passthrough = passthrough
        self._on_ready = on_ready
        self._answers = Answers()
        if KEEPS_LISTINGS and not options.writable:
            # Where there is nothing to say, libfuse need not ask.
            self.opendir = self._opendir

    def init_with_config(self, connection: Any, config: Any) -> None:  # noqa: ANN401
        """Configure the connection. Called by mfusepy while the mount is being made."""
        if connection is not None:
            configure(connection, self._passthrough)
        self.init("/")

    def init(self, path: str) -> None:
        """Begin to settle. Called by fusepy; the mount answers only after this returns."""
        threading.Thread(target=self._settle, name="settle", daemon=True).start()

    def _settle(self) -> None:
        """Wait for the mount's first answer, let the kernel read ahead, and call `on_ready`."""
        try:
            self._mountpoint.lstat()
        except OSError as error:
            log.debug("the mount ended before it answered: %s", error)
            return
        raise_read_ahead(self._mountpoint)
        self._on_ready()

    @translated()
    def getattr(self, path: str, fi: Any = None) -> Stat:  # noqa: ANN401
        """stat(2)."""
        return self._stat(path, self._filesystem.getattr(path))

    @translated()
    def _opendir(self, path: str) -> bool:
        """Return whether the kernel may keep the listing."""
        return self._filesystem.is_fixed(path)

    @translated()
    def readdir_with_offset(
        self, path: str, offset: int, reader: int, flags: int = 0
    ) -> Iterable[DirectoryEntry] | Answer:
        """Names, types and inode numbers of a directory, from an `offset` on.

        Called once for each buffer of the kernel's: without offsets libfuse would keep 200 bytes
        per name while the directory is open. With READDIR_PLUS, it takes attributes, too.
        """
        if flags & READDIR_PLUS and offset == 0:
            return self._begun(path, reader)
        listing = self._filesystem.readdir(path, reader, anew=offset == 0)
        if offset >= _DOTS + len(listing):
            if listing.error is not None:
                raise listing.error  # after the last entry, as readdir(3) allows
            self._filesystem.read_to_end(reader)
            return ()
        return self._shown(path, listing, offset, flags)

    @translated()
    def readdir(self, path: str, fh: int) -> Iterator[tuple[str, dict[str, int], int]]:
        """All of a directory at once. Called by fusepy, which passes no offset."""
        listing = self._filesystem.listdir(path)
        if listing.error is not None:
            raise listing.error
        shown = _shown(path, listing, 0)
        return ((name, {"st_mode": one.mode, "st_ino": one.inode}, 0) for name, one, _ in shown)

    @translated()
    def readlink(self, path: str) -> str:
        """Where a link points."""
        return self._filesystem.readlink(path)

    @translated()
    def open(self, path: str, fi: Any) -> int:  # noqa: ANN401
        """Open for reading; the kernel refuses all else on a read-only mount."""
        if fi.flags & os.O_ACCMODE != os.O_RDONLY:
            raise ReadOnly(f"{path} is read-only")
        file = self._filesystem.open(path)
        fi.fh = file.handle
        fi.direct_io = file.direct_io
        number = self._passthrough.open(path, file.handle, file.backing)
        if number:
            set_backing_id(fi, number)
        else:
            # The kernel refuses this beside a backing file: there are no pages to keep.
            fi.keep_cache = file.keep_cache
        return 0

    @translated()
    def read(self, path: str | None, view: memoryview, offset: int, fi: Any) -> int:  # noqa: ANN401
        """Read into libfuse's buffer; return the number of bytes."""
        return self._filesystem.read_into(fi.fh, view, offset)

    @translated()
    def read_buf(
        self,
        path: str | None,
        offset: int,
        size: int,
        fi: Any,  # noqa: ANN401
    ) -> tuple[int, int] | None:
        """Wait for the bytes of a read; return a descriptor that libfuse may pass as many of on
        from, at the same offset, and their number. None: they are to be `read`.
        """
        # What the kernel reads by itself is asked for once more if the file fails; this is not.
        if fi.flags & os.O_DIRECT:
            return None
        return self._filesystem.locate(fi.fh, offset, size)

    @translated()
    def release(self, path: str, fi: Any) -> int:  # noqa: ANN401
        """Close."""
        self._passthrough.release(fi.fh)
        self._filesystem.release(fi.fh)
        return 0

    @translated()
    def listxattr(self, path: str) -> list[str]:
        """Names of the extended attributes."""
        return list(self._filesystem.xattrs(path))

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        """One extended attribute; ENODATA where it is not set, EOPNOTSUPP where none of its
        namespace can be: `ls -l` then asks for it once, and not once a file.
        """
        try:
            return self._getxattr(path, name)
        except FuseOSError as error:
            if error.errno == errnos.ABSENT:
                raise FuseOSError(errnos.NO_ATTRIBUTE) from None
            raise

    @translated()
    def _getxattr(self, path: str, name: str) -> bytes:
        if not self._filesystem.offers_xattr(path, name):
            raise FuseOSError(errnos.NOT_OFFERED)
        value = self._filesystem.xattr(path, name)
        return value if isinstance(value, bytes) else value.encode(errors="backslashreplace")

    @translated()
    def statfs(self, path: str) -> dict[str, int]:
        """Says, as /proc does, that there are no blocks; never asks the registry."""
        return {"f_bsize": 4096, "f_frsize": 4096, "f_namemax": NAME_MAX}

    def _stat(self, path: str, attr: Attr) -> Stat:
        return Stat(
            attr.mode,
            inode(attr.identity or path),
            attr.links,
            self._options.uid if attr.uid is None else attr.uid,
            self._options.gid if attr.gid is None else attr.gid,
            attr.rdev,
            attr.size,
            attr.time_ns,
        )

    def _begun(self, path: str, reader: int) -> Iterable[DirectoryEntry] | Answer:
        """List a directory from its beginning, with attributes: as before if nothing changed."""
        kept = self._answers.get(path)
        if kept is not None and self._filesystem.holds(kept.basis):
            self._filesystem.goes_on(reader, kept.listing)
            return kept.answer
        basis = self._filesystem.basis(path)
        listing = self._filesystem.readdir(path, reader, anew=True)
        entries = self._shown(path, listing, 0, READDIR_PLUS)
        if basis is None or listing.error is not None or len(_fitting(listing, 0)) < len(listing):
            return entries
        answer = Answer([*entries])
        self._answers.put(path, Kept(basis, listing, answer))
        return answer

    def _shown(
        self, path: str, listing: Listing, offset: int, flags: int
    ) -> Iterable[DirectoryEntry]:
        """Return a directory's entries from an offset on, with attributes if they are taken."""
        if flags & READDIR_PLUS:
            names = _fitting(listing, offset)
            known = self._filesystem.known_attrs(path, names) if names else {}
            if known:
                return self._with_attributes(path, listing, offset, len(names), known)
        return _shown(path, listing, offset)

    def _with_attributes(
        self, path: str, listing: Listing, offset: int, count: int, known: Mapping[str, Attr]
    ) -> Iterator[DirectoryEntry]:
        """Yield `count` names from an offset on, with the attributes that are `known` of them."""
        below = path.rstrip("/")
        entries = _shown(path, listing, offset)
        for name, stat, following in islice(entries, max(0, _DOTS - offset) + count):
            attr = known.get(name)
            yield name, stat if attr is None else self._stat(f"{below}/{name}", attr), following


def _fitting(listing: Listing, offset: int) -> list[str]:
    """Return the names from an offset on that fit into one answer with attributes."""
    first = max(0, offset - _DOTS)
    room = _PLUS_BYTES - max(0, _DOTS - offset) * (_PLUS_ENTRY + 8)
    names = listing.names[first : first + _PLUS_BYTES // _PLUS_ENTRY]
    for number, name in enumerate(names):
        room -= _PLUS_ENTRY + -(-len(os.fsencode(name)) // 8) * 8
        if room < 0:
            return names[:number]
    return names


def _shown(path: str, listing: Listing, offset: int) -> Iterator[DirectoryEntry]:
    """Yield a directory's entries from an offset on."""
    if offset < 1:
        yield ".", Stat(_DIRECTORY, inode(path)), 1
    if offset < _DOTS:
        yield "..", Stat(_DIRECTORY, inode(path.rpartition("/")[0] or "/")), _DOTS
    for number in range(max(0, offset - _DOTS), len(listing)):
        entry = listing[number]
        yield entry.name, Stat(entry.mode, entry.inode), number + _DOTS + 1
