"""Answers: read whole, or streamed as the bytes of a blob.

Locks: `BlobStream._lock` guards its flags only; the watchdog's lock may be taken under it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from urllib3 import BaseHTTPResponse

from epochfs.client.transport.connections import StrictResponse
from epochfs.client.transport.faults import CONVERTED, Broken, convert, error_entries
from epochfs.client.transport.request import Sent, Url
from epochfs.client.transport.watchdog import Watch
from epochfs.errors import EpochfsError, ProtocolViolation, TooLarge, Unavailable, printable
from epochfs.oci.manifests import MAX_SIZE, MEDIA_TYPE

_ERROR_BODY_LIMIT = 64 * 1024
_READ_BYTES = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REDIRECTS_OF_WRITES = frozenset({307, 308})
_RANGE_REFUSALS = frozenset({400, 416, 501})
_UNSATISFIED = re.compile(r"bytes \*/(\d{1,18})\Z")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)\Z")


class TransportStats:
    """Counters over the life of a transport: plain ints that only grow."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests = 0
        self.bytes_received = 0
        self.retries = 0

    def count(self, requests: int = 0, bytes_received: int = 0, retries: int = 0) -> None:
        """Add to the counters; thread-safe."""
        with self._lock:
            self.requests += requests
            self.bytes_received += bytes_received
            self.retries += retries


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer read to its end, and `what` it answers, after redirects.

    `body` is cut off at 64 KiB unless the status is 2xx. `content_length` is that of a 2xx; in
    answer to HEAD, that of the body which GET would return.
    """

    what: Sent
    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    content_length: int | None = None

    @property
    def url(self) -> Url:
        return self.what.url

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    @property
    def media_type(self) -> str:
        """The Content-Type without parameters, or that of arbitrary bytes if it is unusable."""
        text = self.headers.get("Content-Type", "").partition(";")[0].strip()
        return text if MEDIA_TYPE.match(text) else "application/octet-stream"

    @property
    def codes(self) -> list[str]:
        """The error codes of the body (distribution specification, "Error Codes")."""
        return [code for code, _ in error_entries(self.body)]

    @property
    def encoded(self) -> bool:
        """Whether the headers say that the body is encoded, which we never ask for."""
        return self.headers.get("Content-Encoding", "").strip().lower() not in ("", "identity")

    def may_refuse_range(self, start: int) -> bool:
        """Whether this refusal of a range from `start` may be a refusal of Range itself.

        Some servers that do not know Range answer 400, 416 or 501. A 416 that states a size (RFC
        9110, section 15.5.17) of at most `start` says only that the blob ends before.
        """
        size = _UNSATISFIED.match(self.headers.get("Content-Range", "").strip())
        if self.status == 416 and size is not None:
            return int(size[1]) > start
        return self.status in _RANGE_REFUSALS

    def check_encoding(self) -> None:
        if self.encoded:
            raise ProtocolViolation(f"{self.what}: the body is encoded, which was not asked for")


class Answer:
    """An answer whose headers have arrived; its body is read under the watch of the operation."""

    def __init__(
        self, raw: BaseHTTPResponse, what: Sent, watch: Watch, stats: TransportStats
    ) -> None:
        self.what = what
        self.url = what.url
        self.watch = watch
        self.status: int = raw.status
        # Looked up without regard to case; repeated ones are joined by commas.
        self.headers: Mapping[str, str] = raw.headers
        self._raw = raw
        self._stats = stats
        self._error: Reply | None = None

    @property
    def location(self) -> str:
        """Where this answer redirects its request to, or ""."""
        reads = self.what.request.method in ("GET", "HEAD")
        followed = _REDIRECTS if reads else _REDIRECTS_OF_WRITES
        return self.headers.get("Location", "") if self.status in followed else ""

    def read_into(self, buffer: memoryview) -> int:
        """Fill `buffer` as far as bytes have arrived; return how many did, 0 at the end.

        A body of known length, as blobs have, is received straight into the buffer: allocating
        memory for every read costs more than all the rest. Raises Broken if it breaks off.
        """
        response = getattr(self._raw, "_original_response", None)
        try:
            if isinstance(response, StrictResponse) and not response.chunked:
                count = response.read1_into(buffer)
                if response.isclosed():
                    self._raw.release_conn()
            else:
                data = self._raw.read1(len(buffer), decode_content=False) or b""
                count = len(data)
                buffer[:count] = data
            if not count:
                self.watch.check()  # the end of the stream may be the watch's own doing
        except CONVERTED as error:
            raise convert(error, self.what, self.watch) from error
        if count:
            self._stats.count(bytes_received=count)
        return count

    def read_reply(self, limit: int, *, encoded: bool = False) -> Reply:
        """Read the body and end the exchange; that of an error as `read_error` does.

        Raises TooLarge for more than `limit` bytes, ProtocolViolation for an encoded body unless
        `encoded` allows it.
        """
        if not 200 <= self.status < 300:
            return self.read_error()
        try:
            most = None if self.what.request.method == "HEAD" else limit
            length = content_length(self.what, self.headers, most)
            body = self._read_up_to(length or limit + 1)
        finally:
            self.close()
        if len(body) > limit:
            raise TooLarge(f"{self.what}: over the limit of {limit} bytes")
        reply = Reply(self.what, self.status, self.headers, body, length)
        if not encoded:
            reply.check_encoding()
        return reply

    def read_error(self) -> Reply:
        """Read as much of the body as errors are shown; may be called again. Ends the exchange.

        A body that breaks off does not hide the status, which has been read already.
        """
        if self._error is None:
            body = b""
            try:
                body = self._read_up_to(_ERROR_BODY_LIMIT)
            except Broken:
                pass
            finally:
                self.close()
            self._error = Reply(self.what, self.status, self.headers, body)
        return self._error

    def close(self) -> None:
        """Return the connection to the pool, or close it if the body was not read to its end."""
        self._raw.close()
        self._raw.release_conn()

    def _read_up_to(self, size: int) -> bytes:
        body, buffer = bytearray(), memoryview(bytearray(_READ_BYTES))
        while len(body) < size and (count := self.read_into(buffer[: size - len(body)])):
            body += buffer[:count]
        return bytes(body)


def content_length(
    what: object, headers: Mapping[str, str], limit: int | None = None
) -> int | None:
    """Return the Content-Length in bytes; None if there is none, and for a chunked body.

    Raises TooLarge for one over `limit`, ProtocolViolation for one that is no size of any content,
    both about the request `what`.
    """
    text = headers.get("Content-Length")
    if text is None or "Transfer-Encoding" in headers:
        return None
    length = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else -1
    if limit is not None and length > limit:
        raise TooLarge(f"{what}: {length} bytes, over the limit of {limit}")
    if not 0 <= length <= MAX_SIZE:
        raise ProtocolViolation(f"{what}: not a Content-Length: {printable(text, 40)}")
    return length


class Shortened(Unavailable):
    """The whole of a range has arrived that the server made shorter than was asked for."""


class BlobStream:
    """The bytes of a blob as they arrive, whatever Content-Encoding is stated.

    Registries state one for layers that are compressed, though nobody encoded those on the way. A
    context manager; the caller closes it. Read by one thread; `close` may be called by any other.
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
        length = content_length(answer.what, answer.headers)
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

        Raises Unavailable if the stream breaks off, or ends where the server shortened the range:
        what has arrived is right, and a new request can resume after it. Raises DeadlineExceeded if
        no byte arrives within the time limit, ProtocolViolation if there are more than were
        announced.
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
        what, expected = self._answer.what, self._expected
        if expected is not None and self._received > expected:
            raise ProtocolViolation(f"{what}: more bytes than announced")
        if expected is not None and not count and self._received < expected:
            raise Unavailable(
                f"{what}: the stream ended after {self._received} of {expected} bytes"
            )
        if not count and self._shortened:
            raise Shortened(f"{what}: the range ended after {self._received} bytes")
        return count

    def _end(self) -> None:
        self._answer.close()
        self._answer.watch.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _partial(answer: Answer, start: int, end: int | None) -> tuple[int | None, int, bool]:
    """Return the size of the blob and of the range in a 206 (RFC 9110, section 14.4), and whether
    the range ends before `end`, as it may, and before the blob does.
    """
    match = _CONTENT_RANGE.match(answer.headers.get("Content-Range", "").strip())
    total = None if match is None or match[3] == "*" else int(match[3])
    if match is None or (total or 0) > MAX_SIZE:
        raise ProtocolViolation(f"{answer.what}: 206 without a usable Content-Range")
    first, last = int(match[1]), int(match[2])
    stop = total if end is None or (total is not None and total < end) else end
    if first != start or last < first or (stop is not None and last + 1 > stop):
        raise ProtocolViolation(f"{answer.what}: 206 with a different range than requested")
    return total, last + 1 - first, stop is not None and last + 1 < stop
