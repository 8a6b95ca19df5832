"""Whole blobs: where one was cut short, decompressing it ends with an error, and not just sooner.

The decoders give what is there and then the end, as if that were all. What is missing must be
noticed here, for the blob may have its digest: the layer was cut before it was pushed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from epochfs.blobs.buffers import page_aligned
from epochfs.blobs.store import BlobHandle
from epochfs.errors import ContentMismatch, ProtocolViolation
from epochfs.layers.archive import read_to_end
from epochfs.layers.decoders import GZIP_MAGIC, BlobFile, GzipMember, read_range, zstd_decoder

PIECE_BYTES = 1 << 20

_END = b"epochfs: the end"
_END_FRAME = b"\x28\xb5\x2f\xfd\x20\x10\x81\x00\x00" + _END
"""A frame of one raw block (RFC 8878, §3.1.1) that is read behind the blob's own. The decoder does
not tell whether a frame was complete; but only then does this one come out after it."""


class _Ended(BlobFile):
    """A blob with that frame behind it."""

    def __init__(self, blob: BlobHandle) -> None:
        super().__init__(blob)
        self._rest = memoryview(_END_FRAME)

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - whatever has the buffer protocol
        count = super().readinto(buffer)
        if count:
            return count
        view = memoryview(buffer).cast("B")
        piece, self._rest = self._rest[: len(view)], self._rest[len(view) :]
        view[: len(piece)] = piece
        return len(piece)


def content(blob: BlobHandle, limit: int) -> Iterator[memoryview]:
    """Yield what a blob decompresses to, in pieces that are each valid until the next.

    Raises ProtocolViolation unless its frames are complete, and ContentMismatch unless the blob is
    verified and what comes out of it is at most `limit` bytes: that is known at the end only.
    """
    file = _Ended(blob)
    decoder, buffer = zstd_decoder(file), page_aligned(PIECE_BYTES + len(_END))
    kept = position = 0
    while count := decoder.readinto(buffer[kept:]):
        # What is last may be the end, and is kept back.
        stop = kept + count
        ready = max(0, stop - len(_END))
        position += ready
        if position > limit:
            raise ContentMismatch(f"a blob decompresses to more than {limit} bytes")
        if ready:
            yield buffer[:ready]
        kept = stop - ready
        buffer[:kept] = bytes(buffer[ready:stop])
    if buffer[:kept] != _END:
        raise ProtocolViolation("a blob ends within a zstd frame")
    read_to_end(blob, file.tell())


class WholeZstd:
    """What a blob decompresses to, as the source of a stream (`tarstream.Source`)."""

    def __init__(self, blob: BlobHandle) -> None:
        self._pieces = content(blob, sys.maxsize)  # the stream has a limit
        self._rest = memoryview(b"")

    def readinto(self, buffer: memoryview, /) -> int:
        self._rest = self._rest or next(self._pieces, memoryview(b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def check_gzip(blob: BlobHandle, size: int) -> None:
    """Raise ProtocolViolation if a blob that gave `size` bytes ends within a gzip member.

    One member that is whole ends with that number (RFC 1952, section 2.3.1). Only where that is
    not what stands there, it is decompressed once more, member by member.
    """
    if read_range(blob, max(0, blob.size - 4), 4) == (size % 2**32).to_bytes(4, "little"):
        return
    file, buffer = BlobFile(blob), memoryview(bytearray(PIECE_BYTES))
    while read_range(blob, file.tell(), len(GZIP_MAGIC)) == GZIP_MAGIC:
        member = GzipMember(file)
        while member.readinto(buffer):
            pass
        if not member.is_whole:
            raise ProtocolViolation("a layer ends within a gzip member")
        file.seek(file.tell() - member.unused)
