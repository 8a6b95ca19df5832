"""A transport to a scripted server, for the tests of the transport."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

from epochfs.client.transport import BlobStream, Reply, Request, Transport
from epochfs.config import Credentials, TransportOptions
from support.scripted import Script, ScriptedServer, Step, reply

TIMEOUT = 0.6
"""The time limit of the tests' operations, in seconds."""

SLACK = 2.0
"""What a loaded machine may take on top of it."""

ANYONE = Credentials()

HEADERS = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEADERS + b"Transfer-Encoding: chunked\r\n\r\n"

Serve = Callable[..., tuple[ScriptedServer, Transport]]


def serving() -> Iterator[Serve]:
    """A fixture: starts scripted servers, each with a transport of the given options to it."""
    with ExitStack() as opened:

        def start(
            script: Script, credentials: Credentials = ANYONE, **options: object
        ) -> tuple[ScriptedServer, Transport]:
            server = opened.enter_context(ScriptedServer(script))
            settings = TransportOptions(**{"timeout": TIMEOUT, **options})  # type: ignore[arg-type]
            transport = Transport(server.url, credentials, settings)
            opened.enter_context(closing(transport))
            return server, transport

        yield start


def get(transport: Transport, path: str = "/v2/x", **options: object) -> Reply:
    return transport.fetch(Request("GET", transport.base.at(path)), **options)  # type: ignore[arg-type]


def stream(transport: Transport, start: int = 0, end: int | None = None) -> BlobStream:
    return transport.open(Request("GET", transport.base.at("/v2/blob")), start, end)


def written(path: Path, entry: dict[str, str], host: str) -> Credentials:
    """Write a login of docker's for one registry."""
    path.write_text(json.dumps({"auths": {host: entry}}))
    return Credentials(auth_files=(path,))


def endless(step: bytes, pause: float = 0.0) -> Iterator[Step]:
    while True:
        yield step
        if pause:
            yield pause


def fails(error: type[Exception]) -> Iterator[Step]:
    raise error
    yield b""


def redirect(location: str, status: int = 307) -> list[Step]:
    return [reply(status, Location=location)]
