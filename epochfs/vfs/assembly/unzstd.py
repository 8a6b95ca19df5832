"""One blob that is a zstd frame, decompressed to a file, with a bound on all it takes."""

from __future__ import annotations

import os
from collections.abc import Callable

from epochfs.blobs.store import BlobHandle
from epochfs.cache.directory import cache_errors
from epochfs.layers.whole import PIECE_BYTES, content

_ZEROS = bytes(PIECE_BYTES)


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
