"""Random access to a layer's tar stream, given its index.

Uncompressed, the blob itself is read. gzip is mostly read by `spans`; where its blocks are too long
for that, it is decoded from the nearest point of the index before the offset. zstd has no points,
so it is decompressed to a copy, which is kept in the blob cache under its own digest and evicted
like any blob. If the cache has no room for that, decoders resume from where they are, or start
over. A layer that still arrives has no index yet: gzip has the points noted so far, zstd none.

Locks: `_DecodedArchive._lock` guards the list of idle decoders; decoding happens outside of it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from epochfs.blobs.store import BlobHandle
from epochfs.cache.blobs import BlobCache, read_exactly
from epochfs.errors import CacheFailure, ContentMismatch, ProtocolViolation
from epochfs.layers.decoders import (
    PIECE_BYTES,
    BlobFile,
    GuardedDecoder,
    compression_of,
    gzip_decoder,
    read_to_end,
    zstd_decoder,
)
from epochfs.layers.entry import Piece
from epochfs.layers.gzip_reader import GzipPoints, GzipReader
from epochfs.layers.index import LayerIndex
from epochfs.oci.names import Digest

_MAX_IDLE = 2
_MAX_DECODERS = 4

_Decoder = GuardedDecoder | GzipReader


class Archive(Protocol):
    """Where the pieces of a layer's files are read: here, a `SpanArchive` or a `ChunkedArchive`."""

    @property
    def verified(self) -> bool:
        """Whether what is read from now on has been checked against a digest."""

    def read_piece(self, piece: Piece, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes of a piece from `offset` in it, or raise."""


def open_archive(index: LayerIndex, blob: BlobHandle, cache: BlobCache) -> Archive:
    """Open a blob's tar stream. The blob is closed when the archive is no longer used.

    Reads the whole blob first if it is not verified yet, and decompresses all of a zstd blob that
    has no copy yet.
    """
    compression = index.meta["compression"]
    with contextlib.ExitStack() as closing:
        closing.callback(blob.close)
        if compression == "zstd":
            try:
                return _CopyArchive(_decompressed(index, blob, cache))
            except CacheFailure as error:
                cache.directory.report(error)
        if not blob.verified:
            # It was when the index was made, and has been evicted since.
            read_to_end(blob, 0)
        closing.pop_all()
    if compression == "none":
        return _PlainArchive(blob)
    if compression == "zstd":
        return _DecodedArchive(blob, lambda: zstd_decoder(BlobFile(blob)), seeks_back=False)
    return _DecodedArchive(
        blob, lambda: gzip_decoder(BlobFile(blob), index.gzip_points()), seeks_back=True
    )


def open_arriving(blob: BlobHandle, points: GzipPoints, check: Callable[[], None]) -> Archive:
    """Open the tar stream of a blob that need not be verified yet, as `open_archive` does.

    `check` raises once the blob has turned out wrong, and then so does every read.
    """
    archive: Archive
    with contextlib.ExitStack() as closing:
        closing.callback(blob.close)
        compression = compression_of(blob)
        closing.pop_all()
    if compression == "gzip":
        archive = _DecodedArchive(blob, lambda: GzipReader(BlobFile(blob), points), seeks_back=True)
    elif compression == "zstd":
        archive = _DecodedArchive(blob, lambda: zstd_decoder(BlobFile(blob)), seeks_back=False)
    else:
        archive = _PlainArchive(blob)
    return _ArrivingArchive(archive, check)


@dataclass(frozen=True, slots=True)
class _ArrivingArchive:
    """An archive whose bytes may turn out wrong after some of them were read."""

    archive: Archive
    check: Callable[[], None]

    @property
    def verified(self) -> bool:
        return self.archive.verified

    def read_piece(self, piece: Piece, offset: int, view: memoryview) -> None:
        self.archive.read_piece(piece, offset, view)
        self.check()


class _PlainArchive:
    """The blob itself."""

    def __init__(self, blob: BlobHandle) -> None:
        self._blob = blob
        weakref.finalize(self, blob.close).atexit = False

    @property
    def verified(self) -> bool:
        return self._blob.verified

    def read_piece(self, piece: Piece, offset: int, view: memoryview) -> None:
        if self._blob.read_into(view, piece.offset + offset) != len(view):
            raise ProtocolViolation("a layer that ends within a file")


class _DecodedArchive(_PlainArchive):
    """Keeps a few decoders, so that several readers can each resume from where they are."""

    def __init__(
        self, blob: BlobHandle, start: Callable[[], _Decoder], *, seeks_back: bool
    ) -> None:
        """`start` makes a decoder at the start of the stream; `seeks_back`: it can go back."""
        super().__init__(blob)
        self._start = start
        self._seeks_back = seeks_back
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(_MAX_DECODERS)
        self._idle: list[tuple[int, _Decoder]] = []

    def read_piece(self, piece: Piece, offset: int, view: memoryview) -> None:
        with self._slots:
            start = piece.offset + offset
            stop = start + len(view)
            decoder = self._take(start)
            decoder.seek(start)
            while view:
                count = decoder.readinto(view)
                if not count:
                    raise ProtocolViolation("a layer that ends within a file")
                view = view[count:]
            self._give_back(stop, decoder)

    def _take(self, offset: int) -> _Decoder:
        """Take the nearest idle decoder before an offset, or a new one."""
        with self._lock:
            before = [one for one in self._idle if one[0] <= offset]
            if before or len(self._idle) == _MAX_IDLE:
                chosen = max(before or self._idle, key=lambda one: one[0])
                self._idle.remove(chosen)
                if before or self._seeks_back:
                    return chosen[1]
        return self._start()

    def _give_back(self, position: int, decoder: _Decoder) -> None:
        with self._lock:
            if len(self._idle) < _MAX_IDLE:
                self._idle.append((position, decoder))
                return
        decoder.close()


class _CopyArchive:
    """The decompressed copy; its open `fd` protects it from eviction."""

    verified = True

    def __init__(self, fd: int) -> None:
        self._fd = fd
        weakref.finalize(self, os.close, fd)

    def read_piece(self, piece: Piece, offset: int, view: memoryview) -> None:
        read_exactly(self._fd, view, piece.offset + offset)


def _decompressed(index: LayerIndex, blob: BlobHandle, cache: BlobCache) -> int:
    """Return a descriptor of a zstd blob's decompressed copy, made if need be.

    Raises CacheFailure if the cache has no room for it.
    """
    digest, size = Digest.parse(str(index.meta["tar_digest"])), int(index.meta["tar_size"])
    if size > cache.quota.size_limit:
        raise CacheFailure(f"a layer decompresses to {size} bytes, over the maximum cache size")
    fd = cache.open(digest, size)
    if fd is not None:
        return fd
    staged = cache.stage(digest, size)
    try:
        staged.forget()
        staged.allocate()
        hasher, position = digest.hasher(), 0
        decoder, buffer = zstd_decoder(BlobFile(blob)), memoryview(bytearray(PIECE_BYTES))
        while position < size and (count := decoder.readinto(buffer)):
            piece = buffer[: min(count, size - position)]
            hasher.update(piece)
            staged.write(position, piece)
            position += len(piece)
        if hasher.hexdigest() != digest.encoded:
            raise ContentMismatch("a layer no longer decompresses to the same bytes")
        staged.promote()
        # A duplicate shares the lock that protects a blob in use from eviction.
        return os.dup(staged.fd)
    except BaseException:
        with contextlib.suppress(CacheFailure):
            staged.discard()
        raise
    finally:
        staged.close()
