"""The filesystem without FUSE: lookup, getattr, readlink, open, read, release; opendir, readdir.

`operations` puts this behind the kernel; tests call it directly. Every method takes absolute paths
and raises nothing but `EpochfsError`s. It only reads: there is no method that could write.

Locks: `FileSystem._lock` guards the tables of open files and open directories, `_verified` and
`_to_rest`; no I/O happens under it.
"""

from __future__ import annotations

import itertools
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, overload

from cachetools import LRUCache

from epochfs.blobs.buffers import give_back
from epochfs.blobs.store import BlobHandle, BlobStore
from epochfs.blobs.timers import Timers
from epochfs.errors import EpochfsError, NeverThere, NotFound, Vanished, fresh
from epochfs.metadata.listings import Listings
from epochfs.vfs.assembly import Assembler
from epochfs.vfs.generated import GeneratedFile, GeneratedFiles
from epochfs.vfs.manifest_nodes import ManifestFile
from epochfs.vfs.node import Attr, Entries, Node, Xattrs, inode
from epochfs.vfs.repository_nodes import BlobFile, StatusFile
from epochfs.vfs.rootfs_nodes import Rootfs, RootfsNode
from epochfs.vfs.tree import Tree
from epochfs.vfs.views.rootfs import RootfsPlace
from epochfs.vfs.views.view import AssembledFile

CACHED_XATTR = "user.epochfs.cached"
XATTR_PREFIX = "user."

_MAX_VERIFIED = 100_000
"""Of how many blobs it is remembered that they were verified when they were last opened."""

_REST_SECONDS = 5.0
"""How long after no file was open the memory that reading took is given back."""


class _Readable(Protocol):
    """What is behind an open file."""

    def read_into(self, view: memoryview, offset: int) -> int:
        """Read exactly `min(len(view), size - offset)` bytes; return that, or raise."""

    def close(self) -> None:
        """Give it back; once."""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An open file: its `handle`, and how the kernel may cache what it reads.

    `keep_cache`: pages of an earlier open are still right. `direct_io`: cache nothing. `backing`: a
    descriptor of a local file of the same, verified bytes, valid until the handle is released.
    """

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

    def __init__(
        self,
        tree: Tree,
        listings: Listings,
        blobs: BlobStore,
        assembler: Assembler,
        rootfs: Rootfs,
        status: Callable[[], bytes],
    ) -> None:
        self._tree = tree
        self._listings = listings
        self._blobs = blobs
        self._assembler = assembler
        self._rootfs = rootfs
        self._status = status
        self._generated = GeneratedFiles(listings)
        self._lock = threading.Lock()
        self._files: dict[int, _Readable] = {}
        self._directories: dict[int, Listing] = {}
        self._verified: LRUCache[str, None] = LRUCache(_MAX_VERIFIED)
        self._timers = Timers()
        self._to_rest = False
        self._handles = itertools.count(1)

    def getattr(self, path: str) -> Attr:
        """Return the attributes of a node; raises NotFound."""
        node = self._node(path)
        if isinstance(node, GeneratedFile):
            return self._generated.attr(node)
        return node.attr(self._listings)

    def listdir(self, path: str) -> Listing:
        """Return what is listed in a directory, without `.` and `..`.

        Raises where nothing could be listed; else the listing tells what is missing.
        """
        node = self._node(path)
        listing = Listing(path, node.entries(self._listings), node.identities(self._listings))
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
        return self._node(path).target(self._listings)

    def open(self, path: str) -> OpenFile:
        """Open a file; the handle is to be released once."""
        node = self._node(path)
        if isinstance(node, BlobFile):
            known = node.descriptor(self._listings)
            blob = self._blobs.open(node.repository, node.digest, known.size)
            if self._blobs.was_spoiled(node.digest):
                return OpenFile(self._add(blob), direct_io=True)
            verified = blob.verified
            backing = blob.fileno() if verified else None
            keep_cache = self._keeps_pages(path, verified=verified)
            named = self._listings.names_blob(node.repository, node.digest)
            handle = self._add(_NamedBlob(blob) if named else blob)
            return OpenFile(handle, keep_cache=keep_cache, backing=backing)
        if isinstance(node, ManifestFile):
            raw = node.document(self._listings).raw
            return OpenFile(self._add(_Bytes(raw)), keep_cache=True)
        if isinstance(node, AssembledFile):
            made = node.made(self._listings)
            spoiled = any(map(self._blobs.was_spoiled, made.digests))
            file = self._assembler.open(node.repository, made)
            return OpenFile(self._add(file), direct_io=spoiled)
        if isinstance(node, GeneratedFile):
            generated = self._generated.open(node)
            return OpenFile(self._add(generated), direct_io=generated.direct_io)
        if isinstance(node, RootfsNode):
            inner = node.open()
            return OpenFile(self._add(inner), keep_cache=inner.verified)
        if isinstance(node, StatusFile):
            return OpenFile(self._add(_Bytes(self._status())), direct_io=True)
        raise NotFound(f"{path} is no file")

    def _keeps_pages(self, path: str, *, verified: bool) -> bool:
        """Whether the kernel's pages of a blob that is opened now are all of verified bytes.

        They are if it was verified at the last open too, which had it drop those from before.
        """
        with self._lock:
            keeps = verified and path in self._verified
            if verified:
                self._verified[path] = None
            else:
                self._verified.pop(path, None)
            return keeps

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
        """Return the extended attributes of a node that are listed.

        How much of a blob is cached is not: tools that save attributes would see every blob change.
        """
        return self._node(path).xattrs(self._listings)

    def xattr(self, path: str, name: str) -> str | bytes:
        """Return one extended attribute; raises NotFound where it is not set, without I/O if
        the name is of another namespace (the kernel and `ls` ask for security ones all the time).
        """
        if not name.startswith(XATTR_PREFIX) and not self._tree.node(path).foreign:
            raise NotFound(f"no attribute {name}")
        node = self._node(path)
        if name == CACHED_XATTR and isinstance(node, BlobFile):
            size = node.descriptor(self._listings).size
            return str(self._blobs.cached_percent(node.digest, size))
        try:
            return node.xattrs(self._listings)[name]
        except KeyError:
            raise NotFound(f"no attribute {name}") from None

    def _node(self, path: str) -> Node:
        node = self._tree.node(path)
        return self._rootfs.node(node, self._listings) if isinstance(node, RootfsPlace) else node

    def _add(self, file: _Readable) -> int:
        with self._lock:
            handle = next(self._handles)
            self._files[handle] = file
            return handle

    def drop_listings(self) -> None:
        """Forget what the registry said of its names: they are asked for when they are next used.

        What the kernel keeps of them is gone within seconds (`ListingOptions.kernel_ttl`).
        """
        self._listings.clear()

    def close(self) -> None:
        """End all downloads and background work; waiting readers get an error."""
        self._listings.close()
        self._rootfs.close()
        self._assembler.close()
        self._blobs.close()


class _NamedBlob:
    """An open blob that a manifest names, which is no proof that the registry ever had it."""

    def __init__(self, blob: BlobHandle) -> None:
        self._blob = blob

    def read_into(self, view: memoryview, offset: int) -> int:
        try:
            return self._blob.read_into(view, offset)
        except NeverThere as error:
            raise NotFound(str(error)) from error

    def close(self) -> None:
        self._blob.close()


class _Bytes:
    """An open file whose content is in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_into(self, view: memoryview, offset: int) -> int:
        piece = self._data[offset : offset + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        pass
