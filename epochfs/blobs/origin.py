"""The origin of a blob: opens its streams, checks them, and resumes them where they break."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from epochfs.client import BlobStream
from epochfs.errors import (
    ContentMismatch,
    DeadlineExceeded,
    EpochfsError,
    NotFound,
    Unavailable,
    Vanished,
)
from epochfs.oci.names import Digest

log = logging.getLogger(__name__)

PIECE = 1 << 19
"""How many bytes a `PieceStream` yields at a time."""

NEAR = 8
"""How many pieces are read and skipped before it is better to ask the registry anew."""

_BREAKS_WITHOUT_PROGRESS = 4
_PAUSE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Origin:
    """A blob of `size` bytes in a registry.

    `source` opens a stream of the bytes `[start, end)`, to the blob's end where `end` is None.
    `distrust` is told of bytes that cannot be the blob's; it returns whether `source` will ask
    another host from now on. `spoiled` is told that readers may have been given such bytes.
    `ranged` is whether the server honours Range, None while that is not known.
    """

    digest: Digest
    size: int
    source: Callable[[int, int | None], BlobStream]
    distrust: Callable[[], bool]
    spoiled: Callable[[], None]
    ranged: bool | None

    def check_size(self, stream: BlobStream) -> None:
        """Raise ContentMismatch if the server gives the blob another size than its descriptor."""
        if stream.total is not None and stream.total != self.size:
            raise ContentMismatch(
                f"{self.digest} has {stream.total} bytes, its descriptor says {self.size}"
            )

    def pause(self, error: EpochfsError, breaks: int) -> None:
        """Wait before a broken stream is resumed, longer after each of `breaks` without progress.

        Raises the stream's `error` once there were too many.
        """
        if breaks > _BREAKS_WITHOUT_PROGRESS:
            raise error
        log.debug("the stream of %s broke, resuming: %s", self.digest, error)
        time.sleep(_PAUSE_SECONDS * breaks)


class PieceStream:
    """A blob's pieces in order, from one stream at a time: a new one where reads jump, or it broke.

    One thread at a time may use it; `close` is for any.
    """

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._size = origin.size
        self._ranged = origin.ranged
        self._stream: BlobStream | None = None
        self._end = self._position = self._filled = 0
        self._buffer = bytearray()
        self._closed = False

    def pieces(
        self, number: int, last: int, deadline: float, *, goes_on: bool
    ) -> Iterator[tuple[int, bytearray]]:
        """Yield pieces, with their numbers, up to piece `number`; those up to `last` come next.

        `goes_on` asks for everything behind them too. Raises DeadlineExceeded at the `deadline`.
        """
        breaks = 0
        while True:
            if not self._leads_to(number):
                self._open(number, last, goes_on=goes_on)
            before = self._position
            try:
                while time.monotonic() <= deadline:
                    at = self._position // PIECE
                    if self._fill(at):
                        yield at, self._buffer
                        if at == number:
                            return
            except Unavailable as error:
                breaks = 0 if self._position > before else breaks + 1
                self._origin.pause(error, breaks)
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"{self._origin.digest} did not arrive so far in time")

    def drop(self) -> None:
        """Close the stream, and forget what has come of a piece."""
        self._close_stream()
        self._filled = 0

    def close(self) -> None:
        """Close the stream for good."""
        self._closed = True
        if (stream := self._stream) is not None:
            stream.close()

    def _close_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _leads_to(self, number: int) -> bool:
        """Whether the stream will reach a piece soon."""
        at = self._position // PIECE
        if self._stream is None or at > number or number * PIECE >= self._end:
            return False
        return self._ranged is False or number - at <= NEAR

    def _open(self, number: int, last: int, *, goes_on: bool) -> None:
        self._close_stream()
        start = number * PIECE
        if self._filled and self._position - self._filled == start and self._ranged:
            start = self._position  # what had come of the piece when a stream broke is here
        else:
            self._filled = 0
        end = self._size if goes_on else min((last + 1) * PIECE, self._size)
        if self._ranged is False:
            start, end = 0, self._size
        if self._closed:
            raise Vanished("the file was closed")
        try:
            stream = self._origin.source(start, None if end == self._size else end)
        except NotFound as error:
            raise Vanished(str(error)) from error
        self._stream, self._ranged = stream, stream.ranged
        self._position, self._end = start, end
        if not stream.ranged:
            self._position, self._end, self._filled = 0, self._size, 0
        self._origin.check_size(stream)

    def _fill(self, number: int) -> bool:
        """Read on in a piece; return whether it is complete. A stream that breaks is closed."""
        assert self._stream is not None
        if not self._filled:
            self._buffer = bytearray(min(PIECE, self._size - number * PIECE))
        try:
            count = self._stream.read_into(memoryview(self._buffer)[self._filled :])
            if not count:
                raise Unavailable(f"the stream of {self._origin.digest} ended early")
        except EpochfsError:
            self._close_stream()
            raise
        self._position += count
        self._filled += count
        if self._position >= self._end:
            self._close_stream()
        complete = self._filled == len(self._buffer)
        if complete:
            self._filled = 0
        return complete
