"""One request and all it takes: authentication, redirects, retries, within one time limit."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar

from epochfs.client.auth import Authenticator, Bearer, CredentialStore, TokenRequest
from epochfs.client.causes import Cause
from epochfs.client.transport.connections import Adapter
from epochfs.client.transport.faults import TRANSIENT_STATUSES, Broken, Unreached, converted
from epochfs.client.transport.refusals import Asker, refusal
from epochfs.client.transport.request import Request, described, is_of_a_registry
from epochfs.client.transport.responses import Answer, Reply, TransportStats
from epochfs.client.transport.retries import (
    UNREACHED_DELAY,
    UNREACHED_SECONDS,
    backoff,
    retry_after,
)
from epochfs.client.transport.sender import Sender
from epochfs.client.transport.streams import BlobStream, may_refuse_range, without_range
from epochfs.client.transport.tls import TlsPolicy
from epochfs.client.transport.tokenserver import TokenServer
from epochfs.client.transport.urls import Url, next_page
from epochfs.client.transport.watchdog import Watch, Watchdog
from epochfs.config import Credentials, TransportOptions
from epochfs.errors import (
    Denied,
    EpochfsError,
    NotFound,
    ProtocolViolation,
    Unavailable,
    UsageError,
    explained,
    printable_url,
    without_user_information,
)

log = logging.getLogger(__name__)

SMALL_BODY = 1024 * 1024
"""Limit in bytes of bodies whose content is not looked at, or is a token."""

_FORM: Mapping[str, str] = {"Content-Type": "application/x-www-form-urlencoded"}
_EXPIRED_STATUSES = frozenset({400, 403, 410})
"""How storage refuses a signed URL whose time is up."""

_T = TypeVar("_T")

StreamKind = Callable[[Answer, int, int | None], BlobStream]
"""Makes a stream of an answer to a request for the bytes from one offset to before another."""


class Transport:
    """Speaks HTTP to one registry, its token server, and where these redirect to.

    Safe under threads. Every error it raises is one of `epochfs.errors`, and holds no credential.
    """

    def __init__(
        self,
        base_url: str,
        credentials: Credentials,
        options: TransportOptions,
        stats: TransportStats | None = None,
        *,
        mirror: bool = False,
    ) -> None:
        """`base_url` has no path; `stats` are counted in, if given. A `mirror` is not the registry.

        Raises UsageError for a URL, CA, certificate or proxy that cannot be used.
        """
        try:
            self.base = Url.parse(base_url)
        except ProtocolViolation:
            raise UsageError(f"not a registry URL: '{printable_url(base_url)}'") from None
        self.stats = TransportStats() if stats is None else stats
        self._options = options
        self._mirror = mirror
        self._watchdog = Watchdog()
        self._tls = TlsPolicy(options, self.base.hostname)
        self._adapter = Adapter(self._tls, options.pool_size, options.proxies)
        self._adapter.proxy_for(self.base)
        self._sender = Sender(self.base, options, self._tls, self._adapter, self.stats)
        store = CredentialStore(credentials, base_url)
        self._authenticator = Authenticator(store, self.base.scheme)
        self._headers = [f"{name}: {value}".encode() for name, value in options.headers]
        # Written without a lock: all that a race costs is one more refused request.
        self._refuses_range = False

    @property
    def timeout(self) -> float:
        """Within how many seconds an operation ends."""
        return self._options.timeout

    def url(self, path: str) -> Url:
        """Return the URL of a path of the registry's API, such as `/_catalog`."""
        return self.in_namespace(self.base.at(f"{self._options.root}{path}"))

    def in_namespace(self, url: Url) -> Url:
        """Return a URL of this host's with the namespace it is to be told, if it lacks it."""
        namespace = self._options.namespace
        if not namespace or url.has_parameter("ns"):
            return url
        return url.with_parameter("ns", namespace)

    def next_page(self, reply: Reply) -> Url | None:
        """Return where a listing goes on, here, or None; raises what `urls.next_page` does."""
        here = self.base.at(reply.url.target)
        url = next_page(reply.headers.get("Link", ""), here, self._options.root)
        return None if url is None else self.in_namespace(url)

    def watch(self, seconds: float | None = None) -> Watch:
        """Start the time limit of an operation that takes several requests; by default ours."""
        return self._watchdog.watch(self.timeout if seconds is None else seconds)

    def fetch(self, request: Request, limit: int = SMALL_BODY, watch: Watch | None = None) -> Reply:
        """Make a request and read the whole answer, of whatever status, 5xx and 429 excepted.

        Raises TooLarge for a 2xx whose body is over `limit` bytes, Unavailable once another
        attempt would not help or there is no time for it, and DeadlineExceeded.
        """
        if watch is None:
            with self.watch() as watch:
                return self.fetch(request, limit, watch)

        def read(answer: Answer) -> Reply:
            return answer.read_reply(limit, encoded=request.hashed)

        return self._attempts(request, partial(self._authenticated, request, watch), read, watch)

    def open(
        self,
        request: Request,
        start: int,
        end: int | None,
        seconds: float | None = None,
        kind: StreamKind = BlobStream,
    ) -> BlobStream:
        """Make a request for the bytes from `start` to `end` of a blob; return the open stream.

        The time limit, of `seconds` or else ours, holds until the headers are there, then anew for
        each read. The stream is made by `kind`. Where Range is what the server refuses, all is
        asked for, now and from then on.
        Raises what `fetch` does, what `refusal` returns, and what BlobStream raises.
        """
        watch = self.watch(seconds)
        try:
            result = self._open(request, start, end, kind, watch)
            watch.suspend()
        except BaseException:
            watch.release()
            raise
        return result

    def account(self) -> str:
        """Return in whose name requests are made, and where the credentials come from."""
        return self._authenticator.describe()

    def unused(self) -> str:
        """Return what was given to log in with and has not been shown to anybody, or ""."""
        return self._authenticator.unused()

    def token_expiry(self) -> float | None:
        """Return when the last of the tokens in use expires, as Unix time; None without one."""
        return self._authenticator.token_expiry()

    def bearer_for(self, salt: bytes, repository: str) -> Bearer:
        """Return who asks about a repository, with all that it is asked with and may open it.

        Raises Denied and DeadlineExceeded where credentials cannot be had.
        """
        deadline = time.monotonic() + self.timeout
        always_shown = (*self._tls.certificates, *self._headers)
        return self._authenticator.bearer_for(salt, repository, deadline, always_shown)

    def refusal(self, reply: Reply) -> EpochfsError:
        """Return the error that an answer other than the one hoped for means.

        What storage says, where the registry has redirected us to, is not the registry's word: it
        neither denies nor disowns anything, and is Unavailable. Another registry's word is as good
        as that of the one that sends us there, where it is NotFound as the specification has it.
        """
        here = reply.url.origin == self.base.origin
        error = refusal(reply, self._asker(reply), here=here)
        if here or isinstance(error, Unavailable):
            return error
        if is_of_a_registry(reply.url):
            if isinstance(error, Denied):
                return self._redirected(reply)
            if type(error) is NotFound:
                return error
        return Unavailable(f"{error}; it is the storage at {reply.url.site} that refuses this")

    def _redirected(self, reply: Reply) -> EpochfsError:
        """Return the error for a registry elsewhere that asks for what it is not shown."""
        sentence = Cause.REDIRECTED.told(registry=self.base.site, site=reply.url.site)
        return explained(Unavailable(f"{reply.what}: {reply.status}: {sentence}"))

    def _asker(self, reply: Reply) -> Asker:
        known = self._authenticator
        clean = partial(self._cleaned, reply.authorization)
        return Asker(known.describe(), known.anonymous, known.static, self._mirror, clean)

    def _cleaned(self, authorization: str, text: str) -> str:
        """Return a server's own words without what is secret in them."""
        text = self._authenticator.redact(without_user_information(text), authorization)
        for _, value in self._options.headers:
            text = text.replace(value, "***") if value else text
        return text

    def close(self) -> None:
        """End every operation under way, with Unavailable, and close the connections."""
        self._watchdog.close()
        self._adapter.close()

    def _open(
        self, request: Request, start: int, end: int | None, kind: StreamKind, watch: Watch
    ) -> BlobStream:
        def stream(answer: Answer) -> BlobStream | Reply:
            whole = answer.status in (200, 206)
            return kind(answer, start, end) if whole else answer.read_error()

        def ask(request: Request) -> BlobStream | Reply:
            send = partial(self._authenticated, request, watch)
            return self._attempts(request, send, stream, watch)

        whole = replace(request, headers=without_range(request.headers))
        found = ask(whole if self._refuses_range else request)
        if request != whole and isinstance(found, Reply) and may_refuse_range(found, start):
            log.debug("%s: %d: asking for all, without Range", found.what, found.status)
            found = ask(whole)
            if isinstance(found, BlobStream) and (found.total is None or found.total > start):
                self._refuses_range = True
        if isinstance(found, Reply):
            raise self.refusal(found)
        return found

    def _attempts(
        self,
        request: Request,
        send: Callable[[], Answer],
        consume: Callable[[Answer], _T],
        watch: Watch,
        meaning: Callable[[Reply], EpochfsError] | None = None,
    ) -> _T:
        """Send until there is an answer that another attempt would not improve on; consume it.

        `meaning` makes the error of the others, in place of `refusal`.
        """
        started = time.monotonic()
        attempt = 0
        while True:
            delay = backoff(attempt)
            error: EpochfsError
            again = request.repeatable and attempt < self._options.retries
            try:
                answer = send()
                if answer.status not in TRANSIENT_STATUSES:
                    return answer.consumed(consume)
                delay = max(delay, retry_after(answer.headers.get("Retry-After", "")))
                error = (meaning or self.refusal)(answer.read_error())
            except Unreached as failure:
                error, delay = failure, UNREACHED_DELAY
                in_time = time.monotonic() + delay < started + UNREACHED_SECONDS
                again = self._options.retries > 0 and in_time
            except Broken as failure:
                error = failure
            if not again or delay > watch.remaining():
                given_up = Unavailable(str(error))
                given_up.explained = error.explained
                raise given_up from error
            log.debug("%s; trying again in %.1f s", error, delay)
            self.stats.count(retries=1)
            with converted(described(request, request.url), watch):
                watch.sleep(delay)
            attempt += 1

    def _authenticated(self, request: Request, watch: Watch) -> Answer:
        """Send a request; answer one 401 of the registry's with a fresh token or credentials.

        A 403 is answered once as well, if there are other credentials than were sent.
        """
        fetch_token, learn = partial(self._fetch_token, watch), partial(self._learn, watch)
        sent_at = time.monotonic()
        shown = self._authenticator.header(request.scope, fetch_token, learn, watch.remaining())
        answer = self._answered(request, shown, watch)
        if answer.status == 401 and answer.url.origin == self.base.origin:
            challenge = answer.headers.get("WWW-Authenticate", "")
            answer.read_error()
            before, shown = (
                shown,
                self._authenticator.renew(
                    request.scope, challenge, shown, sent_at, fetch_token, watch.remaining()
                ),
            )
            if shown == before:
                return answer
            answer = self._answered(request, shown, watch)
        if answer.status == 403 and answer.url.origin == self.base.origin and request.restart():
            answer.read_error()
            another = self._authenticator.instead(
                request.scope, shown, fetch_token, watch.remaining()
            )
            if another != shown:
                answer = self._answered(request, another, watch)
        return answer

    def _answered(self, request: Request, authorization: str, watch: Watch) -> Answer:
        """Send a request; where the registry redirects a read to a URL that has expired, do so once
        more: it signs a new one each time.
        """
        answer = self._sender.follow(request, self.base.origin, authorization, watch)
        elsewhere = answer.url.origin != self.base.origin
        if elsewhere and answer.status in _EXPIRED_STATUSES and request.method in ("GET", "HEAD"):
            reply = answer.read_error()
            log.debug("%s: %d: asking the registry for another URL", reply.what, reply.status)
            answer = self._sender.follow(request, self.base.origin, authorization, watch)
        return answer

    def _learn(self, watch: Watch) -> str:
        """Return what the registry asks of everybody at its root (`auth.Learn`)."""
        request = Request("GET", self.url("/"))
        send = partial(self._sender.follow, request, self.base.origin, "", watch)
        reply = self._attempts(request, send, Answer.read_error, watch)
        challenge = reply.headers.get("WWW-Authenticate", "")
        if challenge and reply.url.origin != self.base.origin:
            raise self._redirected(reply)
        return challenge

    def _fetch_token(self, watch: Watch, wanted: TokenRequest) -> bytes:
        """Return the body of a token server's answer (`auth.Fetch`)."""
        url = Url.parse(wanted.url)
        request = Request("GET", url)
        if wanted.form:
            form = wanted.form.encode("ascii")
            request = Request("POST", url, headers=_FORM, body=form, confined=True)
        clean = partial(self._cleaned, wanted.authorization)
        server = TokenServer(url, self.account(), clean)
        send = partial(self._sender.follow, request, url.origin, wanted.authorization, watch)
        read = partial(Answer.read_reply, limit=SMALL_BODY)
        try:
            reply = self._attempts(request, send, read, watch, server.transient)
        except EpochfsError as error:
            raise server.failed(error) from error
        return server.token_in(reply, posted=bool(wanted.form))
