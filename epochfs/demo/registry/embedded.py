"""The class that owns all of the registry.

Threads: `respond` runs in many at once. `_log_lock` guards the request log alone, and no other lock
is taken under it.
"""

from __future__ import annotations

import ssl
import threading
from collections import deque
from dataclasses import replace
from typing import Self

from epochfs.demo.registry.access import TOKEN_PATH, Access
from epochfs.demo.registry.behaviour import SPECIFICATION, Behaviour
from epochfs.demo.registry.endpoints import Endpoints
from epochfs.demo.registry.messages import OciError, Request, Response
from epochfs.demo.registry.server import Server
from epochfs.demo.registry.storage import Storage
from epochfs.oci.manifests import Document
from epochfs.oci.names import Digest

_POLL_SECONDS = 0.01
"""How often the accepting thread looks whether it is to stop."""


class EmbeddedRegistry:
    """A registry that listens on `host` and `port` (0: any free one) from `start` to `stop`.

    `username` and `password` are asked for as `behaviour.auth` says; without both of them everyone
    may have a token. With `ssl_context` it speaks https. The last `logged` requests can be looked
    at, and cost a kilobyte each. After `stop` it can `start` again, at the same port and with all
    it held. Overriding `respond` changes single answers.
    """

    def __init__(
        self,
        behaviour: Behaviour = SPECIFICATION,
        *,
        username: str = "",
        password: str = "",
        host: str = "127.0.0.1",
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        logged: int = 100_000,
    ) -> None:
        self.behaviour = behaviour
        self._address = (host, port)
        self._ssl_context = ssl_context
        self._scheme = "https" if ssl_context else "http"
        self._storage = Storage(global_blobs=behaviour.global_blobs, bucket=behaviour.bucket)
        self._access = Access(behaviour, username, password, self._scheme)
        self._endpoints = Endpoints(behaviour, self._storage)
        self._server: Server | None = None
        self._log_lock = threading.Lock()
        self._log: deque[Request] = deque(maxlen=logged)

    def start(self) -> None:
        """Listen, and answer from threads of its own; raises OSError if the port is taken."""
        server = Server(self._address, self._serve, self._ssl_context)
        self._address = (self._address[0], server.server_port)
        self._server = server
        threading.Thread(
            target=server.serve_forever, args=(_POLL_SECONDS,), name="registry", daemon=True
        ).start()

    def stop(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    @property
    def host(self) -> str:
        """`host:port`, as image references write a registry."""
        return f"{self._address[0]}:{self._address[1]}"

    @property
    def url(self) -> str:
        """The base URL, without a trailing slash."""
        return f"{self._scheme}://{self.host}"

    def put_blob(self, repository: str, data: bytes) -> Digest:
        """Store a blob without HTTP, and return its digest."""
        digest = Digest.of(data)
        self._storage.put_blob(repository, digest, data)
        return digest

    def put_manifest(self, repository: str, tag: str, raw: bytes, media_type: str) -> Digest:
        """Store a manifest without HTTP and unchecked, tagged unless `tag` is empty."""
        document = Document(Digest.of(raw), media_type, raw)
        self._storage.put_manifest(repository, document, *[tag][: bool(tag)])
        return document.digest

    def revoke_tokens(self) -> None:
        """Let every token that was handed out be expired."""
        self._access.revoke_tokens()

    @property
    def requests(self) -> list[Request]:
        """The requests so far, oldest first and without their bodies; the last `logged` at most."""
        with self._log_lock:
            return list(self._log)

    def count(self, method: str = "", containing: str = "") -> int:
        """Return how many requests had this method (any if empty) and this text in their path."""
        return sum(
            method in ("", request.method) and containing in request.path
            for request in self.requests
        )

    def forget_requests(self) -> None:
        """Empty the request log."""
        with self._log_lock:
            self._log.clear()

    def respond(self, request: Request) -> Response:
        """Answer one request, in a thread of its connection; override it to answer otherwise."""
        try:
            if request.path == TOKEN_PATH and self.behaviour.auth == "bearer":
                return self._access.token(request)
            self._access.check(request)
            return self._endpoints.answer(request)
        except OciError as error:
            return error.response()

    def _serve(self, request: Request) -> Response:
        with self._log_lock:
            self._log.append(replace(request, body=b""))
        return self.respond(request)
