"""Regular files that are put together from blobs: the parts of a disk, the pieces of a sparse file.

Locks: `AssembledHandle._lock` guards the blobs it has opened, and how many read from each; no I/O
happens under it.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from epochfs.blobs import BlobHandle, BlobStore
from epochfs.buffers import clear
from epochfs.errors import ProtocolViolation, Vanished
from epochfs.names import Digest, Repository

_MAX_IDLE = 8
"""How many blobs stay open that nobody reads at the moment: each takes a descriptor."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes `start` to before `stop` of a file: those of a blob from `blob_start` on."""

    start: int
    stop: int
    digest: Digest
    blob_size: int
    blob_start: int = 0


@dataclass(frozen=True, slots=True)
class Assembly:
    """A file of `size` bytes made of extents, which ascend; what lies between them is zeros."""

    size: int
    extents: tuple[Extent, ...]


@dataclass(slots=True, eq=False)
class _Opened:
    """A blob, and how many reads of it are under way."""

    blob: BlobHandle
    reads: int = 0


class AssembledHandle:
    """An open file made of blobs, each of which is opened at a read of it."""

    def __init__(self, blobs: BlobStore, repository: Repository, assembly: Assembly) -> None:
        self.size = assembly.size
        self._blobs = blobs
        self._repository = repository
        self._extents = assembly.extents
        self._starts = [extent.start for extent in assembly.extents]
        self._lock = threading.Lock()
        self._opened: dict[tuple[Digest, int], _Opened] = {}
        self._closed = False

    def read_into(self, view: memoryview, offset: int) -> int:
        """Read exactly `min(len(view), size - offset)` bytes; return that, or raise."""
        count = max(0, min(len(view), self.size - offset))
        done = 0
        for extent in self._touched(offset, offset + count):
            start, stop = max(extent.start, offset), min(extent.stop, offset + count)
            clear(view[done : start - offset])
            done = stop - offset
            piece = view[start - offset : done]
            with self._blob(extent) as blob:
                got = blob.read_into(piece, extent.blob_start + start - extent.start)
            if got != len(piece):
                raise ProtocolViolation(f"{extent.digest} ends within the file it is a part of")
        clear(view[done:count])
        return count

    def close(self) -> None:
        """Close the blobs that were opened; once."""
        with self._lock:
            self._closed = True
        self._close_idle()

    def _touched(self, start: int, stop: int) -> Iterator[Extent]:
        """Yield the extents that have some of the bytes `start` to before `stop`."""
        index = max(0, bisect_right(self._starts, start) - 1)
        while index < len(self._extents) and self._extents[index].start < stop:
            if self._extents[index].stop > start:
                yield self._extents[index]
            index += 1

    @contextmanager
    def _blob(self, extent: Extent) -> Iterator[BlobHandle]:
        """Lend out the blob of an extent."""
        opened = self._take(extent)
        try:
            yield opened.blob
        finally:
            with self._lock:
                opened.reads -= 1
            self._close_idle()

    def _take(self, extent: Extent) -> _Opened:
        """Begin a read of the blob of an extent, which is opened if it is not."""
        key = (extent.digest, extent.blob_size)
        with self._lock:
            if self._closed:
                raise Vanished("the file was closed")
            if key in self._opened:
                return self._begin_read(key, self._opened[key])
        fresh = _Opened(self._blobs.open(self._repository, *key))
        with self._lock:
            opened = self._begin_read(key, self._opened.get(key, fresh))
        if opened is not fresh:
            fresh.blob.close()
        return opened

    def _begin_read(self, key: tuple[Digest, int], opened: _Opened) -> _Opened:
        """Count a read, and put the blob behind all others; with the lock held."""
        opened.reads += 1
        self._opened.pop(key, None)
        self._opened[key] = opened
        return opened

    def _close_idle(self) -> None:
        """Close the blobs that nobody reads; while the file is open, all but the few used last."""
        with self._lock:
            idle = [key for key, opened in self._opened.items() if not opened.reads]
            kept = 0 if self._closed else _MAX_IDLE
            surplus = [self._opened.pop(key) for key in idle[: max(0, len(idle) - kept)]]
        for opened in surplus:
            opened.blob.close()
