"""An OCI Distribution registry in memory: what `epochfs demo` serves, and what the tests break.

It speaks the specification's pull, push, discovery and deletion on the wire, well enough for
`skopeo copy` in both directions, and Epoch's ways where `Behaviour` says so. Nothing outlives the
process. To get one wrong answer, override the method that every request goes through::

    class WithoutDigest(EmbeddedRegistry):
        def respond(self, request: Request) -> Response:
            response = super().respond(request)
            return response.without("Docker-Content-Digest")

    with WithoutDigest() as registry:
        ...  # registry.url

Threads: `respond` runs in many at once.

Source: OCI Distribution specification 1.1, and for `Access` Docker's "Token Authentication
Specification", which it leaves to registries; Epoch's token endpoint is `/v2/token`, so this one's
is too.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import secrets
import ssl
import threading
from typing import Self
from urllib.parse import parse_qsl

from epochfs.demo.endpoints import BlobEndpoints, ManifestEndpoints
from epochfs.demo.http_server import (
    OciError,
    Request,
    Response,
    Server,
    json_response,
    text_response,
)
from epochfs.demo.storage import EPOCH, SPECIFICATION, Behaviour, Storage
from epochfs.errors import InvalidName
from epochfs.oci.manifests import Document
from epochfs.oci.names import Digest, Repository

__all__ = ["EPOCH", "SPECIFICATION", "Behaviour", "EmbeddedRegistry", "Request", "Response"]

TOKEN_PATH = "/v2/token"
TOKEN_SECONDS = 300

_REPOSITORY = re.compile(r"/v2/(?P<name>.+)/(?:manifests|blobs|tags|referrers)/", re.DOTALL)

_POLL_SECONDS = 0.01
"""How often the accepting thread checks whether to stop."""


class EmbeddedRegistry:
    """A registry that listens on a free port of `host` from `start` to `stop`.

    It asks for `username` and `password` as `behaviour.auth` says; without both, everyone may have
    a token. With `ssl_context` it speaks https. After `stop` it can `start` again, on the same port
    and with its content.
    """

    def __init__(
        self,
        behaviour: Behaviour = SPECIFICATION,
        *,
        username: str = "",
        password: str = "",
        host: str = "127.0.0.1",
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.behaviour = behaviour
        self._address = (host, 0)
        self._ssl_context = ssl_context
        self._scheme = "https" if ssl_context else "http"
        self._storage = Storage(behaviour)
        self._access = Access(behaviour, username, password, self._scheme)
        self._routes = (
            *BlobEndpoints(behaviour, self._storage).routes(),
            *ManifestEndpoints(behaviour, self._storage).routes(),
        )
        self._server: Server | None = None

    def start(self) -> None:
        """Listen, and answer from threads of its own; raises OSError if the port is taken."""
        server = Server(self._address, self.respond, self._ssl_context)
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

    def respond(self, request: Request) -> Response:
        """Answer one request, in a thread of its connection; override it to answer otherwise."""
        try:
            if request.path == TOKEN_PATH and self.behaviour.auth == "bearer":
                return self._access.token(request)
            self._access.check(request)
            self._check_writable(request)
            return self._answer(request)
        except OciError as error:
            return error.response()

    def _check_writable(self, request: Request) -> None:
        """Raise OciError for a request that would change something, if nothing may change."""
        if request.method not in ("GET", "HEAD") and self.behaviour.read_only:
            denied = self.behaviour.read_only == "denied"
            status, code = (403, "DENIED") if denied else (405, "UNSUPPORTED")
            raise OciError(status, code, "the registry is read-only")

    def _answer(self, request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        for route in self._routes:
            match = route.pattern.fullmatch(request.path)
            if match is None:
                continue
            endpoint = route.endpoints.get(method)
            if endpoint is None:
                return self._no_endpoint(request, 405, f"{request.method} is not offered here")
            name, reference = match.groups()
            if name and self.behaviour.validates and not _conforms(name):
                raise OciError(400, "NAME_INVALID", "not a repository name")
            return endpoint(request, name, reference)
        return self._no_endpoint(request, 404, "no such endpoint")

    def _no_endpoint(self, request: Request, status: int, why: str) -> Response:
        if not self.behaviour.plain_errors:
            raise OciError(status, "UNSUPPORTED", why)
        # Epoch's web pages are behind all of its API, for GET alone.
        if request.method == "GET":
            return text_response(404, "404 page not found\n")
        return Response(405)


def _conforms(name: str) -> bool:
    try:
        return Repository.parse(name).conforms
    except InvalidName:
        return False


class Access:
    """Allows or refuses requests, by the behaviour and one pair of credentials.

    `tokens` is a set whose single operations are atomic, so there is no lock.
    """

    def __init__(self, behaviour: Behaviour, username: str, password: str, scheme: str) -> None:
        self._behaviour = behaviour
        self._username = username
        self._password = password
        self._scheme = scheme
        self.tokens: set[str] = set()

    def check(self, request: Request) -> None:
        """Raise OciError 401 with a challenge, unless the request may pass."""
        reads = request.method in ("GET", "HEAD") and request.path.rstrip("/") != "/v2"
        is_open = not self._behaviour.auth or (reads and self._behaviour.anonymous_reads)
        if not is_open and not self._authorized(request):
            challenge = self._challenge(request)
            raise OciError(
                401, "UNAUTHORIZED", "authentication required", WWW_Authenticate=challenge
            )

    def _authorized(self, request: Request) -> bool:
        if self._behaviour.auth == "basic":
            return self._knows(request)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return False
        # Epoch's users send the registry token, which is the password here, without an exchange.
        return token in self.tokens or _equal(token, self._password)

    def _challenge(self, request: Request) -> str:
        if self._behaviour.auth == "basic":
            return 'Basic realm="epochfs"'
        realm = f"{self._scheme}://{request.headers.get('host', '')}{TOKEN_PATH}"
        challenge = f'Bearer realm="{realm}",service="epochfs"'
        match = _REPOSITORY.match(request.path)
        if match and self._behaviour.scopes:
            actions = "pull" if request.method in ("GET", "HEAD") else "pull,push"
            challenge += f',scope="repository:{match["name"]}:{actions}"'
        return challenge

    def token(self, request: Request) -> Response:
        """Answer a request to the token server: to anyone, if no credentials were configured."""
        if self._behaviour.empty_token:
            return self._echoed(request)
        if not self._knows(request):
            raise OciError(
                401, "UNAUTHORIZED", "wrong credentials", WWW_Authenticate='Basic realm="epochfs"'
            )
        token = secrets.token_hex(16)
        self.tokens.add(token)
        return _token_response(token)

    def _echoed(self, request: Request) -> Response:
        """Answer as Epoch's `/v2/token`: the token is the password, whoever has it."""
        form = dict(parse_qsl(request.body.decode(errors="replace")))
        given = {**request.query, **form}
        password = _basic(request).partition(":")[2]
        candidate = password or given.get("password", "") or given.get("refresh_token", "")
        if candidate and not _equal(candidate, self._password):
            return text_response(401, "invalid credentials\n")
        return _token_response(candidate)

    def _knows(self, request: Request) -> bool:
        """Whether the request carries the configured credentials in Basic form."""
        if not self._username and not self._password:
            return True
        return _equal(_basic(request), f"{self._username}:{self._password}")


def _basic(request: Request) -> str:
    """Return the `user:password` of Basic credentials; empty for none, or for nonsense."""
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _equal(given: str, wanted: str) -> bool:
    return bool(wanted) and hmac.compare_digest(given.encode(), wanted.encode())


def _token_response(token: str) -> Response:
    return json_response({"token": token, "access_token": token, "expires_in": TOKEN_SECONDS})
