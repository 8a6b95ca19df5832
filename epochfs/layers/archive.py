"""A layer's tar stream at random, given its index.

As it is where it is not compressed. Of gzip, by decoders that go on from the nearest point of the
index before. Of zstd, which has no such points, from a decompressed copy: it is kept in the blob
cache like any blob, by its own digest, and evicted like any. Where the cache cannot take that, by
decoders that each go on from where they are, or begin anew.

Locks: `_DecodedArchive._lock` guards the list of idle decoders; decoding happens outside of it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from typing import Protocol

from epochfs.blobs.store import BlobHandle
from epochfs.cache.blobs import BlobCache, read_exactly
from epochfs.errors import CacheFailure, ContentMismatch, ProtocolViolation
from epochfs.layers.decoders import BlobFile, GuardedDecoder, gzip_decoder, zstd_decoder
from epochfs.layers.index import LayerIndex
from epochfs.oci.names import Digest

_MAX_IDLE = 2
_MAX_DECODERS = 4
_COPY_BYTES = 1 << 20
_POINTS = 4096
_MIN_SPACING = 2 << 20
_FREE_BYTES = 2 << 30
_MAX_RATIO = 100


class Archive(Protocol):
    """The bytes of a tar stream."""

    @property
    def verified(self) -> bool:
        """Whether what is read from now on has been checked against a digest."""

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` with the bytes at `offset`, or raise."""


def size_limit(blob_size: int) -> int:
    """How many bytes a blob may decompress to: 2 GiB, or 100 times its own size if that is more."""
    return max(_FREE_BYTES, _MAX_RATIO * blob_size)


