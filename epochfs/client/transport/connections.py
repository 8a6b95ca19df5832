"""Connections under a watch, and their pools: what epochfs changes in requests and urllib3.

`requests.Session` is not used. It reads the body of a redirect however long it is, takes passwords
from `.netrc` in place of our Authorization header, keeps cookies, and looks at the environment for
each request. The layer below, `HTTPAdapter`, does none of that.

Locks: `Adapter._lock` guards which TLS settings have pools; `TlsPolicy._lock` is taken under it.
"""

from __future__ import annotations

import http.client
import io
import logging
import queue
import select
import socket
import ssl
import threading
from contextvars import ContextVar
from typing import IO, Any
from urllib.parse import urlsplit

from requests import PreparedRequest, Response
from requests.adapters import HTTPAdapter
from requests.exceptions import ConnectionError as RequestsConnectionError
from requests.exceptions import SSLError
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ClosedPoolError, HTTPError, NameResolutionError, NewConnectionError

from epochfs.client.transport.faults import WrongHost, is_wrong_host
from epochfs.client.transport.tls import TlsPolicy
from epochfs.client.transport.watchdog import Watch

# urllib3 logs whole URLs, and that of a redirected blob may hold a signature.
logging.getLogger("urllib3").setLevel(logging.CRITICAL + 1)

_SEND_BYTES = 256 * 1024
"""Bytes of an upload to read and send at a time."""

_LINE_BYTES = 65536
_HEAD_LINES = 250
"""Limits of an answer's head; http.client refuses lines as long, and half as many headers."""

_HOSTS = 16
"""How many hosts (registry, token server, blob storage) keep idle connections."""

watch_in_use: ContextVar[Watch] = ContextVar("watch_in_use")
"""The watch of the operation that this thread is carrying out."""


class StrictResponse(http.client.HTTPResponse):
    """An answer whose headers are complete, and whose body can be read into a buffer as it arrives.

    The base class takes the end of the stream for the end of the headers, so an answer cut off
    there would be a success without Content-Length, with whatever body arrived.
    """

    def begin(self) -> None:
        stream: Any = self.fp
        lines, whole = _read_head(stream)
        head: Any = io.BytesIO(b"".join(lines))
        self.fp = head
        try:
            super().begin()
        finally:
            if self.fp is head:
                self.fp = stream
            else:  # the base class has closed it
                stream.close()
        if not whole:
            raise http.client.RemoteDisconnected("the headers break off")

    def read1_into(self, buffer: memoryview) -> int:
        """Fill `buffer` with one system call at most; return the bytes read, 0 at the end.

        It is to `readinto` what `read1` is to `read`; not for a chunked body. Raises IncompleteRead
        for an end before the announced one, as urllib3 does.
        """
        if self.fp is None:
            return 0
        if self.length is not None:
            buffer = buffer[: self.length]
        count = self.fp.readinto1(buffer)
        if self.length is not None:
            self.length -= count
            if not count and self.length:
                raise http.client.IncompleteRead(b"", self.length)
        if not count or self.length == 0:
            self.close()
        return count


class _LastResponse(StrictResponse):
    """The answer to a request that was not sent to its end: no other can follow it."""

    def begin(self) -> None:
        super().begin()
        self.will_close = True


def _read_head(stream: IO[bytes]) -> tuple[list[bytes], bool]:
    """Return the lines of an answer's head, and whether they are all there.

    Includes any "100 Continue" before. What is too long or not HTTP is for http.client to refuse.
    """
    lines: list[bytes] = []
    start = 0
    while len(lines) < _HEAD_LINES:
        line = stream.readline(_LINE_BYTES + 1)
        if not line:
            return lines, False
        lines.append(line)
        if len(line) > _LINE_BYTES or not lines[start].startswith(b"HTTP/"):
            break
        if line in (b"\r\n", b"\n"):
            if lines[start].split(None, 2)[1:2] != [b"100"]:
                break
            start = len(lines)
    return lines, True


