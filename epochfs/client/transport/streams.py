"""Bodies too large for memory: blobs that arrive, and blobs that are sent.

Locks: `BlobStream._lock` guards its flags only; the watchdog's lock may be taken under it.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import BinaryIO, Self

from epochfs.client.transport.responses import Answer, Reply
from epochfs.client.transport.watchdog import Watch
from epochfs.errors import EpochfsError, ProtocolViolation, Unavailable, UsageError

_RANGE_REFUSALS = frozenset({400, 416, 501})
_UNSATISFIED = re.compile(r"bytes \*/(\d{1,18})\Z")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)\Z")


class Shortened(Unavailable):
    """All has come of a range that the server made shorter than it was asked for."""


class BlobStream:
    """The bytes of a blob as they arrive, whatever Content-Encoding they are said to have.

    Registries say so of layers that are compressed, and nobody has encoded those on the way. A
    context manager; the caller closes it.

    Read by one thread; `close` may be called by any other.
    """

    start: int
    """Offset in the blob of the first byte to be read: what was asked for, or 0 if the server
    sends all of it whatever was asked."""

    total: int | None
    """Size of the whole blob in bytes, where the server said."""

    ranged: bool
    """Whether the server has proved Range: 206 with the Content-Range that was asked for."""

    def __init__(self, answer: Answer, start: int, end: int | None) -> None:
        """Take over a 200 or 206 that answers a request for the bytes from `start` to `end`.

        Raises ProtocolViolation for headers that contradict the request or each other.
        """
        self._answer = answer
        self._lock = threading.Lock()
        self._reading = False
        self._closed = False
        self._received = 0
        self._expected: int | None
        self._shortened = False
        if "multipart/" in answer.headers.get("Content-Type", "").lower():
            raise ProtocolViolation(f"{answer.what}: several parts, where one range was asked for")
        length = answer.content_length
        self.ranged = answer.status == 206
        if not self.ranged:
            self.start, self.total, self._expected = 0, length, length
            return
        self.start = start
        self.total, self._expected, self._shortened = _partial(answer, start, end)
        if length is not None and length != self._expected:
            raise ProtocolViolation(f"{answer.what}: Content-Length and Content-Range disagree")

    def read(self, n: int) -> bytes:
        """Return 1 to `n` bytes as `read_into` does; b"" only at the true end."""
        buffer = bytearray(n)
        return bytes(buffer[: self.read_into(memoryview(buffer))])

    def read_into(self, buffer: memoryview) -> int:
        """Fill `buffer` as far as bytes have arrived, at least one; return 0 only at the true end.

        Raises Unavailable if the stream breaks off, or ends where the server wanted it to, before
        what was asked for: what came so far is right as far as it goes, and a new request can
        resume behind it. Raises DeadlineExceeded if no byte comes within
        the time limit, ProtocolViolation if more come than were announced.
        """
        with self._lock:
            if self._closed:
                raise Unavailable(f"{self._answer.what}: the stream is closed")
            self._reading = True
        try:
            self._answer.watch.renew()
            count = self._answer.read_into(buffer)
            self._answer.watch.suspend()
        except EpochfsError as error:
            self.close()
            if isinstance(error, Unavailable):
                raise Unavailable(str(error)) from error
            raise
        finally:
            with self._lock:
                self._reading = False
                closed = self._closed
            if closed:
                self._end()
        return self._counted(count)

    def close(self) -> None:
        """End the stream; a read that is blocked in another thread raises Unavailable."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._reading:
                self._answer.watch.abort()
                return
        self._end()

    def _counted(self, count: int) -> int:
        self._received += count
        if self._expected is not None:
            if self._received > self._expected:
                raise ProtocolViolation(f"{self._answer.what}: more than the bytes announced")
            if not count and self._received < self._expected:
                received = f"{self._received} of {self._expected} bytes"
                raise Unavailable(f"{self._answer.what}: the stream ended after {received}")
            if not count and self._shortened:
                raise Shortened(
                    f"{self._answer.what}: the range ended after {self._received} bytes"
                )
        return count

    def _end(self) -> None:
        self._answer.close()
        self._answer.watch.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _partial(answer: Answer, start: int, end: int | None) -> tuple[int | None, int, bool]:
    """Return the blob's size and the range's, of a 206 (RFC 9110, section 14.4), and whether the
    range ends before what was asked for, as it may.

    One that ends with the blob, before `end`, is whole: whoever asked did not know the size.
    """
    match = _CONTENT_RANGE.match(answer.headers.get("Content-Range", "").strip())
    if match is None:
        raise ProtocolViolation(f"{answer.what}: 206 without a usable Content-Range")
    first, last = int(match[1]), int(match[2])
    total = None if match[3] == "*" else int(match[3])
    stop = total if end is None or (total is not None and total < end) else end
    if first != start or last < first or (stop is not None and last + 1 > stop):
        raise ProtocolViolation(f"{answer.what}: 206 with another range than was asked for")
    return total, last + 1 - first, stop is not None and last + 1 < stop


def without_range(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a request for all of a blob."""
    return {name: value for name, value in headers.items() if name != "Range"}


def may_refuse_range(reply: Reply, start: int) -> bool:
    """Whether a refusal of the bytes from `start` may be of Range itself.

    There are servers that answer a Range which they do not know with 400, 416 or 501. A 416 that
    gives the blob's size (RFC 9110, section 15.5.17) says no more than that it ends before.
    """
    size = _UNSATISFIED.match(reply.headers.get("Content-Range", "").strip())
    if reply.status == 416 and size is not None:
        return int(size[1]) > start
    return reply.status in _RANGE_REFUSALS


class UploadBody:
    """A blob on its way out, as the body of one request or, in parts, of several.

    It counts as progress, for the time limit, when a piece of it is taken to be sent.
    """

    def __init__(self, body: BinaryIO | bytes, size: int) -> None:
        """Take the next `size` bytes of `body`, which stays the caller's to close."""
        self._body = io.BytesIO(body) if isinstance(body, bytes) else body
        self.size = size
        self.rewindable = self._body.seekable()
        self._origin = self._body.tell() if self.rewindable else 0
        self._position = 0
        self._start, self._stop = 0, size
        self.watch: Watch | None = None

    def select(self, start: int, length: int) -> bool:
        """Make the next request's body the bytes from `start`, `length` of them or all there are.

        Returns False if the body stands elsewhere and cannot go there.
        """
        self._start, self._stop = start, min(start + length, self.size)
        return self.restart()

    def restart(self) -> bool:
        """Go back to the start of the selected part; return False if the body cannot."""
        if self._position != self._start and self.rewindable:
            self._body.seek(self._origin + self._start)
            self._position = self._start
        return self._position == self._start

    def __len__(self) -> int:
        """How many bytes the next request's body has."""
        return self._stop - self._start

    def read(self, n: int = -1) -> bytes:
        """Return up to `n` bytes of the part; raises UsageError if the body is too short."""
        if self.watch is not None:
            self.watch.renew()
        left = self._stop - self._position
        wanted = left if n < 0 else min(n, left)
        if wanted == 0:
            return b""
        try:
            data = self._body.read(wanted)
        except OSError as error:
            raise UsageError(f"the body to upload cannot be read: {error.strerror}") from error
        if not data:
            raise UsageError(f"the body to upload ends after {self._position} of {self.size} bytes")
        self._position += len(data)
        return data
