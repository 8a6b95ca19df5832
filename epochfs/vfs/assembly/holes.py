"""Files with holes: what is stored are their pieces of data, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from epochfs.blobs.buffers import clear
from epochfs.oci.kinds import SparseMap
from epochfs.oci.names import Digest
from epochfs.vfs.assembly.frames import Frames
from epochfs.vfs.assembly.joined import Assembly


class Readable(Protocol):
    """An open file."""

    def read_into(self, view: memoryview, offset: int) -> int:
        """Read exactly `min(len(view), size - offset)` bytes; return that, or raise."""

    def close(self) -> None:
        """Give it back; once."""


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """A file with holes, and what its data are stored as: `holes.length` bytes."""

    holes: SparseMap
    stored: Assembly | Frames

    @property
    def size(self) -> int:
        """The size of the file in bytes, holes and all."""
        return self.holes.size

    @property
    def digests(self) -> Iterator[Digest]:
        """The blobs that it is made of."""
        return self.stored.digests


class SparseHandle:
    """An open file with holes."""

    def __init__(self, holes: SparseMap, stored: Readable) -> None:
        self.size = holes.size
        self._holes = holes
        self._stored = stored

    def read_into(self, view: memoryview, offset: int) -> int:
        """Read exactly `min(len(view), size - offset)` bytes; return that, or raise."""
        count = max(0, min(len(view), self.size - offset))
        place = view[:count]
        pieces = list(self._holes.touched(offset, offset + count))
        clear(place)
        if len(pieces) == 1:
            start, stop, stored = pieces[0]
            self._stored.read_into(place[start - offset : stop - offset], stored)
        elif pieces:
            # What is stored of them follows one another: it is read at once, and then put in place.
            data = memoryview(bytearray(sum(stop - start for start, stop, _ in pieces)))
            first = pieces[0][2]
            self._stored.read_into(data, first)
            for start, stop, stored in pieces:
                place[start - offset : stop - offset] = data[stored - first :][: stop - start]
        return count

    def close(self) -> None:
        """Close what its data are read from."""
        self._stored.close()
