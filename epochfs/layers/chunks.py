"""The chunks of layers with a table of contents, and the chunk cache in memory.

Locks: `ChunkCache._lock` guards the cached chunks and, in `SingleFlight`, those being made; no I/O
happens under it.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial

from cachetools import LRUCache

from epochfs.blobs.store import BlobHandle
from epochfs.client.single_flight import SingleFlight
from epochfs.errors import ContentMismatch, DeadlineExceeded
from epochfs.layers import toc
from epochfs.layers.decoders import BlobFile, GzipMember, Source, read_up_to, zstd_decoder
from epochfs.layers.entry import Piece
from epochfs.oci.names import Digest

_CACHED_BYTES = 24 << 20
_MAX_DECODERS = 4
_PATIENCE_SECONDS = 30.0
"""How long a chunk waits for a decoder: half the time that a read has."""

_Key = tuple[Hashable, Hashable]


def _weight(chunk: bytes) -> int:
    """Return what a chunk counts; a very long one takes the place of all others."""
    return min(len(chunk), _CACHED_BYTES)


class ChunkCache:
    """The latest chunks of all layers: the kernel reads a chunk in many pieces, some in parallel.

    A chunk is made once, however many readers wait for it. Few are made at the same time, as each
    may take `toc.MAX_CHUNK_BYTES`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(_MAX_DECODERS)
        self._chunks: LRUCache[_Key, bytes] = LRUCache(_CACHED_BYTES, _weight)
        self._flights = SingleFlight[_Key, bytes](
            self._lock, self._chunks.__setitem__, lambda _: "a chunk of a layer is not read yet"
        )

    def get(self, layer: Hashable, piece: Hashable, make: Callable[[], bytes]) -> bytes:
        """Return a chunk of a layer, made if it is not cached."""
        key = (layer, piece)
        # No deadline here: whoever makes the chunk has one.
        return self._flights.do(
            key, partial(self._chunks.get, key), partial(self._make, make), math.inf
        )

    def _make(self, make: Callable[[], bytes]) -> bytes:
        if not self._slots.acquire(timeout=_PATIENCE_SECONDS):
            raise DeadlineExceeded("too many chunks of layers are being decompressed")
        try:
            return make()
        finally:
            self._slots.release()


@dataclass(frozen=True)
class ChunkedArchive:
    """A layer with a table of contents (an `Archive`); each chunk is verified by itself."""

    layer: Digest
    compression: str
    open_blob: Callable[[], BlobHandle]
    cache: ChunkCache

    verified = True

    def read_piece(self, piece: Piece, offset: int, view: memoryview) -> None:
        chunk = self.cache.get(self.layer, piece, partial(self._read_chunk, piece))
        view[:] = chunk[offset : offset + len(view)]

    def _read_chunk(self, piece: Piece) -> bytes:
        with contextlib.closing(self.open_blob()) as blob:
            file = BlobFile(blob)
            file.seek(piece.offset)
            is_gzip = self.compression == toc.ESTARGZ
            decoder: Source = GzipMember(file) if is_gzip else zstd_decoder(file)
            read_up_to(decoder, piece.skip)
            chunk = read_up_to(decoder, piece.size)
        if len(chunk) != piece.size or not Digest.parse(piece.digest).matches(chunk):
            raise ContentMismatch("a chunk of a layer does not match the digest in its table")
        return chunk
