"""A tar stream as it is read: forwards only, in large pieces, and with a bound on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from epochfs.errors import ProtocolViolation, TooLarge

BLOCK = 512

MAX_HEADER_BYTES = 1 << 20
"""The longest headers of one entry together: names, attributes of at most 64 KiB each, and where a
sparse file has its data."""

_BUFFER_BYTES = 1 << 20


class Source(Protocol):
    """Gives the bytes of a tar stream one after the other."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill some of `buffer`; return how much, and 0 at the end."""


class ForwardStream:
    """Reads a source to its end, which is TooLarge beyond `limit` bytes.

    `observe` is given every byte. `position` is that of the byte that comes next.
    """

    def __init__(self, source: Source, limit: int, observe: Callable[[memoryview], None]) -> None:
        self.position = 0
        self._source = source
        self._limit = limit
        self._observe = observe
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._start = self._stop = 0
        self._read = 0
        self._taken = 0

    def block(self) -> bytes:
        """Return the next block, all of it unless the stream ends before."""
        return self.take(BLOCK)

    def take(self, count: int) -> bytes:
        """Return `count` bytes of a header, fewer at the end of the stream."""
        self._taken += count
        if self._taken > MAX_HEADER_BYTES:
            raise TooLarge(f"a tar header of more than {MAX_HEADER_BYTES} bytes")
        stop = self._start + count
        if stop > self._stop:
            return self._take_over(count)
        found = bytes(self._buffer[self._start : stop])
        self._start = stop
        self.position += count
        return found

    def next_entry(self) -> None:
        """Begin to count the bytes of headers anew."""
        self._taken = 0

    def skip_to(self, position: int) -> None:
        """Pass over what is before a position. Raises ProtocolViolation if the end is.

        So it does for a position that was passed, which is where a header leads that lies.
        """
        left = position - self.position
        if left < 0:
            raise ProtocolViolation("a tar stream that leads backwards")
        while left > self._stop - self._start:
            left -= self._stop - self._start
            if not self._fill():
                raise ProtocolViolation("a tar stream that ends within a file")
        self._start += left
        self.position = position

    def drain(self) -> int:
        """Read on to the end; return how many bytes there were."""
        while self._fill():
            pass
        return self._read

    def _take_over(self, count: int) -> bytes:
        """Return bytes of which some are not in the buffer yet."""
        pieces = []
        while count:
            piece = bytes(self._buffer[self._start : min(self._stop, self._start + count)])
            self._start += len(piece)
            self.position += len(piece)
            pieces.append(piece)
            count -= len(piece)
            if count and not self._fill():
                break
        return b"".join(pieces)

    def _fill(self) -> int:
        """Have what comes next in the buffer, in place of what is there; return how much."""
        count = self._source.readinto(self._buffer) or 0
        self._start, self._stop = 0, count
        self._read += count
        if self._read > self._limit:
            raise TooLarge(f"a layer that decompresses to more than {self._limit} bytes")
        self._observe(self._buffer[:count])
        return count
