"""The bytes of one file of a layer.

Locks: `ChunkCache._lock` guards the chunks that are kept and, in `SingleFlight`, those being made;
no I/O happens under it.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable
from functools import partial
from typing import Protocol

from cachetools import LRUCache

from epochfs.blobs.buffers import clear
from epochfs.blobs.store import BlobHandle
from epochfs.client.single_flight import SingleFlight
from epochfs.errors import ContentMismatch, DeadlineExceeded, ProtocolViolation, Vanished
from epochfs.layers import stargz
from epochfs.layers.archive import Archive
from epochfs.layers.decoders import BlobFile, GzipMember, read_up_to, zstd_decoder
from epochfs.layers.entry import Piece
from epochfs.layers.index import LayerIndex
from epochfs.layers.tar_stream import Source
from epochfs.oci.names import Digest

_CACHED_BYTES = 128 << 20
_MAX_DECODERS = 4
_PATIENCE_SECONDS = 30.0
"""How long a chunk waits for others to be made, which is half the time that a read has."""

_Chunk = tuple[Digest, Piece]
"""A chunk of the layer of that digest."""


class Pieces(Protocol):
    """Where the pieces of a layer's files are read from."""

    @property
    def verified(self) -> bool:
        """Whether what is read from now on has been checked against a digest."""

    def read_piece(self, piece: Piece, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes of a piece from `offset` in it, or raise."""


class LayerFile:
    """One open file of `size` bytes: its pieces, and zeros where there is none.

    `on_failure` is called when the pieces cannot be read, and never will be from where they are.
    """

    def __init__(
        self,
        index: LayerIndex,
        number: int,
        size: int,
        pieces: Pieces,
        on_failure: Callable[[], None],
    ) -> None:
        self._index = index
        self._number = number
        self._size = size
        self._pieces = pieces
        self._on_failure = on_failure

    @property
    def verified(self) -> bool:
        """Whether what is read from now on has been checked against a digest."""
        return self._pieces.verified

    def read_into(self, view: memoryview, offset: int) -> int:
        """Read exactly `min(len(view), size - offset)` bytes; return that, or raise."""
        count = max(0, min(len(view), self._size - offset))
        stop, position = offset + count, offset
        for piece in self._index.pieces(self._number, offset, stop):
            start, end = max(piece.start, offset), min(piece.start + piece.size, stop)
            if start < end:
                clear(view[position - offset : start - offset])
                self._read(piece, start - piece.start, view[start - offset : end - offset])
                position = end
        clear(view[position - offset : count])
        return count

    def _read(self, piece: Piece, offset: int, view: memoryview) -> None:
        try:
            self._pieces.read_piece(piece, offset, view)
        except (ProtocolViolation, Vanished):
            self._on_failure()
            raise

    def close(self) -> None:
        """Let go of it."""


class TarPieces:
    """The pieces of files in a tar stream."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    @property
    def verified(self) -> bool:
        return self._archive.verified

    def read_piece(self, piece: Piece, offset: int, view: memoryview) -> None:
        self._archive.read_into(view, piece.offset + offset)


class ChunkCache:
    """The chunks last read, of any layer: the kernel reads a chunk in many pieces, some at once.

    A chunk is made once for all who want it at that moment, and few are made at once, as each may
    take `toc.MAX_CHUNK_BYTES`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(_MAX_DECODERS)
        self._chunks: LRUCache[_Chunk, bytes] = LRUCache(_CACHED_BYTES, len)
        self._making = SingleFlight[_Chunk, bytes](
            self._lock, self._chunks.__setitem__, lambda _: "a chunk of a layer is not read yet"
        )

    def get(self, layer: Digest, piece: Piece, make: Callable[[], bytes]) -> bytes:
        """Return a chunk; made now if it is not here."""
        key = (layer, piece)
        # No deadline here: whoever makes the chunk has one.
        return self._making.do(
            key, partial(self._chunks.get, key), partial(self._make, make), math.inf
        )

    def _make(self, make: Callable[[], bytes]) -> bytes:
        if not self._slots.acquire(timeout=_PATIENCE_SECONDS):
            raise DeadlineExceeded("other chunks of layers take their time")
        try:
            return make()
        finally:
            self._slots.release()


class ChunkPieces:
    """The pieces of files in a layer with a table of contents; each is verified by itself."""

    verified = True

    def __init__(
        self, layer: Digest, compression: str, open_blob: Callable[[], BlobHandle], kept: ChunkCache
    ) -> None:
        self._layer = layer
        self._compression = compression
        self._open_blob = open_blob
        self._kept = kept

    def read_piece(self, piece: Piece, offset: int, view: memoryview) -> None:
        chunk = self._kept.get(self._layer, piece, lambda: self._read_chunk(piece))
        view[:] = chunk[offset : offset + len(view)]

    def _read_chunk(self, piece: Piece) -> bytes:
        with contextlib.closing(self._open_blob()) as blob:
            return _chunk(self._compression, blob, piece)


def _chunk(compression: str, blob: BlobHandle, piece: Piece) -> bytes:
    file = BlobFile(blob)
    file.seek(piece.offset)
    decoder: Source = GzipMember(file) if compression == stargz.FORMAT else zstd_decoder(file)
    read_up_to(decoder, piece.skip)
    chunk = read_up_to(decoder, piece.size)
    if len(chunk) != piece.size or not Digest.parse(piece.digest).matches(chunk):
        raise ContentMismatch(
            "a chunk of a layer does not have the digest of its table of contents"
        )
    return chunk
