"""Files that are blobs, or pieces of them, one after the other: the parts of a disk."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from epochfs.blobs.buffers import clear
from epochfs.blobs.store import BlobHandle, BlobStore
from epochfs.errors import ProtocolViolation
from epochfs.oci.manifests import Descriptor
from epochfs.oci.names import Digest, Repository
from epochfs.vfs.assembly.lending import Lending

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

    @property
    def digests(self) -> Iterator[Digest]:
        """The blobs that it is made of."""
        return (extent.digest for extent in self.extents)


def joined(blobs: Iterable[Descriptor]) -> Assembly:
    """Return a file that is these blobs, one after the other."""
    parts = tuple(blobs)
    stops = accumulate(part.size for part in parts)
    extents = tuple(
        Extent(stop - part.size, stop, part.digest, part.size)
        for part, stop in zip(parts, stops, strict=True)
    )
    return Assembly(sum(part.size for part in parts), extents)


class AssembledHandle:
    """An open file made of blobs, each of which is opened at a read of it."""

    def __init__(self, blobs: BlobStore, repository: Repository, assembly: Assembly) -> None:
        self.size = assembly.size
        self._extents = assembly.extents
        self._starts = [extent.start for extent in assembly.extents]
        self._opened: Lending[tuple[Digest, int], BlobHandle] = Lending(
            lambda blob: blobs.open(repository, *blob), _MAX_IDLE
        )

    def read_into(self, view: memoryview, offset: int) -> int:
        """Read exactly `min(len(view), size - offset)` bytes; return that, or raise."""
        count = max(0, min(len(view), self.size - offset))
        done = 0
        for extent in self._touched(offset, offset + count):
            start, stop = max(extent.start, offset), min(extent.stop, offset + count)
            clear(view[done : start - offset])
            done = stop - offset
            piece = view[start - offset : done]
            with self._opened.lent((extent.digest, extent.blob_size)) as blob:
                got = blob.read_into(piece, extent.blob_start + start - extent.start)
            if got != len(piece):
                raise ProtocolViolation(f"{extent.digest} ends within the file it is a part of")
        clear(view[done:count])
        return count

    def close(self) -> None:
        """Close the blobs that were opened; once."""
        self._opened.close()

    def _touched(self, start: int, stop: int) -> Iterator[Extent]:
        """Yield the extents that have some of the bytes `start` to before `stop`."""
        index = max(0, bisect_right(self._starts, start) - 1)
        while index < len(self._extents) and self._extents[index].start < stop:
            if self._extents[index].stop > start:
                yield self._extents[index]
            index += 1