class _WatchedConnection(HTTPConnection):
    """A connection whose every step is under the watch of the operation that uses it."""

    response_class: type[StrictResponse] = StrictResponse
    watch: Watch | None = None
    live_socket: socket.socket | None = None

    def connect(self) -> None:
        watch = watch_in_use.get()
        watch.attach(self)
        self.response_class = StrictResponse
        super().connect()
        self.live_socket = self.sock
        # There was no socket to shut down during the TLS handshake; check now if time is up.
        watch.check()

    def request(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as the base class's
        watch = watch_in_use.get()
        watch.attach(self)
        if self.sock is None:
            self.connect()
        # Until here it was the connect timeout, too short to send a large body.
        self.timeout = watch.timeout
        super().request(*args, **kwargs)

    def send(self, data: Any) -> None:  # noqa: ANN401 - as the base class's
        """Send a piece of a request, but no further once the server has answered or hung up.

        What it says before it has all of a body is a refusal, and it may never read the rest.
        urllib3 takes a broken pipe for the sign to read the answer. With TLS, what has come need
        not be one.
        """
        sock = self.sock
        large = isinstance(data, bytes) and len(data) >= _SEND_BYTES
        if not large or isinstance(sock, ssl.SSLSocket):
            super().send(data)
            return
        ready = select.poll()
        ready.register(sock, select.POLLIN | select.POLLOUT)
        rest = memoryview(data)
        while rest:
            if any(event & select.POLLIN for _, event in ready.poll()):
                self.response_class = _LastResponse
                raise BrokenPipeError
            rest = rest[sock.send(rest) :]

    def _new_conn(self) -> socket.socket:
        """Connect to the first address that answers, each tried for the connect timeout."""
        watch = watch_in_use.get()
        limit = self.timeout if isinstance(self.timeout, int | float) else watch.timeout
        try:
            addresses = _resolve(self._dns_host, self.port, min(limit, watch.remaining()))
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        failure = OSError("the name has no address")
        for family, kind, protocol, _, address in addresses:
            watch.check()
            sock = socket.socket(family, kind, protocol)
            self.live_socket = sock
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(min(limit, watch.remaining()))
                sock.connect(address)
                sock.settimeout(watch.remaining())  # holds for all of a TLS handshake
            except OSError as error:
                sock.close()
                failure = error
            else:
                return sock
        raise NewConnectionError(self, str(failure)) from failure


class _WatchedTlsConnection(_WatchedConnection, HTTPSConnection):
    """The same over TLS."""

    def request(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as the base class's
        """Send a request; if the server has hung up meanwhile, what it said last is its answer.

        It may have refused the body of an upload, or, as in TLS 1.3, a client certificate after the
        client's handshake is over. urllib3 goes on to read where a pipe is broken.
        """
        try:
            super().request(*args, **kwargs)
        except ssl.SSLEOFError as error:
            raise BrokenPipeError from error


class _Pool(HTTPConnectionPool):
    ConnectionCls = _WatchedConnection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _WatchedTlsConnection

    def _validate_conn(self, conn: Any) -> None:  # noqa: ANN401 - as the base class's
        """Connect; without the base class's Python warning where verification is off by choice."""
        if conn.is_closed:
            conn.connect()


def _resolve(host: str, port: int, seconds: float) -> list[Any]:
    """Resolve a host as getaddrinfo(3) does, but within a time limit; raises socket.gaierror.

    The C library's resolver can be neither limited nor interrupted, so it gets a thread.
    """
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        pass
    answers: queue.SimpleQueue[list[Any] | Exception] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answers.put(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=look_up, name="epochfs-resolver", daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise socket.gaierror(socket.EAI_AGAIN, "name resolution timed out") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


class Adapter(HTTPAdapter):
    """requests' adapter with watched connections, our TLS policy, and no cookies."""

    def __init__(self, tls: TlsPolicy, pool_size: int) -> None:
        self._tls = tls
        self._lock = threading.Lock()
        self._contexts: set[ssl.SSLContext] = set()
        super().__init__(pool_connections=_HOSTS, pool_maxsize=pool_size, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().init_poolmanager(*args, blocksize=_SEND_BYTES, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:  # noqa: ANN401
        manager = super().proxy_manager_for(proxy, blocksize=_SEND_BYTES, **kwargs)
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
        return manager

    def build_connection_pool_key_attributes(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return host and TLS settings, which together choose the pool."""
        host, _ = super().build_connection_pool_key_attributes(*args, **kwargs)
        if host["scheme"] == "http":
            return host, {}
        context = self._tls.context(host["host"])
        self._close_outdated(context)
        return host, {"ssl_context": context}

    def _close_outdated(self, context: ssl.SSLContext) -> None:
        """Close the pools of settings no longer in use, when new ones first appear.

        A connection in use is closed when its answer has been read.
        """
        with self._lock:
            if context in self._contexts:
                return
            self._contexts.add(context)
            outdated = {one for one in self._contexts if not self._tls.in_use(one)}
            self._contexts -= outdated
            for manager in (self.poolmanager, *self.proxy_manager.values()):
                keys = manager.pools.keys()  # the pools refuse to be iterated over
                for key in [one for one in keys if one.key_ssl_context in outdated]:
                    manager.pools.pop(key).close()

    def cert_verify(self, *args: Any) -> None:  # noqa: ANN401
        """Do nothing: the pool has its TLS settings, and loading them again takes 20 ms."""

    def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:  # noqa: ANN401
        """Send a request; raises WrongHost if the certificate is for other hosts than this."""
        try:
            try:
                return super().send(request, *args, **kwargs)
            except RequestsConnectionError as error:
                if not any(isinstance(cause, ClosedPoolError) for cause in error.args):
                    raise
            # The pool's certificate was renewed just then, and nothing has been sent.
            return super().send(request, *args, **kwargs)
        except SSLError as error:
            if not is_wrong_host(error):
                raise
            directly = not kwargs.get("proxies")
            names = self._certified_hosts(request.url or "") if directly else None
            raise WrongHost(names) from error

    def _certified_hosts(self, url: str) -> list[str] | None:
        """Return the hosts that a server's certificate is for, None if it cannot be asked again.

        OpenSSL does not hand out a certificate that it refused.
        """
        parts = urlsplit(url)
        connection = _WatchedTlsConnection(
            parts.hostname or "",
            parts.port,
            ssl_context=self._tls.inspecting(),
            assert_hostname=False,
        )
        try:
            connection.connect()
            certificate: Any = connection.sock
            return [name for _, name in certificate.getpeercert().get("subjectAltName", ())]
        except (OSError, HTTPError):
            return None
        finally:
            connection.close()

    def build_response(self, req: PreparedRequest, resp: Any) -> Response:  # noqa: ANN401
        """Wrap urllib3's answer, without the base class's search for cookies."""
        response = Response()
        response.raw = resp
        return response
