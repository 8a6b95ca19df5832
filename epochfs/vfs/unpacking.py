"""Decompresses each zstd frame once, however many readers it has, into a file without a name.

A chunk of a snapshot may be a frame of half a GiB, and a whole file one of many: too much for
memory. So the output goes to the cache's disk, and is read there at random. When its last reader
leaves it stays for a while, in case somebody comes back; the kernel frees it with the mount. It
does not count towards the cache's limit, but room is made for it. If the disk has none, a frame is
decompressed as it is read (`streaming`).

A few threads decompress frames to their ends, and readers follow. The length of a frame is known
once its blob has matched its digest, and not before.

Locks: `Unpacker._lock` guards its tables and the counts of readers, `Unpacked._changed` what is
known of one frame; the second may be taken with the first held. No I/O happens under either.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial

from cachetools import LRUCache

from epochfs.blobs.passing import Seats
from epochfs.blobs.store import BlobHandle, BlobStore
from epochfs.cache.blobs import BlobCache, read_exactly
from epochfs.cache.directory import cache_errors
from epochfs.errors import (
    CacheFailure,
    ContentMismatch,
    DeadlineExceeded,
    EpochfsError,
    ProtocolViolation,
    Unavailable,
    Vanished,
    fresh,
)
from epochfs.layers.decoders import PIECE_BYTES, zstd_content
from epochfs.oci.names import Digest, Repository
from epochfs.vfs.streaming import StreamedFrame

log = logging.getLogger(__name__)

_MAX_DECODERS = 8
"""How many frames are decompressed as they are read: each may take 128 MiB for its window."""

_WORKERS = 4
_SHARE = 10
_MAX_IDLE = 16
"""Frames without readers take at most this part of the cache's limit, and so many descriptors."""

_ZEROS = bytes(PIECE_BYTES)


@dataclass(frozen=True, slots=True)
class Frame:
    """A blob of `size` bytes that decompresses to at most `limit` bytes."""

    digest: Digest
    size: int
    limit: int


class Unpacked:
    """What a frame has decompressed to so far. Any thread may read it."""

    def __init__(self, fd: int, begin: Callable[[Unpacked], object]) -> None:
        """`fd` is the file with the output, closed with the last reference to this. `begin` has a
        thread fill it: once a reader waits, and again after a failure that may pass.
        """
        self.fd = fd
        self.readers = 0
        self._begin = begin
        self._changed = threading.Condition()
        self._is_filled = False
        self._runs = 0
        self._position = 0
        self._length: int | None = None
        self._error: EpochfsError | None = None
        weakref.finalize(self, os.close, fd).atexit = False

    @property
    def complete(self) -> bool:
        """Whether all of it is here, and right."""
        return self._length is not None

    @property
    def spoiled(self) -> bool:
        """Whether no further attempt can succeed."""
        return isinstance(self._error, ProtocolViolation | Vanished)

    def length(self, deadline: float) -> int:
        """Return its length, once it is decompressed and its blob has matched its digest.

        Raises DeadlineExceeded (`deadline` is monotonic), or why it could not be decompressed.
        """
        self._wait(None, deadline)
        assert self._length is not None
        return self._length

    def read_into(self, view: memoryview, offset: int, deadline: float) -> None:
        """Fill `view` from `offset` as soon as those bytes are there; raises as `length`."""
        self._wait(offset + len(view), deadline)
        read_exactly(self.fd, view, offset)

    def grown(self, position: int) -> None:
        """Show readers what is before a position. Raises Unavailable if there are no readers."""
        if not self.readers:
            raise Unavailable("it has no readers any more")
        with self._changed:
            self._position = max(self._position, position)
            self._changed.notify_all()

    def finish(self, length: int) -> None:
        """Show readers all of it, now that it is verified."""
        with self._changed:
            self._length = length
            self._changed.notify_all()

    def fail(self, error: EpochfsError) -> None:
        """Fail waiting readers; later ones try again, unless it is spoiled."""
        with self._changed:
            # A bare copy: a traceback would keep the stack of this run, and so this and its file.
            self._error = type(error)(*error.args)
            self._is_filled = False
            self._runs += 1
            self._changed.notify_all()

    def _wait(self, stop: int | None, deadline: float) -> None:
        """Wait for what is before `stop`; for all of it if that is None."""
        with self._changed:
            runs = self._runs
            while self._length is None and (stop is None or self._position < stop):
                if self._error is not None and (self.spoiled or self._runs > runs):
                    raise fresh(self._error)
                if not self._is_filled:
                    self._begin(self)
                    self._is_filled = True
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    raise DeadlineExceeded("a blob is still being decompressed")
            if self._length is not None and stop is not None and stop > self._length:
                raise ContentMismatch(f"a blob decompresses to {self._length} bytes only")


