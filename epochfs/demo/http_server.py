"""An HTTP/1.1 server that turns what arrives into Requests, and sends the Responses to them.

Threads: one accepts, and one serves each connection. `_connections_lock` guards the set of open
connections; nothing is sent or received under it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote

log = logging.getLogger(__name__)

MAX_BODY = 2**30
"""Largest request body in bytes: everything is kept in memory."""

_MAX_LINE = 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Request:
    """One request: `path` is percent-decoded and without its query; header names are lower case."""

    method: str
    path: str
    parameters: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def query(self) -> Mapping[str, str]:
        """The parameters of the query; of one that is given twice, the last."""
        return dict(self.parameters)


@dataclass(frozen=True, slots=True)
class Response:
    """One answer.

    A body of bytes is sent with its Content-Length (unless `headers` names another one) and the
    connection stays open. A body that is any other iterable is sent piece by piece under `headers`
    alone, and then the connection is closed; if it raises ConnectionResetError, it is reset.
    To a HEAD request the body is counted but not sent.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | memoryview | Iterable[bytes] = b""

    def having(self, **headers: str) -> Response:
        """Return a copy with these headers set; `_` in a name stands for `-`."""
        changes = {name.replace("_", "-"): value for name, value in headers.items()}
        return replace(self, headers={**self.without(*changes).headers, **changes})

    def without(self, *names: str) -> Response:
        """Return a copy that lacks the named headers, whatever their case."""
        dropped = {name.lower() for name in names}
        kept = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        return replace(self, headers=kept)


def text_response(status: int, text: str = "") -> Response:
    """Return an answer as a web server makes it, without an error of the specification."""
    return Response(status, {"Content-Type": "text/plain; charset=utf-8"}, text.encode())


def json_response(document: object, media_type: str = "application/json") -> Response:
    """Return a 200 whose body is `document` in JSON."""
    return Response(200, {"Content-Type": media_type}, json.dumps(document).encode())


class OciError(Exception):
    """A request that is answered by an error body (specification, "Error codes")."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers

    def response(self) -> Response:
        document: dict[str, Any] = {"errors": [{"code": self.code, "message": str(self)}]}
        return replace(json_response(document), status=self.status).having(**self.headers)


class Server(ThreadingHTTPServer):
    """Listens from the moment it is made; `serve_forever` answers by calling `respond`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        respond: Callable[[Request], Response],
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.respond = respond
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        super().__init__(address, _Handler)
        if ssl_context is not None:
            # The handshake is left to the connection's thread: here, one client could stall all.
            self.socket = ssl_context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )

    def close(self) -> None:
        """Stop listening and end every open connection; `serve_forever` must be running."""
        self.shutdown()
        self.server_close()
        with self._connections_lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):  # it has ended already
                connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        with self._connections_lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401
        with self._connections_lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Log what ended a connection's thread: a client that went away, or a bug."""
        if isinstance(error := sys.exception(), OSError):
            log.debug("the connection to %s broke: %s", client_address, error)
        else:
            log.exception("a request from %s failed", client_address)


class _Handler(BaseHTTPRequestHandler):
    """Serves one connection; the base class reads each request's head."""

    protocol_version = "HTTP/1.1"
    server_version = "epochfs"
    sys_version = ""
    disable_nagle_algorithm = True
    server: Server

    def answer(self) -> None:
        body = self._read_body()
        if body is None:
            # Where the next request begins is unknown, so there cannot be one.
            self.close_connection = True
            self._send(OciError(400, "SIZE_INVALID", "no readable body").response())
            return
        path, _, query = self.path.partition("?")
        request = Request(
            method=self.command,
            path=unquote(path),
            parameters=tuple(parse_qsl(query, keep_blank_values=True)),
            headers={name.lower(): value for name, value in self.headers.items()},
            body=body,
        )
        self._send(self.server.respond(request))

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Log a request, or the base class's complaint about one, through `logging`."""
        log.debug(format, *arguments)

    def _read_body(self) -> bytes | None:
        """Return the request's body; None if it is too large, or its length makes no sense."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return self._read_chunks()
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY:
            return None
        body = self.rfile.read(int(length))
        return body if len(body) == int(length) else None

    def _read_chunks(self) -> bytes | None:
        """Return a chunked body (RFC 9112, 7.1), which is how Go's clients upload blobs."""
        body = bytearray()
        while (size := self._read_chunk_size()) > 0:
            if size > MAX_BODY - len(body):
                return None
            body += self.rfile.read(size)
            self.rfile.readline(_MAX_LINE)
        while self.rfile.readline(_MAX_LINE).strip():
            pass
        return bytes(body) if size == 0 else None

    def _read_chunk_size(self) -> int:
        """Return the next chunk's size in bytes, 0 for the last; negative if there is none."""
        try:
            return int(self.rfile.readline(_MAX_LINE).partition(b";")[0], 16)
        except ValueError:
            return -1

    def _send(self, response: Response) -> None:
        body = response.body
        headers = dict(response.headers)
        if not isinstance(body, bytes | memoryview):
            self.close_connection = True
        elif response.status != 204 and not any(n.lower() == "content-length" for n in headers):
            headers["Content-Length"] = str(len(body))
        if self.close_connection:
            headers["Connection"] = "close"
        self.send_response(response.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if isinstance(body, bytes | memoryview):
            self.wfile.write(body)
        else:
            self._send_pieces(body)

    def _send_pieces(self, pieces: Iterable[bytes]) -> None:
        try:
            for piece in pieces:
                self.wfile.write(piece)
        except ConnectionResetError:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            raise
