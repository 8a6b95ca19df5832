"""One blob that is a zstd frame, decompressed to a file, with a bound on all it takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from epochfs.blobs.buffers import page_aligned
from epochfs.blobs.store import BlobHandle
from epochfs.cache.directory import cache_errors
from epochfs.errors import ContentMismatch
from epochfs.layers.archive import read_to_end
from epochfs.layers.decoders import BlobFile, zstd_decoder

_PIECE_BYTES = 1 << 20
_ZEROS = bytes(_PIECE_BYTES)

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

    Raises ContentMismatch unless the blob is verified, its frame complete, and what comes out of it
    at most `limit` bytes: that is known at the end, and not before.
    """
    file = _Ended(blob)
    decoder, buffer = zstd_decoder(file), page_aligned(_PIECE_BYTES + len(_END))
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
        raise ContentMismatch("a blob ends within a zstd frame")
    read_to_end(blob, file.tell())


def unpack(blob: BlobHandle, fd: int, limit: int, grown: Callable[[int], None]) -> int:
    """Decompress a blob to the file `fd`, and return the length of what came out.

    `grown` is told up to where it is there. Raises as `content`, and what `grown` raises.
    """
    position = 0
    with cache_errors("making a file to decompress to"):
        os.ftruncate(fd, limit)
    for piece in content(blob, limit):
        _write(fd, piece, position)
        position += len(piece)
        grown(position)
    return position


def _write(fd: int, piece: memoryview, offset: int) -> None:
    """Write to a file of zeros; nothing where there are only zeros to write."""
    if not (piece[0] or piece[-1]) and bytes(piece) == _ZEROS[: len(piece)]:
        return
    with cache_errors("writing what was decompressed"):
        while piece:
            written = os.pwrite(fd, piece, offset)
            piece, offset = piece[written:], offset + written