def gzip_spacing(blob_size: int) -> int:
    """How many bytes apart the points of an index are, each of which takes 32 KiB.

    Bounds an index at 128 MiB; that of a usual layer is a fiftieth of what it decompresses to.
    """
    return max(_MIN_SPACING, size_limit(blob_size) // _POINTS)


def closed_with(owner: object, blob: BlobHandle) -> None:
    """Have a blob closed when the last who uses `owner` lets go of it."""
    weakref.finalize(owner, blob.close).atexit = False


def open_archive(index: LayerIndex, blob: BlobHandle, cache: BlobCache) -> Archive:
    """Open the tar stream of a blob, which is closed when the last reader lets go of the archive.

    Takes the time of reading it all where that is not verified yet, and for zstd the time of
    decompressing it all where the copy is not there yet.
    """
    compression = index.meta["compression"]
    if compression == "zstd":
        copy = _copy(index, blob, cache)
        if copy is not None:
            return copy
    try:
        if not blob.verified:
            # It was when the index was made, and is no longer in the cache.
            read_to_end(blob, 0)
    except BaseException:
        blob.close()
        raise
    if compression == "none":
        return _PlainArchive(blob)
    return _GzipArchive(blob, index) if compression == "gzip" else _ZstdArchive(blob)


def _copy(index: LayerIndex, blob: BlobHandle, cache: BlobCache) -> Archive | None:
    """Return the decompressed copy of a zstd blob, which is then closed; None where it has no room.

    The blob is closed also where this raises.
    """
    try:
        found = _CopyArchive(_decompressed(index, blob, cache))
    except CacheFailure as error:
        cache.directory.report(error)
        return None
    except BaseException:
        blob.close()
        raise
    blob.close()
    return found


def read_to_end(blob: BlobHandle, offset: int) -> None:
    """Read on from an offset: only at its end is a blob verified, and an empty one when opened."""
    view = memoryview(bytearray(_COPY_BYTES))
    while count := blob.read_into(view, offset):
        offset += count
    if blob.size and not blob.verified:
        raise ContentMismatch("a layer came to its end without being verified")


class _PlainArchive:
    def __init__(self, blob: BlobHandle) -> None:
        self._blob = blob
        closed_with(self, blob)

    @property
    def verified(self) -> bool:
        return self._blob.verified

    def read_into(self, view: memoryview, offset: int) -> None:
        if self._blob.read_into(view, offset) != len(view):
            raise ProtocolViolation("a layer that ends within a file")


class _DecodedArchive:
    """A few decoders, so that several readers can each go on from where they are."""

    seeks_back = False
    """Whether a decoder can go back."""

    def __init__(self, blob: BlobHandle) -> None:
        self._blob = blob
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(_MAX_DECODERS)
        self._idle: list[tuple[int, GuardedDecoder]] = []
        closed_with(self, blob)

    @property
    def verified(self) -> bool:
        return self._blob.verified

    def read_into(self, view: memoryview, offset: int) -> None:
        with self._slots:
            decoder = self._take(offset)
            decoder.seek(offset)
            stop = offset + len(view)
            while view:
                count = decoder.readinto(view)
                if not count:
                    raise ProtocolViolation("a layer that ends within a file")
                view = view[count:]
            self._give_back(stop, decoder)

    def _take(self, offset: int) -> GuardedDecoder:
        """Take the idle decoder that is nearest before an offset, or a new one."""
        with self._lock:
            before = [one for one in self._idle if one[0] <= offset]
            if before or len(self._idle) == _MAX_IDLE:
                chosen = max(before or self._idle, key=lambda one: one[0])
                self._idle.remove(chosen)
                if before or self.seeks_back:
                    return chosen[1]
        return self._decoder()

    def _decoder(self) -> GuardedDecoder:
        """Return a new decoder, from the start of the stream."""
        raise NotImplementedError

    def _give_back(self, position: int, decoder: GuardedDecoder) -> None:
        with self._lock:
            if len(self._idle) < _MAX_IDLE:
                self._idle.append((position, decoder))
                return
        decoder.close()


class _GzipArchive(_DecodedArchive):
    seeks_back = True

    def __init__(self, blob: BlobHandle, index: LayerIndex) -> None:
        super().__init__(blob)
        self._index = index

    def _decoder(self) -> GuardedDecoder:
        points = self._index.gzip_points()
        return gzip_decoder(BlobFile(self._blob), gzip_spacing(self._blob.size), points)


class _ZstdArchive(_DecodedArchive):
    def _decoder(self) -> GuardedDecoder:
        return zstd_decoder(BlobFile(self._blob))


class _CopyArchive:
    """The decompressed copy, which `fd` holds against eviction."""

    verified = True

    def __init__(self, fd: int) -> None:
        self._fd = fd
        weakref.finalize(self, os.close, fd)

    def read_into(self, view: memoryview, offset: int) -> None:
        read_exactly(self._fd, view, offset)


def _decompressed(index: LayerIndex, blob: BlobHandle, cache: BlobCache) -> int:
    """Return a descriptor of the decompressed copy of a zstd blob, made where there is none.

    Raises CacheFailure where the cache has no room for it.
    """
    digest, size = Digest.parse(str(index.meta["tar_digest"])), int(index.meta["tar_size"])
    if size > cache.quota.size_limit:
        raise CacheFailure(f"a layer decompresses to {size} bytes, more than it may hold")
    fd = cache.open(digest, size)
    if fd is not None:
        return fd
    staged = cache.stage(digest, size)
    try:
        staged.forget()
        staged.allocate()
        hasher, position = digest.hasher(), 0
        decoder, buffer = zstd_decoder(BlobFile(blob)), memoryview(bytearray(_COPY_BYTES))
        while position < size and (count := decoder.readinto(buffer)):
            piece = buffer[: min(count, size - position)]
            hasher.update(piece)
            staged.write(position, piece)
            position += len(piece)
        if hasher.hexdigest() != digest.encoded:
            raise ContentMismatch("a layer does not decompress to what it did before")
        staged.promote()
        # A duplicate shares the lock by which a blob in use is not evicted.
        return os.dup(staged.fileno())
    except BaseException:
        with contextlib.suppress(CacheFailure):
            staged.discard()
        raise
    finally:
        staged.close()
