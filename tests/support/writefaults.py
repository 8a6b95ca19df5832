"""A registry that answers one step of a write otherwise than it should: each step, each answer.

`FAULTS` x `STEPS` is the matrix; what must come of each is worked out by `expected`.
"""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from epochfs.oci.names import Digest
from support.scripted import Close, Reset, ScriptedServer, Seen, Step, reply

HEAD_BLOB, POST, PATCH, PUT_BLOB = "HEAD blob", "POST uploads", "PATCH", "PUT blob"
HEAD_MANIFEST, PUT_MANIFEST = "HEAD manifest", "PUT manifest"
HEAD_TAG, PUT_TAG, DELETE = "HEAD tag", "PUT tag", "DELETE"
OTHER = "other"
TOKEN_PATH = "/token"
HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"
FOREVER = 60.0
HELD = ("host", "connection", "content-length", "authorization")


@dataclass(frozen=True)
class Answer:
    """What the registry said."""

    status: int
    headers: dict[str, str]
    body: bytes

    def played(self) -> bytes:
        named = {name.replace("-", "_"): value for name, value in self.headers.items()}
        return reply(self.status, self.body, **named)


@dataclass
class Exchange:
    """One request, the `number`-th of its step since the fault was set; `ask` passes it on."""

    proxy: WriteProxy
    request: Seen
    number: int

    def ask(self) -> Answer:
        return self.proxy.ask(self.request)


Fault = Callable[[Exchange], Iterator[Step]]


def step_of(request: Seen) -> str:
    """Return which step of a write a request is."""
    method, path = request.method, request.path
    if method == "DELETE":
        return DELETE
    if "/blobs/uploads/" in path:
        return {"POST": POST, "PATCH": PATCH, "PUT": PUT_BLOB}.get(method, OTHER)
    if "/blobs/" in path:
        return {"HEAD": HEAD_BLOB, "PUT": PUT_BLOB}.get(method, OTHER)
    if "/manifests/" in path:
        kind = "manifest" if ":" in path.rpartition("/")[2] else "tag"
        return f"{method} {kind}" if method in ("HEAD", "PUT") else OTHER
    return OTHER


class WriteProxy(ScriptedServer):
    """Passes everything on to the registry at `upstream`, but for one step, which has a fault."""

    def __init__(self, upstream: str) -> None:
        super().__init__(self._answer)
        self._upstream = upstream
        self._lock = threading.Lock()
        self._step, self._fault = "", untouched
        self._count = 0

    def set(self, step: str, fault: Fault) -> None:
        """Answer requests of a step as `fault` says."""
        with self._lock:
            self._step, self._fault, self._count = step, fault, 0
            self.seen = []

    def mend(self) -> None:
        """Pass everything on as it is."""
        self.set("", untouched)

    @property
    def befallen(self) -> int:
        """How many requests met the fault."""
        return self._count

    def ask(self, request: Seen) -> Answer:
        """Pass a request on to the registry."""
        connection = http.client.HTTPConnection(self._upstream, timeout=20)
        headers = {name: value for name, value in request.headers.items() if name not in HELD}
        try:
            connection.request(request.method, request.target, request.body, headers)
            response = connection.getresponse()
            body = response.read()
            kept = {n: v for n, v in response.getheaders() if n.lower() not in ("connection",)}
            kept.pop("Transfer-Encoding", None)
            if location := kept.get("Location"):
                kept["Location"] = location.replace(f"http://{self._upstream}", self.url)
            if request.method != "HEAD":
                kept.pop("Content-Length", None)
            return Answer(response.status, kept, body)
        except http.client.HTTPException as error:
            raise Close from error
        finally:
            connection.close()

    def _answer(self, request: Seen) -> Iterator[Step]:
        if request.path == TOKEN_PATH:
            yield reply(body=json.dumps({"token": "fresh"}).encode())
            return
        with self._lock:
            is_hit = step_of(request) == self._step
            exchange = Exchange(self, request, self._count)
            self._count += is_hit
            fault = self._fault if is_hit else untouched
        yield from fault(exchange)

    def challenge(self) -> bytes:
        """Return a 401 that leads to this proxy's token server."""
        return reply(401, WWW_Authenticate=f'Bearer realm="{self.url}{TOKEN_PATH}",service="it"')


def untouched(exchange: Exchange) -> Iterator[Step]:
    yield exchange.ask().played()


def once(fault: Fault) -> Fault:
    """Return a fault that befalls the first request only."""

    def fault_once(exchange: Exchange) -> Iterator[Step]:
        return fault(exchange) if not exchange.number else untouched(exchange)

    return fault_once


def says(status: int, body: bytes = b"", media_type: str = "text/plain", **headers: str) -> Fault:
    """Return the fault that answers so, to HEAD without the body."""

    def fault(exchange: Exchange) -> Iterator[Step]:
        named = {"Content_Type": media_type, "Content_Length": str(len(body)), **headers}
        yield reply(status, b"" if exchange.request.method == "HEAD" else body, **named)

    return fault


def error(status: int, code: str) -> Fault:
    """Return the fault that answers with an error of the specification."""
    body = json.dumps({"errors": [{"code": code, "message": "so it is"}]}).encode()
    return says(status, body, "application/json")


def expired(exchange: Exchange) -> Iterator[Step]:
    """Ask for a token."""
    yield exchange.proxy.challenge()


def reset(exchange: Exchange) -> Iterator[Step]:
    """End the connection before anything was done."""
    raise Reset
    yield b""


def lost(exchange: Exchange) -> Iterator[Step]:
    """Do what was asked, and end the connection in the place of the answer."""
    exchange.ask()
    raise Reset
    yield b""


def silence(exchange: Exchange) -> Iterator[Step]:
    yield FOREVER


def other_digest(exchange: Exchange) -> Iterator[Step]:
    """Say that something else was stored."""
    yield reply(201, Docker_Content_Digest=str(Digest.of(b"something else")))


FAULTS: dict[str, Fault] = {
    "413": says(413),
    "429 with Retry-After once": once(says(429, Retry_After="1")),
    "429 always": says(429, Retry_After="86400"),
    "500 once": once(says(500)),
    "500": says(500),
    "502 HTML": says(502, HTML, "text/html"),
    "503": says(503),
    "401 once": once(expired),
    "401 always": expired,
    "403": error(403, "DENIED"),
    "404 plain": says(404, b"404 page not found\n"),
    "405": error(405, "UNSUPPORTED"),
    "reset once": once(reset),
    "reset": reset,
    "answer lost once": once(lost),
    "answer lost": lost,
    "silence": silence,
    "201 with another digest": other_digest,
    "200 empty": says(200),
    "202 without Location": says(202),
    "201 HTML": says(201, HTML, "text/html"),
    "201 empty": says(201),
    "200 HTML": says(200, HTML, "text/html"),
}
STEPS = (
    HEAD_BLOB,
    POST,
    PATCH,
    PUT_BLOB,
    HEAD_MANIFEST,
    PUT_MANIFEST,
    PUT_TAG,
    DELETE,
)
