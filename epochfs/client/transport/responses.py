"""Responses: one whose body is still to be read, and one that was read whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from urllib3 import BaseHTTPResponse

from epochfs.client.transport.connections import StrictResponse
from epochfs.client.transport.faults import Broken, converted, error_entries
from epochfs.client.transport.urls import Url
from epochfs.client.transport.watchdog import Watch
from epochfs.errors import ProtocolViolation, TooLarge

ERROR_BODY_LIMIT = 64 * 1024
"""At most this many bytes of an error's body are read."""

_READ_BYTES = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REDIRECTS_OF_WRITES = frozenset({307, 308})


_T = TypeVar("_T")


class TransportStats:
    """Counters over the life of a transport; each is a plain int, and only ever grows."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests = 0
        self.bytes_received = 0
        self.retries = 0

    def count(self, requests: int = 0, bytes_received: int = 0, retries: int = 0) -> None:
        """Add to the counters; safe under threads."""
        with self._lock:
            self.requests += requests
            self.bytes_received += bytes_received
            self.retries += retries


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer read to its end. `what` names the request as an error may show it.

    `body` is cut off at 64 KiB unless the status is 2xx. `url` is where the answer came from,
    after redirects; `authorization` what it was asked with, "" if nothing.
    """

    what: str
    url: Url
    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    authorization: str = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    @property
    def content_length(self) -> int | None:
        """The length in bytes of the body, or of the one that HEAD is about (`content_length`)."""
        return content_length(self.what, self.headers)

    @property
    def media_type(self) -> str:
        """The Content-Type without parameters, as the server wrote it; "" if there is none."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip()

    @property
    def codes(self) -> list[str]:
        """The error codes of the body (distribution specification, "Error Codes")."""
        return [code for code, _ in error_entries(self.body)]

    @property
    def encoded(self) -> bool:
        """Whether the body is encoded, by what the headers say: we asked for none that is."""
        return self.headers.get("Content-Encoding", "").strip().lower() not in ("", "identity")

    def check_encoding(self) -> None:
        """Raise ProtocolViolation for a body that is encoded."""
        if self.encoded:
            raise ProtocolViolation(f"{self.what}: the body is encoded, in spite of our asking")


class Answer:
    """An answer whose headers have arrived; its body is read here, under the operation's watch."""

    def __init__(
        self,
        raw: BaseHTTPResponse,
        what: str,
        method: str,
        url: Url,
        authorization: str,
        watch: Watch,
        stats: TransportStats,
    ) -> None:
        self.what = what
        self.url = url
        self.authorization = authorization
        self.watch = watch
        self._raw = raw
        self._method = method
        self._stats = stats
        self._error: Reply | None = None

    @property
    def status(self) -> int:
        """The status code."""
        return self._raw.status

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, looked up without regard to case; repeated ones joined by commas."""
        return self._raw.headers

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    @property
    def location(self) -> str:
        """Where this answer redirects its request to, or ""."""
        reads = self._method in ("GET", "HEAD")
        followed = _REDIRECTS if reads else _REDIRECTS_OF_WRITES
        return self.headers.get("Location", "") if self.status in followed else ""

    @property
    def content_length(self) -> int | None:
        """The body's length in bytes as the headers have it (`content_length`)."""
        return content_length(self.what, self.headers)

    def read(self, size: int) -> bytes:
        """Return 1 to `size` bytes as soon as some arrive, b"" at the end.

        Raises Broken if the connection ends before the body does.
        """
        with converted(self.what, self.watch):
            data = self._raw.read1(size, decode_content=False) or b""
            if not data:
                self.watch.check()  # the end of the stream may be the watch's own doing
        self._stats.count(bytes_received=len(data))
        return data

    def read_into(self, buffer: memoryview) -> int:
        """Fill `buffer` as far as bytes have arrived; return how many did, 0 at the end.

        A body of known length, as blobs have, is received straight into the buffer: a new piece
        of memory for every read costs more than the rest of it.
        """
        response = getattr(self._raw, "_original_response", None)
        if not isinstance(response, StrictResponse) or response.chunked:
            data = self.read(len(buffer))
            buffer[: len(data)] = data
            return len(data)
        with converted(self.what, self.watch):
            count = response.read1_into(buffer)
            if response.isclosed():
                self._raw.release_conn()
        self._stats.count(bytes_received=count)
        return count

    def consumed(self, consume: Callable[[Answer], _T]) -> _T:
        """Return what `consume` makes of the answer, which is closed if that fails."""
        try:
            return consume(self)
        except BaseException:
            self.close()
            raise

    def read_reply(self, limit: int, *, encoded: bool = False) -> Reply:
        """Read the body: of at most `limit` bytes, and perhaps `encoded`, if it is a success's."""
        if not self.ok:
            return self.read_error()
        reply = self.read_whole(limit)
        if not encoded:
            reply.check_encoding()
        return reply

    def read_whole(self, limit: int) -> Reply:
        """Read the body, of at most `limit` bytes; raises TooLarge beyond. Ends the exchange."""
        try:
            length = self.content_length
            if length is not None and length > limit and self._method != "HEAD":
                raise TooLarge(f"{self.what}: {length} bytes, over the limit of {limit}")
            body = self._read_up_to(limit + 1)
            if len(body) > limit:
                raise TooLarge(f"{self.what}: over the limit of {limit} bytes")
            return self._reply(body)
        finally:
            self.close()

    def read_error(self) -> Reply:
        """Read the body as far as an error's is read; may be called again. Ends the exchange.

        A body that breaks off does not hide the status, which has been read already.
        """
        if self._error is None:
            try:
                self._error = self._reply(self._read_up_to(ERROR_BODY_LIMIT))
            except Broken:
                self._error = self._reply(b"")
            finally:
                self.close()
        return self._error

    def close(self) -> None:
        """Give the connection back, or close it if the body was not read to its end."""
        self._raw.close()
        self._raw.release_conn()

    def _read_up_to(self, size: int) -> bytes:
        body = bytearray()
        while len(body) < size and (data := self.read(min(size - len(body), _READ_BYTES))):
            body += data
        return bytes(body)

    def _reply(self, body: bytes) -> Reply:
        return Reply(self.what, self.url, self.status, self.headers, body, self.authorization)


def content_length(what: str, headers: Mapping[str, str]) -> int | None:
    """Return the Content-Length in bytes; None if there is none, and for a chunked body.

    Raises ProtocolViolation, about the request `what`, for one that is no length.
    """
    text = headers.get("Content-Length")
    if text is None or "Transfer-Encoding" in headers:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ProtocolViolation(f"{what}: the Content-Length is no length")
    return int(text)
