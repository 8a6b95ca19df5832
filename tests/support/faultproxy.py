"""A proxy between epochfs and a real registry that breaks answers on purpose.

It passes requests on, one by one, and plays each answer back: as it is, or as the fault set for
that kind of request says. It can ask for tokens, and be the token server too.
"""

from __future__ import annotations

import http.client
import itertools
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from support.scripted import Close, ScriptedServer, Seen, Step, reply

CATALOG, TAGS, REFERRERS, MANIFEST = "catalog", "tags", "referrers", "manifest"
BLOB, BLOB_HEAD, TOKEN, OTHER = "blob", "blob head", "token", "other"
Kind = Literal["catalog", "tags", "referrers", "manifest", "blob", "blob head", "token", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)

PIECE = 1 << 16
TOKEN_PATH = "/token"

_PASSED_HEADERS = ("accept", "range", "content-type", "content-range")
_KEPT_HEADERS = (
    "Content-Type",
    "Content-Length",
    "Content-Range",
    "Docker-Content-Digest",
    "Link",
    "Location",
    "OCI-Subject",
    "Range",
)


@dataclass(frozen=True)
class Answer:
    """What the registry said."""

    status: int
    headers: dict[str, str]
    body: bytes

    def head(self, status: int = 0, **changes: str | None) -> bytes:
        """Return the head of the answer with other headers; `None` leaves one out."""
        named = {name.replace("-", "_"): value for name, value in self.headers.items()}
        # A chunked answer of the registry's has none.
        named.setdefault("Content_Length", str(len(self.body)))
        return reply(status or self.status, **{**named, **changes})

    def pieces(self, stop: int | None = None) -> Iterator[bytes]:
        """Yield the body up to `stop`, piece by piece."""
        body = self.body[:stop]
        for start in range(0, len(body), PIECE):
            yield body[start : start + PIECE]

    def played(self) -> Iterator[bytes]:
        yield self.head()
        yield from self.pieces()


@dataclass
class Exchange:
    """One request: the `number`-th of its kind, from 0, since its fault was set."""

    proxy: FaultProxy
    request: Seen
    number: int

    @cached_property
    def answer(self) -> Answer:
        return self.proxy.ask(self.request)

    @cached_property
    def whole(self) -> Answer:
        """What the registry says to the same request without a Range."""
        kept = {name: value for name, value in self.request.headers.items() if name != "range"}
        return self.proxy.ask(replace(self.request, headers=kept))


Fault = Callable[[Exchange], Iterable[Step]]
"""What to answer; an Exchange's `answer` is fetched when it is first looked at."""


def untouched(exchange: Exchange) -> Iterator[Step]:
    yield from exchange.answer.played()


class FaultProxy(ScriptedServer):
    """Stands in front of the registry at `upstream`, `host:port`."""

    def __init__(self, upstream: str, *, guarded: bool = False) -> None:
        """`guarded`: every request needs a token of ours."""
        super().__init__(self._answer)
        self.sent = self.broken = 0
        self._upstream = upstream
        self._guarded = guarded
        self._tokens = itertools.count(1)
        self._valid: set[str] = set()
        self._lock = threading.Lock()
        self.mend()

    def kind_of(self, request: Seen) -> str:
        """Return of which of the kinds that have faults a request is."""
        return kind_of(request)

    def set(self, kind: str, fault: Fault) -> None:
        """Answer requests of a kind as `fault` says; count anew what is seen and sent."""
        with self._lock:
            self._faults[kind] = fault
            self._numbers[kind] = itertools.count()
            self.seen, self.sent = [], 0

    def mend(self) -> None:
        """Pass everything on as it is, and count anew."""
        with self._lock:
            self._faults: dict[str, Fault] = {TOKEN: grant}
            self._numbers: dict[str, Iterator[int]] = defaultdict(itertools.count)
            self.seen, self.sent = [], 0

    def requests(self, kind: str) -> list[Seen]:
        """Return the requests of a kind since the last fault was set."""
        return [request for request in self.seen if self.kind_of(request) == kind]

    def new_token(self) -> str:
        token = f"token{next(self._tokens)}"
        self._valid.add(token)
        return token

    def expire_tokens(self) -> None:
        """Accept none of the tokens that were handed out."""
        self._valid.clear()

    def ask(self, request: Seen) -> Answer:
        """Pass a request on to the registry; end the connection if the registry ends its own."""
        connection = http.client.HTTPConnection(self._upstream, timeout=20)
        headers = {name: text for name, text in request.headers.items() if name in _PASSED_HEADERS}
        try:
            connection.request(request.method, request.target, request.body or None, headers)
            response = connection.getresponse()
            named = {name: response.headers[name] for name in _KEPT_HEADERS}
            kept = {name: value for name, value in named.items() if value is not None}
            if location := kept.get("Location"):
                kept["Location"] = location.replace(f"http://{self._upstream}", self.url)
            return Answer(response.status, kept, response.read())
        except http.client.HTTPException as error:
            raise Close from error
        finally:
            connection.close()

    def _answer(self, request: Seen) -> Iterator[Step]:
        kind = self.kind_of(request)
        if kind != TOKEN and self._guarded and not self._authorized(request):
            yield self.challenge()
            return
        with self._lock:
            exchange = Exchange(self, request, next(self._numbers[kind]))
            fault = self._faults.get(kind, untouched)
        for step in fault(exchange):
            if isinstance(step, bytes):
                with self._lock:
                    self.sent += len(step)
            yield step

    def _authorized(self, request: Seen) -> bool:
        return request.headers.get("authorization", "").removeprefix("Bearer ") in self._valid

    def challenge(self) -> bytes:
        """Return a 401 that leads to this proxy's token server."""
        realm = f'Bearer realm="{self.url}{TOKEN_PATH}",service="proxy"'
        return reply(401, WWW_Authenticate=realm)


def kind_of(request: Seen) -> Kind:
    if request.path == TOKEN_PATH:
        return TOKEN
    if request.path == "/v2/_catalog":
        return CATALOG
    if request.path.endswith("/tags/list"):
        return TAGS
    if "/referrers/" in request.path:
        return REFERRERS
    if "/manifests/" in request.path:
        return MANIFEST
    if "/blobs/" in request.path:
        return BLOB if request.method == "GET" else BLOB_HEAD
    return OTHER


def grant(exchange: Exchange) -> Iterator[Step]:
    """Hand out a token, as a token server does."""
    document = {"token": exchange.proxy.new_token(), "expires_in": 300}
    yield reply(body=json.dumps(document).encode())
