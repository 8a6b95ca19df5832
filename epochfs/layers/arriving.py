"""The files of a layer that still arrives, whose digest nothing has matched yet.

While the pass that indexes a layer (`indexing`) goes on, what it has come past can be looked up. A
layer "MUST NOT include duplicate entries for file paths" (OCI Image specification, layer.md,
"Distributable Format"), so an entry that has passed is the layer's last word on its path. What an
entry is in is a directory, and has no entry of its own if none has passed, as writers put it first.
All else waits for the layer's end: that there is no entry, for it may come, even behind a whiteout
of the same name ("Whiteouts"); what a directory holds; a hard link to what is in a lower layer;
whether a file has other names.

The pass goes on while somebody waits for what it has not passed, and once all of the blob is here
and right. Else it rests, and is given up once nothing was asked for a while, or others need its
thread; what has arrived stays in the cache, and the next pass begins with that.

Locks: `Arrival._changed` guards its fields; the lock of the index, or of the cache of indexes, may
be taken with it held. The look-ups in the index under it take microseconds,
or milliseconds while the pass inserts rows, which it does under the lock of the index; nothing
waits for the network under either.
"""

from __future__ import annotations

import math
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from epochfs.blobs.store import BlobHandle
from epochfs.errors import DeadlineExceeded, Unavailable
from epochfs.layers.gzip_reader import GzipPoints
from epochfs.layers.index import IMPLICIT, Inode, LayerIndex, Seen
from epochfs.layers.index_writer import IndexWriter

_REST_SECONDS = 2.0
"""How long a pass rests unasked before it is given up, or at all if others need its thread."""

_POLL_SECONDS = 0.05

_ROOT = Seen(IMPLICIT, stat.S_IFDIR)


class Rested(Unavailable):
    """A pass was given up, as nobody waited for the rest of the layer."""


@dataclass(slots=True, eq=False)
class _Waiter:
    """A thread that waits for an entry."""

    path: bytes
    found: Inode | Seen | None = None


class Arrival:
    """What has passed of one layer. Any thread may call anything.

    `points` are those that the pass notes in a gzip layer.
    """

    def __init__(self, lacks_threads: Callable[[], bool], on_shown: Callable[[], object]) -> None:
        """`lacks_threads` returns whether passes of other layers wait for a thread; `on_shown` is
        told before anything is shown.
        """
        self._lacks_threads = lacks_threads
        self._on_shown = on_shown
        self.points = GzipPoints()
        self._changed = threading.Condition()
        self._waiters: list[_Waiter] = []
        self._is_wanted_whole = False
        self._asked = time.monotonic()
        self._index: LayerIndex | None = None

    # ---- for those who ask -------------------------------------------------------------------

    def want_all(self) -> None:
        """Have the pass go on to the layer's end, whoever waits."""
        with self._changed:
            self._is_wanted_whole = True
            self._changed.notify_all()

    def rest(self) -> None:
        """Have the pass be given up now unless somebody waits; have those look who wait."""
        with self._changed:
            self._asked = -math.inf
            self._changed.notify_all()

    def wait_for(self, path: bytes, over: threading.Event, deadline: float) -> Inode | Seen | None:
        """Return the inode of an entry, with its pieces, once it has passed, or what is seen of a
        directory without an entry; else None once the pass is `over`.

        Raises DeadlineExceeded (`deadline` is monotonic); then the pass goes on.
        """
        with self._changed:
            self._asked = time.monotonic()
            found = self._look(path)
            if found is not None:
                return found
            waiter = _Waiter(path)
            self._waiters.append(waiter)
            self._changed.notify_all()
            try:
                while waiter.found is None and not over.is_set():
                    self._wait(deadline)
            finally:
                if waiter.found is None:
                    self._waiters.remove(waiter)
            return waiter.found

    def _wait(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            self._is_wanted_whole = True
            raise DeadlineExceeded("a layer is not read yet; reading continues")
        # A pass that has not begun, or has ended, tells nobody.
        self._changed.wait(min(left, _POLL_SECONDS) if self._index is None else left)

    def _look(self, path: bytes) -> Inode | Seen | None:
        """Return what the entries so far leave at a path, if that is certain."""
        if self._index is None:
            return None
        seen = self._index.see(path)
        if seen.inode is None or not seen.mode:
            return None
        self._on_shown()
        if seen.inode == IMPLICIT:
            return seen
        inode = self._index.inode(seen.inode)
        return replace(inode, pieces=tuple(self._index.pieces(inode.id, 0, inode.size)))

    # ---- for the pass ------------------------------------------------------------------------

    @contextmanager
    def passing(self, writer: IndexWriter) -> Iterator[None]:
        """Show what is in an index while it is being written."""
        with self._changed:
            self._index = writer.so_far()
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._index = None
                self._changed.notify_all()

    def follow(
        self, pieces: Iterator[memoryview], blob: BlobHandle, writer: IndexWriter
    ) -> Iterator[memoryview]:
        """Yield a tar stream's pieces while somebody waits for what they bring, or all of the blob
        is here. Raises Rested.
        """
        self._await_demand(blob)
        for piece in pieces:
            yield piece
            writer.flush()
            self._answer()
            self._await_demand(blob)

    def _answer(self) -> None:
        """Give those who wait what has passed."""
        with self._changed:
            for waiter in self._waiters:
                waiter.found = self._look(waiter.path)
            self._waiters = [waiter for waiter in self._waiters if waiter.found is None]
            self._changed.notify_all()

    def _await_demand(self, blob: BlobHandle) -> None:
        began = time.monotonic()
        with self._changed:
            while not (self._waiters or self._is_wanted_whole or blob.verified):
                since = min(self._asked, began) if self._lacks_threads() else self._asked
                left = since + _REST_SECONDS - time.monotonic()
                if left <= 0:
                    raise Rested("nobody waits for the rest of a layer")
                self._changed.wait(left)


class Arriving:
    """What a layer has that still arrives, as `LayerIndex` tells it, for one operation.

    Only `see` and `inode` answer before the layer's end. Where its root is concerned, they do so
    without having seen anything.
    """

    def __init__(
        self, arrived: Callable[[bytes], Inode | Seen | LayerIndex], whole: Callable[[], LayerIndex]
    ) -> None:
        """`arrived` returns what has passed at a path, or the whole index; `whole` that."""
        self._arrived = arrived
        self._whole = whole
        self._index: LayerIndex | None = None
        self._inodes: dict[int, Inode] = {}

    @property
    def has_aliases(self) -> bool:
        return self._index is not None and self._index.has_aliases

    @property
    def has_foreign_links(self) -> bool:
        return self._index is not None and self._index.has_foreign_links

    def see(self, path: bytes) -> Seen:
        if self._index is None:
            if not path:
                return _ROOT
            found = self._arrived(path)
            if isinstance(found, Seen):
                return found
            if isinstance(found, Inode):
                self._inodes[found.id] = found
                return Seen(found.id, found.mode)
            self._index = found
        return self._index.see(path)

    def inode(self, number: int) -> Inode:
        return self._inodes[number] if number in self._inodes else self.all().inode(number)

    def children(self, directory: bytes) -> list[tuple[bytes, int]]:
        return self.all().children(directory)

    def hidden(self, directory: bytes) -> set[bytes]:
        return self.all().hidden(directory)

    def aliases(self, number: int) -> list[bytes]:
        return self.all().aliases(number)

    def foreign_links(self, target: bytes) -> list[bytes]:
        return self.all().foreign_links(target)

    def all(self) -> LayerIndex:
        """Return the index of the whole layer, which is verified."""
        if self._index is None:
            self._index = self._whole()
        return self._index
