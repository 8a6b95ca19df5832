"""A registry that answers one step of a write otherwise than it should: each step, each answer."""

from __future__ import annotations

import json
from collections.abc import Iterator

from epochfs.oci.names import Digest
from support.faultproxy import OTHER, TOKEN, TOKEN_PATH, Exchange, Fault, FaultProxy
from support.faults import first, reset, silence, unauthorized
from support.scripted import Reset, Seen, Step, reply

HEAD_BLOB, POST, PATCH, PUT_BLOB = "HEAD blob", "POST uploads", "PATCH", "PUT blob"
HEAD_MANIFEST, PUT_MANIFEST = "HEAD manifest", "PUT manifest"
PUT_TAG, DELETE = "PUT tag", "DELETE"
HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"


class WriteProxy(FaultProxy):
    """Stands in front of a registry; its faults are of the steps of a write."""

    def kind_of(self, request: Seen) -> str:
        """Return which step of a write a request is."""
        method, path = request.method, request.path
        if path == TOKEN_PATH:
            return TOKEN
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


def lost(exchange: Exchange) -> Iterator[Step]:
    """Do what was asked, and end the connection in the place of the answer."""
    exchange.proxy.ask(exchange.request)
    raise Reset
    yield b""


def other_digest(exchange: Exchange) -> Iterator[Step]:
    """Say that something else was stored."""
    yield reply(201, Docker_Content_Digest=str(Digest.of(b"something else")))


FAULTS: dict[str, Fault] = {
    "413": says(413),
    "429 with Retry-After once": first(1, says(429, Retry_After="1")),
    "429 always": says(429, Retry_After="86400"),
    "500 once": first(1, says(500)),
    "500": says(500),
    "502 HTML": says(502, HTML, "text/html"),
    "503": says(503),
    "401 once": first(1, unauthorized),
    "401 always": unauthorized,
    "403": error(403, "DENIED"),
    "404 plain": says(404, b"404 page not found\n"),
    "405": error(405, "UNSUPPORTED"),
    "reset once": first(1, reset),
    "reset": reset,
    "answer lost once": first(1, lost),
    "answer lost": lost,
    "silence": silence,
    "201 with another digest": other_digest,
    "200 empty": says(200),
    "202 without Location": says(202),
    "201 HTML": says(201, HTML, "text/html"),
    "201 empty": says(201),
    "200 HTML": says(200, HTML, "text/html"),
}
