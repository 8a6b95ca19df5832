"""Blobs from behind signed URLs that expire while they are read."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

from support import builders
from support.registries import EmbeddedRegistry
from support.stacks import stack

from epochfs.demo.registry import Request, Response
from epochfs.oci.names import Digest, Repository

SIZE = 3_000_000
CUT = 700_000
"""So many bytes come of each answer before the connection is reset."""


class Storage(EmbeddedRegistry):
    """Answers each signature once, with part of what it should send; then it has expired."""

    def __init__(self) -> None:
        super().__init__(host="127.0.0.2")
        self.used: set[str] = set()
        self.refused = 0
        self._lock = threading.Lock()

    def respond(self, request: Request) -> Response:
        signature = request.query["signature"]
        with self._lock:
            if signature in self.used:
                self.refused += 1
                return Response(403, {}, b"<Error><Code>AccessDenied</Code></Error>")
            self.used.add(signature)
        whole = super().respond(request)
        body = bytes(whole.body)  # type: ignore[arg-type]
        if len(body) <= CUT:
            return whole
        headers = {**whole.headers, "Content-Length": str(len(body))}
        return Response(whole.status, headers, _cut(body[:CUT]))


def _cut(body: bytes) -> Iterator[bytes]:
    yield body
    raise ConnectionResetError


class Registry(EmbeddedRegistry):
    """Redirects blobs, every other time to a URL that was used before."""

    def __init__(self, storage: Storage) -> None:
        super().__init__()
        self.storage = storage
        self._numbers = itertools.count()

    def respond(self, request: Request) -> Response:
        if "/blobs/" not in request.path or request.method != "GET":
            return super().respond(request)
        number = next(self._numbers)
        used = sorted(self.storage.used)
        signature = used[0] if number % 2 and used else f"s{number}"
        return Response(
            307, {"Location": f"{self.storage.url}{request.path}?signature={signature}"}
        )


def test_a_read_outlives_the_urls_it_is_made_from(tmp_path: Path) -> None:
    blob = builders.random_bytes(SIZE)
    content = builders.image(blob)
    buffer = bytearray(SIZE)
    with Storage() as storage, Registry(storage) as registry:
        for host in (registry, storage):
            builders.load(host, "library/app", "latest", content)
        with stack(registry.url, tmp_path) as layers:
            handle = layers.blobs.open(Repository("library/app"), Digest.of(blob), SIZE)
            for offset in range(0, SIZE, 100_000):
                handle.read_into(memoryview(buffer)[offset : offset + 100_000], offset)
            handle.close()
    assert buffer == blob
    assert storage.refused > 0
    assert len(storage.used) > SIZE // CUT
