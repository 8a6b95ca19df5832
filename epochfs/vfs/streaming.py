"""Decompresses zstd frames as they are read, if the cache's disk has no room for the output.

A stream only goes forwards. Its last few MiB are kept, for the kernel reads ahead with several
requests at once; for what is further back the frame is restarted.

Locks: `StreamedFrame.turn` is held by the thread that reads; others wait for it until their
deadlines. That of `Seats` may be taken under it; it is taken under that one only if free.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from epochfs.blobs.passing import Seats
from epochfs.blobs.store import BlobHandle
from epochfs.errors import ContentMismatch, DeadlineExceeded
from epochfs.layers.decoders import zstd_content

_RECENT_BYTES = 4 << 20


class StreamedFrame:
    """A frame that is not cached, on one of the `seats`. Any thread may read it."""

    def __init__(self, open_blob: Callable[[], BlobHandle], limit: int, seats: Seats) -> None:
        self._open_blob = open_blob
        self._limit = limit
        self._seats = seats
        self.turn = threading.Lock()
        self._blob: BlobHandle | None = None
        self._content: Iterator[memoryview] = iter(())
        self._recent = bytearray()
        self._position = 0
        self._length: int | None = None

    def length(self, deadline: float) -> int:
        """Return its length, for which it is read and verified to its end."""
        with self._alone(deadline):
            while self._length is None:
                self._advance(deadline)
            return self._length

    def read_into(self, view: memoryview, offset: int, deadline: float) -> None:
        """Fill `view` from `offset`, or raise."""
        with self._alone(deadline):
            while view:
                begin = self._position - len(self._recent)
                if offset < begin:
                    self.drop()
                elif offset < self._position:
                    piece = self._recent[offset - begin :][: len(view)]
                    view[: len(piece)] = piece
                    view, offset = view[len(piece) :], offset + len(piece)
                elif self._length is not None and offset >= self._length:
                    raise ContentMismatch(f"a blob decompresses to {self._length} bytes only")
                else:
                    self._advance(deadline)

    def close(self) -> None:
        """Close the blob; call it once, when nobody reads any more."""
        self._seats.leave(self)
        self.drop()

    @contextmanager
    def _alone(self, deadline: float) -> Iterator[None]:
        if not self.turn.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise DeadlineExceeded("other readers of the blob kept it busy")
        try:
            yield
        finally:
            self.turn.release()
            self._seats.rest(self)

    def _advance(self, deadline: float) -> None:
        """Decompress the next piece; the turn is held."""
        if time.monotonic() > deadline:
            raise DeadlineExceeded("a blob is not decompressed yet")
        if self._blob is None:
            self._seats.seat(self, deadline)
            self._blob = self._open_blob()
            self._content = zstd_content(self._blob, self._limit)
        try:
            piece = next(self._content, None)
        except BaseException:
            self.drop()
            raise
        if piece is None:
            self._length = self._position
        else:
            del self._recent[: max(0, len(self._recent) + len(piece) - _RECENT_BYTES)]
            self._recent += piece
            self._position += len(piece)

    def drop(self) -> None:
        """Stop; the next read starts over. The turn is held, or nobody reads any more."""
        blob, self._blob = self._blob, None
        self._content = iter(())
        self._recent = bytearray()
        self._position = 0
        if blob is not None:
            blob.close()