class Unpacker:
    """The frames of a mount. Any thread may call anything."""

    def __init__(self, blobs: BlobStore, cache: BlobCache) -> None:
        self._blobs = blobs
        self._cache = cache
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="unpacking")
        self._seats = Seats(_MAX_DECODERS, 0.0, "too many blobs are being decompressed")
        self._read: dict[Frame, Unpacked] = {}
        share = cache.quota.size_limit // _SHARE
        self._idle: LRUCache[Frame, Unpacked] = LRUCache(
            share, lambda one: max(one.length(0), share // _MAX_IDLE, 1)
        )

    def open(self, repository: Repository, frame: Frame) -> FrameHandle:
        """Open a frame whose blob a manifest of the repository names; nothing is fetched."""
        stream = partial(self._stream, repository, frame)
        try:
            found = self._begin_read(frame)
            if found is None:
                fd = self._cache.scratch(frame.limit)
                made = Unpacked(fd, partial(self._begin, repository, frame))
                found = self._begin_read(frame, made) or made
        except CacheFailure as error:
            return FrameHandle(stream(error), lambda: None, stream)
        return FrameHandle(found, partial(self._end_read, frame, found), stream)

    def close(self) -> None:
        """Begin nothing any more, and fail the readers of what is not decompressed."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            read = list(self._read.values())
        for one in read:
            one.fail(Vanished("the mount is closing"))

    def _stream(self, repository: Repository, frame: Frame, error: CacheFailure) -> StreamedFrame:
        """Return a frame that bypasses the cache, which has no room for it."""
        self._cache.directory.report(error)
        open_blob = partial(self._blobs.open, repository, frame.digest, frame.size)
        return StreamedFrame(open_blob, frame.limit, self._seats)

    def _begin_read(self, frame: Frame, made: Unpacked | None = None) -> Unpacked | None:
        """Count one more reader of a frame that is here, else of `made`."""
        with self._lock:
            one = self._read.get(frame) or self._idle.pop(frame, None)
            if one is None or one.spoiled:
                one = made
            if one is not None:
                self._read[frame] = one
                one.readers += 1
            return one

    def _end_read(self, frame: Frame, one: Unpacked) -> None:
        with self._lock:
            one.readers -= 1
            if not one.readers and self._read.get(frame) is one:
                del self._read[frame]
                if one.complete:
                    with suppress(ValueError):  # it alone is over the limit
                        self._idle[frame] = one

    def _begin(self, repository: Repository, frame: Frame, one: Unpacked) -> None:
        try:
            self._pool.submit(self._fill, repository, frame, one)
        except RuntimeError:
            raise Vanished("the mount is closing") from None

    def _fill(self, repository: Repository, frame: Frame, one: Unpacked) -> None:
        try:
            with closing(self._blobs.open(repository, frame.digest, frame.size)) as blob:
                one.finish(_unpack(blob, one.fd, frame.limit, one.grown))
        except EpochfsError as error:
            one.fail(error)
        except Exception:
            log.exception("unforeseen failure while decompressing %s", frame.digest)
            one.fail(ProtocolViolation("unforeseen failure, see the log"))


class FrameHandle:
    """A reader of a frame, as `Unpacked`: on disk, or as a stream once the disk fails."""

    def __init__(
        self,
        frame: Unpacked | StreamedFrame,
        on_close: Callable[[], None],
        stream: Callable[[CacheFailure], StreamedFrame],
    ) -> None:
        """`stream` returns what to read after a failure of the cache."""
        self._frame = frame
        self._on_close = on_close
        self._stream = stream
        self._lock = threading.Lock()

    def length(self, deadline: float) -> int:
        try:
            return self._frame.length(deadline)
        except CacheFailure as error:
            return self._streamed(error).length(deadline)

    def read_into(self, view: memoryview, offset: int, deadline: float) -> None:
        try:
            self._frame.read_into(view, offset, deadline)
        except CacheFailure as error:
            self._streamed(error).read_into(view, offset, deadline)

    def close(self) -> None:
        self._on_close()
        if isinstance(self._frame, StreamedFrame):
            self._frame.close()

    def _streamed(self, error: CacheFailure) -> StreamedFrame:
        with self._lock:
            if not isinstance(self._frame, StreamedFrame):
                self._frame = self._stream(error)
            return self._frame


def _unpack(blob: BlobHandle, fd: int, limit: int, grown: Callable[[int], None]) -> int:
    """Decompress a blob to the file `fd`, and return the length of what came out.

    `grown` is told how far it has come. Raises as `zstd_content`, and what `grown` raises.
    """
    position = 0
    with cache_errors("making a file to decompress to"):
        os.ftruncate(fd, limit)
    for piece in zstd_content(blob, limit):
        _write(fd, piece, position)
        position += len(piece)
        grown(position)
    return position


def _write(fd: int, piece: memoryview, offset: int) -> None:
    """Write to a file of zeros; skipped where the piece is all zeros."""
    if not (piece[0] or piece[-1]) and bytes(piece) == _ZEROS[: len(piece)]:
        return
    with cache_errors("writing what was decompressed"):
        while piece:
            written = os.pwrite(fd, piece, offset)
            piece, offset = piece[written:], offset + written
