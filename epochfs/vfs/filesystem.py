"""The filesystem without FUSE: lookup, getattr, readlink, open, read, release; opendir, readdir.

`operations` puts this behind the kernel; tests call it directly. Every method takes absolute paths
and raises nothing but `EpochfsError`s. It only reads: there is no method that could write.

Locks: `FileSystem._lock` guards the tables of open files and open directories, and `_to_rest`; no
I/O happens under it.
"""

from __future__ import annotations

import itertools
import threading
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

from epochfs.blobs.buffers import give_back
from epochfs.blobs.store import Timers
from epochfs.errors import EpochfsError, NotFound, Vanished, fresh
from epochfs.vfs.composed import Readable
from epochfs.vfs.context import Context
from epochfs.vfs.node import Attr, Entries, Xattrs, inode
from epochfs.vfs.tree import Tree

XATTR_PREFIX = "user."

_REST_SECONDS = 5.0
"""How long after no file was open the memory that reading took is given back."""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An open file: its `handle`, to be released once, and the rest as `Opened` has it."""

    handle: int
    keep_cache: bool = False
    direct_io: bool = False
    backing: int | None = None


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One name in a directory, with its file type and inode number."""

    name: str
    mode: int
    inode: int


class Listing(Sequence[DirectoryEntry]):
    """What a directory lists, as it was at one moment: 12 bytes a name, where the name is kept.

    `error` is why it is not all there is, or None. Iterating ends with raising it.
    """

    def __init__(self, path: str, entries: Entries, identities: Mapping[str, str]) -> None:
        """`path` is the directory's; `identities` those of the names that have one (`Attr`)."""
        self._below = path.rstrip("/")
        self._identities = identities
        self._names: list[str] = []
        self._modes = array("I")
        self.error: EpochfsError | None = None
        try:
            for name, mode in entries:
                self._names.append(name)
                self._modes.append(mode)
        except EpochfsError as error:
            self.error = error

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[DirectoryEntry]:
        yield from (self[number] for number in range(len(self)))
        if self.error is not None:
            raise fresh(self.error)

    @overload
    def __getitem__(self, index: int) -> DirectoryEntry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[DirectoryEntry]: ...
    def __getitem__(self, index: int | slice) -> DirectoryEntry | Sequence[DirectoryEntry]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        name = self._names[index]
        identity = self._identities.get(name, f"{self._below}/{name}")
        return DirectoryEntry(name, self._modes[index], inode(identity))


class FileSystem:
    """One mounted registry. Any thread may call anything."""

    def __init__(self, tree: Tree, context: Context) -> None:
        self._tree = tree
        self._context = context
        self._lock = threading.Lock()
        self._files: dict[int, Readable] = {}
        self._directories: dict[int, Listing] = {}
        self._timers = Timers()
        self._to_rest = False
        self._handles = itertools.count(1)

    def getattr(self, path: str) -> Attr:
        """Return the attributes of a node; raises NotFound."""
        return self._tree.node(path).attr(self._context)

    def listdir(self, path: str) -> Listing:
        """Return what is listed in a directory, without `.` and `..`.

        Raises where nothing could be listed; else the listing tells what is missing.
        """
        listing = Listing(path, *self._tree.node(path).listed(self._context))
        if listing.error is not None and not listing:
            raise listing.error
        return listing

    def opendir(self) -> int:
        """Return the handle of an open directory, to be released once; asks nothing."""
        return next(self._handles)

    def readdir(self, path: str, handle: int, *, anew: bool) -> Listing:
        """Return what an open directory lists: the same until it is read `anew` (rewinddir(3))."""
        listing = None if anew else self._directories.get(handle)
        if listing is None:
            listing = self.listdir(path)
            with self._lock:
                self._directories[handle] = listing
        return listing

    def releasedir(self, handle: int) -> None:
        """Close an open directory."""
        with self._lock:
            self._directories.pop(handle, None)

    def readlink(self, path: str) -> str:
        """Return the target of a link."""
        return self._tree.node(path).target(self._context)

    def open(self, path: str) -> OpenFile:
        """Open a file; the handle is to be released once."""
        opened = self._tree.node(path).open(self._context)
        with self._lock:
            handle = next(self._handles)
            self._files[handle] = opened.file
        return OpenFile(handle, opened.keep_cache, opened.direct_io, opened.backing)

    def read_into(self, handle: int, view: memoryview, offset: int) -> int:
        """Read exactly `min(len(view), size - offset)` bytes of an open file; return that."""
        file = self._files.get(handle)
        if file is None:
            raise Vanished("the file was closed")
        return file.read_into(view, offset)

    def read(self, handle: int, offset: int, count: int) -> bytes:
        """Return exactly `min(count, size - offset)` bytes of an open file."""
        buffer = bytearray(count)
        return bytes(buffer[: self.read_into(handle, memoryview(buffer), offset)])

    def release(self, handle: int) -> None:
        """Close an open file."""
        with self._lock:
            file = self._files.pop(handle, None)
            to_rest = not self._files and not self._to_rest
            self._to_rest = self._to_rest or to_rest
        if file is not None:
            file.close()
        if to_rest:
            self._timers.call(_REST_SECONDS, self._rest)

    def _rest(self) -> None:
        """Give memory back, unless files have been opened since."""
        with self._lock:
            self._to_rest = False
            at_rest = not self._files
        if at_rest:
            give_back()

    def xattrs(self, path: str) -> Xattrs:
        """Return the extended attributes of a node that are listed."""
        return self._tree.node(path).xattrs(self._context)

    def xattr(self, path: str, name: str) -> str | bytes:
        """Return one extended attribute; raises NotFound where it is not set, without I/O if
        the name is of another namespace (the kernel and `ls` ask for security ones all the time).
        """
        node = self._tree.node(path)
        if not name.startswith(XATTR_PREFIX) and not node.foreign:
            raise NotFound(f"no attribute {name}")
        return node.xattr(name, self._context)

    def drop_listings(self) -> None:
        """Forget what the registry said of its names: they are asked for when they are next used.

        What the kernel keeps of them is gone within seconds (`ListingOptions.kernel_ttl`).
        """
        self._context.listings.clear()

    def close(self) -> None:
        """End all downloads and background work; waiting readers get an error."""
        self._context.close()
