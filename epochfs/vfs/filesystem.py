"""The filesystem without FUSE: lookup, getattr, readlink, open, read, release; readdir.

`operations` puts this behind the kernel; tests call it directly. Every method takes absolute paths
and raises only `EpochfsError`s. It only reads: there is no method that could write.

Locks: `FileSystem._lock` guards the table of open files, and `_resting`; no I/O happens under it.
"""

from __future__ import annotations

import itertools
import operator
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

from epochfs.blobs.buffers import give_back
from epochfs.blobs.store import Timers
from epochfs.errors import EpochfsError, InvalidName, NameTooLong, NotFound, Vanished
from epochfs.oci.manifests import Descriptor
from epochfs.oci.names import NAME_MAX
from epochfs.vfs.composed import Readable
from epochfs.vfs.directories import Listing, Readers
from epochfs.vfs.node import Attr, Context, Node, Xattrs

XATTR_PREFIX = "user."

_REST_SECONDS = 5.0
"""How long after the last file was closed the memory that reading took is given back."""

_MOST_BYTES = 4
"""The most bytes that a character takes."""

_MAX_NODES = 1024
"""How many paths' nodes are kept: the next question is mostly about one of the same, or about what
is in the same directory."""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An open file: its `handle`, to be released once; the rest as in `Opened`."""

    handle: int
    keep_cache: bool = False
    direct_io: bool = False
    backing: int | None = None


class Basis(NamedTuple):
    """What the listing of a directory follows from, besides what never changes.

    `moment` counts what was forgotten, since access to it was denied. `objects`: see `Node.basis`.
    """

    node: Node
    moment: int
    objects: tuple[object, ...]


class Paths:
    """Finds the nodes of paths below a root. Pure."""

    def __init__(self, root: Node) -> None:
        self._root = root
        self._directory = lru_cache(_MAX_NODES)(partial(_below, root))
        self.node = lru_cache(_MAX_NODES)(self._found)
        """Returns the node an absolute, normal path means.

        Raises NotFound where there can be none, NameTooLong for a name that none can have.
        """

    def _found(self, path: str) -> Node:
        if path == "/":
            return self._root
        slash = path.rindex("/")
        return _below(self._directory(path[:slash]), path[slash:])


def _below(node: Node, path: str) -> Node:
    """Return the node that a path such as `/a/b` leads to from another; "" leads nowhere else."""
    for name in path.split("/")[1:]:
        if len(name) * _MOST_BYTES > NAME_MAX:
            length = len(name.encode("utf-8", "surrogateescape"))
            if length > NAME_MAX:
                raise NameTooLong(f"a name of {length} bytes")
        if not node.foreign and not name.isprintable():
            raise NotFound("a name with control characters")
        try:
            node = node.child(name)
        except InvalidName as error:
            raise NotFound(str(error)) from None
    return node


class FileSystem:
    """One mounted registry. Any thread may call anything."""

    def __init__(self, root: Node, context: Context) -> None:
        self._node: Callable[[str], Node] = Paths(root).node
        self._context = context
        self._lock = threading.Lock()
        self._files: dict[int, Readable] = {}
        self._readers = Readers()
        self.read_to_end = self._readers.end
        """Notes that a reader was told that its directory has no more names."""
        self._timers = Timers()
        self._resting = False
        self._handles = itertools.count(1)

    def getattr(self, path: str) -> Attr:
        """Return the attributes of a node; raises NotFound."""
        return self._node(path).attr(self._context)

    def listdir(self, path: str) -> Listing:
        """Return what a directory lists, without `.` and `..`.

        Raises if nothing could be listed; an incomplete listing has the error in it.
        """
        listing = Listing(path, *self._node(path).listed(self._context))
        if listing.error is not None and not listing:
            raise listing.error
        return listing

    def is_fixed(self, path: str) -> bool:
        """Whether what a directory lists is known, and cannot change: it may be remembered."""
        return self._node(path).is_fixed(self._context)

    def basis(self, path: str) -> Basis | None:
        """Return what the listing of a directory follows from; None if that is not known."""
        node, moment = self._node(path), self._context.listings.moment
        found = node.basis(self._context)
        return None if found is None else Basis(node, moment, found)

    def holds(self, basis: Basis) -> bool:
        """Whether a directory lists the same, with the same attributes, as when it had a basis."""
        if basis.moment != self._context.listings.moment:
            return False
        found = basis.node.basis(self._context)
        return found is not None and all(map(operator.is_, found, basis.objects))

    def goes_on(self, reader: int, listing: Listing) -> None:
        """Note what a reader of a directory was given, as `readdir` does."""
        self._readers.begin(reader, listing)

    def known_attrs(self, path: str, names: Sequence[str]) -> dict[str, Attr]:
        """Return the attributes of the names in a directory of which they are known already."""
        try:
            return self._node(path).known_attrs(names, self._context)
        except EpochfsError:
            return {}  # who asks for one is told why

    def readdir(self, path: str, reader: int, *, anew: bool) -> Listing:
        """Return what a reader of a directory reads: unchanged until read `anew` (rewinddir(3)).

        Raises as `listdir` does, and Vanished if what was read so far is not known any longer.
        """
        if not anew:
            return self._readers.go_on(reader, path, partial(self.listdir, path))
        listing = self.listdir(path)
        self._readers.begin(reader, listing)
        return listing

    def readlink(self, path: str) -> str:
        """Return the target of a link."""
        return self._node(path).target(self._context)

    def open(self, path: str) -> OpenFile:
        """Open a file; the handle is to be released once."""
        opened = self._node(path).open(self._context)
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

    def locate(self, handle: int, offset: int, size: int) -> tuple[int, int] | None:
        """Wait as `read_into` does; return a descriptor of a file that has those bytes at the same
        offset, valid until the handle is released, and how many there are. None: read them.
        """
        locate = getattr(self._files.get(handle), "locate", None)
        return None if locate is None else locate(offset, size)

    def expect(self, handle: int, start: int, stop: int) -> None:
        """Say that the bytes `[start, stop)` of an open file will be read in their order.

        Where that helps, they are fetched in fewer and larger requests; with no bytes, nothing is
        fetched ahead of what is read.
        """
        expect = getattr(self._files.get(handle), "expect", None)
        if expect is not None:
            expect(start, stop)

    def read(self, handle: int, offset: int, count: int) -> bytes:
        """Return exactly `min(count, size - offset)` bytes of an open file."""
        buffer = bytearray(count)
        return bytes(buffer[: self.read_into(handle, memoryview(buffer), offset)])

    def release(self, handle: int) -> None:
        """Close an open file."""
        with self._lock:
            file = self._files.pop(handle, None)
            rests = not self._files and not self._resting
            self._resting = self._resting or rests
        if file is not None:
            file.close()
        if rests:
            self._timers.call(_REST_SECONDS, self._rest)

    def _rest(self) -> None:
        """Give memory back, unless a file was opened since."""
        with self._lock:
            self._resting = False
            in_use = bool(self._files)
        if not in_use:
            give_back()

    def kind(self, path: str) -> int:
        """Return the file type that all nodes at such paths have, or 0; nothing is asked for."""
        return self._node(path).kind

    def content(self, path: str) -> Descriptor | None:
        """Describe the blob or manifest whose bytes a node shows; None if it is no single one."""
        return self._node(path).content(self._context)

    def xattrs(self, path: str) -> Xattrs:
        """Return the listed extended attributes of a node."""
        return self._node(path).xattrs(self._context)

    def offers_xattr(self, path: str, name: str) -> bool:
        """Whether there can be such an extended attribute there: only layers have other namespaces.

        The kernel and `ls` keep asking for security ones. That costs no request, except in a layer.
        """
        return name.startswith(XATTR_PREFIX) or self._node(path).offers_xattr(name, self._context)

    def xattr(self, path: str, name: str) -> str | bytes:
        """Return one extended attribute; raises NotFound where it is not set."""
        if not self.offers_xattr(path, name):
            raise NotFound(f"no attribute {name}")
        return self._node(path).xattr(name, self._context)

    def drop_listings(self) -> None:
        """Forget what the registry said of its names, so that their next use asks it again.

        The kernel forgets them within seconds (`ListingOptions.kernel_ttl`).
        """
        self._context.listings.clear()
