"""Regular files that are put together from blobs: the parts of a disk, the pieces of a sparse file.

Locks: `AssembledHandle._lock` guards the blobs it has opened; no I/O happens under it.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from epochfs.blobs import BlobHandle, BlobStore
from epochfs.errors import Vanished
from epochfs.names import Digest, Repository


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


class AssembledHandle:
    """An open file made of blobs, each of which is opened at the first read of it."""

    def __init__(self, blobs: BlobStore, repository: Repository, assembly: Assembly) -> None:
        self.size = assembly.size
        self._blobs = blobs
        self._repository = repository
        self._extents = assembly.extents
        self._starts = [extent.start for extent in assembly.extents]
        self._lock = threading.Lock()
        self._opened: dict[Digest, BlobHandle] = {}
        self._closed = False

    def read_into(self, view: memoryview, offset: int) -> int:
        """Read exactly `min(len(view), size - offset)` bytes; return that, or raise."""
        count = max(0, min(len(view), self.size - offset))
        done = 0
        for extent in self._touched(offset, offset + count):
            start, stop = max(extent.start, offset), min(extent.stop, offset + count)
            _zero(view[done : start - offset])
            done = stop - offset
            piece = view[start - offset : done]
            self._blob(extent).read_into(piece, extent.blob_start + start - extent.start)
        _zero(view[done:count])
        return count

    def close(self) -> None:
        """Close the blobs that were opened; once."""
        with self._lock:
            self._closed = True
            opened = list(self._opened.values())
            self._opened.clear()
        for blob in opened:
            blob.close()

    def _touched(self, start: int, stop: int) -> Iterator[Extent]:
        """Yield the extents that have some of the bytes `start` to before `stop`."""
        index = max(0, bisect_right(self._starts, start) - 1)
        while index < len(self._extents) and self._extents[index].start < stop:
            if self._extents[index].stop > start:
                yield self._extents[index]
            index += 1

    def _blob(self, extent: Extent) -> BlobHandle:
        with self._lock:
            known = self._opened.get(extent.digest)
        if known is not None:
            return known
        opened = self._blobs.open(self._repository, extent.digest, extent.blob_size)
        with self._lock:
            closed = self._closed
            kept = opened if closed else self._opened.setdefault(extent.digest, opened)
        if closed or kept is not opened:
            opened.close()
        if closed:
            raise Vanished("the file was closed")
        return kept


def _zero(view: memoryview) -> None:
    view[:] = bytes(len(view))
