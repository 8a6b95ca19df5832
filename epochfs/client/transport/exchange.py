"""One request and all it takes: authentication, redirects and retries, within one time limit."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar
from urllib.parse import quote

from requests import PreparedRequest
from requests.structures import CaseInsensitiveDict

from epochfs import __version__
from epochfs.client.auth import Authenticator, Bearer, CredentialStore, TokenRequest, Turn
from epochfs.client.transport.connections import Adapter, watch_in_use
from epochfs.client.transport.faults import (
    CONVERTED,
    TRANSIENT_STATUSES,
    Broken,
    Unreached,
    convert,
)
from epochfs.client.transport.refusals import Asker, TokenServer, redirected, refusal, retry_after
from epochfs.client.transport.request import Origin, Request, Sent, UploadBody, Url
from epochfs.client.transport.responses import Answer, BlobStream, Reply, TransportStats
from epochfs.client.transport.tls import TlsPolicy
from epochfs.client.transport.watchdog import Watch, Watchdog
from epochfs.config import Credentials, TransportOptions
from epochfs.errors import EpochfsError, ProtocolViolation, Unavailable, without_user_information

log = logging.getLogger(__name__)

SMALL_BODY = 1024 * 1024
"""Limit in bytes of bodies that are tokens, or whose content is not looked at."""

_FORM: Mapping[str, str] = {"Content-Type": "application/x-www-form-urlencoded"}
_OWN_HEADERS = {"User-Agent": f"epochfs/{__version__}", "Accept-Encoding": "identity"}
_MAX_REDIRECTS = 5
_EXPIRED_STATUSES = frozenset({400, 403, 410})
"""How storage refuses a signed URL whose time is up."""

_UNREACHED_SECONDS = 1.0
"""For how long connecting is retried. A server that restarts is back in a moment; if it is down,
those who wait should soon be told."""

_UNREACHED_DELAY = 0.2
_FIRST_DELAY = 0.1
_LONGEST_DELAY = 5.0

_T = TypeVar("_T")

StreamKind = Callable[[Answer, int, int | None], BlobStream]
"""Makes a stream of an answer to a request for the bytes from one offset to before another."""


class Transport:
    """Speaks HTTP to one registry, its token server, and where these redirect to.

    Thread-safe. Every error it raises is one of `epochfs.errors`, and contains no credential.
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

        Raises UsageError for a CA, certificate or proxy that cannot be used.
        """
        self.base = Url.parse(base_url)
        origin = self.base.origin
        self.stats = TransportStats() if stats is None else stats
        self.timeout = options.timeout
        self.root = options.root
        self._query = f"?ns={quote(options.namespace, safe='')}" if options.namespace else ""
        self._options = options
        self._mirror = mirror
        self._watchdog = Watchdog(options.timeout)
        self.watch = self._watchdog.watch
        self._tls = TlsPolicy(options, origin.hostname)
        self._adapter = Adapter(self._tls, options.pool_size)
        self._proxy = options.proxies.of(origin.scheme, origin.hostname, origin.port)
        store = CredentialStore(credentials, base_url)
        self.authenticator = Authenticator(store, origin.scheme)
        self._headers = [f"{name}: {value}".encode() for name, value in options.headers]
        # Written without a lock: all that a race costs is one more refused request.
        self._refuses_range = False

    def url(self, path: str) -> Url:
        """Return the URL of a path of the registry's API, such as `/_catalog`."""
        return Url(self.base.origin, f"{self.root}{path}{self._query}")

    def in_namespace(self, url: Url) -> Url:
        """Return a URL that this host named with the namespace it must be told, if it lacks it."""
        if not self._query or url.has_parameter("ns"):
            return url
        return url.with_parameter("ns", self._options.namespace)

    def fetch(
        self,
        request: Request,
        limit: int = SMALL_BODY,
        watch: Watch | None = None,
        seconds: float | None = None,
    ) -> Reply:
        """Make a request and read the whole answer, of any status except 5xx and 429.

        The time limit is that of `watch`, else `seconds`, else ours. Raises TooLarge for a 2xx with
        more than `limit` bytes, DeadlineExceeded, and Unavailable if another attempt would not help
        or there is no time for it.
        """
        during = watch or self.watch(seconds)
        send = partial(self._authenticated, request, during)
        read = partial(Answer.read_reply, limit=limit, encoded=request.hashed)
        try:
            return self._attempts(request, send, read, during)
        finally:
            if watch is None:
                during.release()

    def open(
        self,
        request: Request,
        start: int,
        end: int | None,
        seconds: float | None = None,
        kind: StreamKind = BlobStream,
    ) -> BlobStream:
        """Request the bytes from `start` to `end` of a blob; return them as a stream of `kind`.

        The time limit, `seconds` or else ours, is for the headers, then anew for each read. If the
        server refuses Range, the whole blob is requested, now and from then on. Raises the refusal,
        Unavailable, DeadlineExceeded, and ProtocolViolation for an answer that does not fit.
        """
        watch = self.watch(seconds)
        try:
            result = self._open(request, start, end, kind, watch)
            watch.suspend()
        except BaseException:
            watch.release()
            raise
        return result

    def bearer_for(self, salt: bytes, repository: str) -> Bearer:
        """Return who asks about a repository, by everything that is sent to get access to it.

        Raises Denied and DeadlineExceeded if credentials are unavailable.
        """
        deadline = time.monotonic() + self.timeout
        certificates = self._tls.certificates if self._options.client_certs else ()
        always_shown = (*certificates, *self._headers)
        return self.authenticator.bearer_for(salt, repository, deadline, always_shown)

    def refusal(self, reply: Reply) -> EpochfsError:
        known = self.authenticator.credentials
        clean = partial(self._cleaned, reply.what.authorization)
        asker = Asker(known.describe(), known.anonymous, known.static, self._mirror, clean)
        return refusal(reply, asker, self.base.origin)

    def close(self) -> None:
        """End every operation under way, with Unavailable, and close the connections."""
        self._watchdog.close()
        self._adapter.close()

    def _cleaned(self, authorization: str, text: str) -> str:
        """Return a server's own words without secrets."""
        text = self.authenticator.redact(without_user_information(text), authorization)
        for _, value in self._options.headers:
            text = text.replace(value, "***") if value else text
        return text

    def _open(
        self, request: Request, start: int, end: int | None, kind: StreamKind, watch: Watch
    ) -> BlobStream:
        def stream(answer: Answer) -> BlobStream | Reply:
            return kind(answer, start, end) if answer.status in (200, 206) else answer.read_error()

        def ask(request: Request) -> BlobStream | Reply:
            send = partial(self._authenticated, request, watch)
            return self._attempts(request, send, stream, watch)

        if self._refuses_range:
            request = request.without_range()
        found = ask(request)
        ranged = "Range" in request.headers
        if ranged and isinstance(found, Reply) and found.may_refuse_range(start):
            log.debug("%s: %d: asking for all, without Range", found.what, found.status)
            found = ask(request.without_range())
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
        """Send until there is an answer that another attempt would not improve; consume it.

        `meaning` turns the others into errors, in place of `refusal`.
        """
        started = time.monotonic()
        attempt = 0
        while True:
            again = request.repeatable and attempt < self._options.retries
            is_final = False
            error: EpochfsError
            try:
                answer = send()
                if answer.status not in TRANSIENT_STATUSES:
                    try:
                        return consume(answer)
                    except BaseException:
                        answer.close()
                        raise
                asked_for = retry_after(answer.headers.get("Retry-After", ""))
                delay = max(_backoff(attempt), asked_for)
                refused = answer.read_error()
                error = (meaning or self.refusal)(refused)
                is_final = request.final_code in refused.codes
            except Unreached as failure:
                error, delay, asked_for = failure, _UNREACHED_DELAY, 0.0
                in_time = time.monotonic() + delay < started + _UNREACHED_SECONDS
                again = self._options.retries > 0 and in_time
            except Broken as failure:
                error, delay, asked_for = failure, _backoff(attempt), 0.0
            if is_final or not again or delay > watch.remaining():
                given_up = Unavailable(str(error))
                given_up.is_final = is_final
                given_up.explained, given_up.asked_for = error.explained, asked_for
                raise given_up from error
            self._pause(error, delay, watch)
            attempt += 1

    def pause(self, error: EpochfsError, attempt: int) -> bool:
        """Wait before attempt 1, 2, … at what failed with `error`.

        Returns False at once if there may be no other, or it is asked to wait for too long. Raises
        Unavailable if the client is closed meanwhile.
        """
        asked_for = error.asked_for if isinstance(error, Unavailable) else 0.0
        delay = max(_backoff(attempt - 1), asked_for)
        if attempt > self._options.retries or delay >= self.timeout:
            return False
        with self.watch() as watch:
            self._pause(error, delay, watch)
        return True

    def _pause(self, error: EpochfsError, delay: float, watch: Watch) -> None:
        log.debug("%s; trying again in %.1f s", error, delay)
        self.stats.count(retries=1)
        try:
            watch.sleep(delay)
        except CONVERTED as ended:
            raise convert(ended, error, watch) from ended

    def _authenticated(self, request: Request, watch: Watch) -> Answer:
        """Send a request; answer one 401 from the registry with a fresh token or credentials.

        A 403 is answered once as well, if there are credentials other than those sent.
        """
        fetch_token, learn = partial(self._fetch_token, watch), partial(self._learn, watch)
        turn = partial(Turn, request.scope, fetch_token, learn)
        home, known, sent_at = self.base.origin, self.authenticator, time.monotonic()
        shown = known.header(turn(watch.deadline))
        answer = self._answered(request, shown, watch)
        if answer.status == 401 and answer.url.origin == home:
            challenge = answer.headers.get("WWW-Authenticate", "")
            answer.read_error()
            refused = shown
            shown = known.renew(turn(watch.deadline), challenge, refused, sent_at)
            if shown == refused:
                return answer
            answer = self._answered(request, shown, watch)
        if answer.status == 403 and answer.url.origin == home and request.restart():
            answer.read_error()
            another = known.instead(turn(watch.deadline), shown)
            if another != shown:
                answer = self._answered(request, another, watch)
        return answer

    def _answered(self, request: Request, authorization: str, watch: Watch) -> Answer:
        """Send a request; if a read is redirected to a URL that has expired, ask for a new one."""
        home = self.base.origin
        answer = self._follow(request, home, authorization, watch)
        elsewhere = answer.url.origin != home
        if elsewhere and answer.status in _EXPIRED_STATUSES and request.method in ("GET", "HEAD"):
            reply = answer.read_error()
            log.debug("%s: %d: asking the registry for another URL", reply.what, reply.status)
            answer = self._follow(request, home, authorization, watch)
        return answer

    def _follow(self, request: Request, home: Origin, authorization: str, watch: Watch) -> Answer:
        """Send a request to where redirects lead; only `home` is sent `authorization`."""
        url = request.url
        for _ in range(_MAX_REDIRECTS + 1):
            answer = self._send(request, url, authorization if url.origin == home else "", watch)
            location = answer.location if answer.status // 100 == 3 else ""
            if not location:
                return answer
            answer.read_error()
            url = url.follow(location)
            if request.confined and url.origin != home:
                site = url.origin.site
                raise ProtocolViolation(f"{answer.what}: redirects credentials to {site}")
        raise ProtocolViolation(f"{Sent(request, request.url)}: over 5 redirects")

    def _send(self, request: Request, url: Url, authorization: str, watch: Watch) -> Answer:
        """Send one request to one server and return its answer, whatever it is."""
        origin, options = url.origin, self._options
        headers = CaseInsensitiveDict({**_OWN_HEADERS, **request.headers})
        if origin == self.base.origin:
            headers.update(options.headers)
            proxy = self._proxy
        else:
            proxy = options.proxies.of(origin.scheme, origin.hostname, origin.port)
        if authorization:
            headers["Authorization"] = authorization
        sent, body = Sent(request, url, proxy, authorization), request.body
        if isinstance(body, UploadBody):
            if not body.restart():
                raise Unavailable(f"{sent}: the body cannot be sent again")
            body.watch = watch
        if body is not None:
            headers["Content-Length"] = str(len(body))
        prepared = PreparedRequest()
        prepared.method, prepared.headers = request.method, headers
        prepared.url = f"{origin.site}{url.target}"
        prepared.body = body  # type: ignore[assignment] # all the adapter needs of it is `read`
        proxies = {"all": proxy} if proxy else {}
        timeout = (options.connect_timeout, self.timeout)
        self.stats.count(requests=1)
        token = watch_in_use.set(watch)
        try:
            raw = self._adapter.send(prepared, stream=True, timeout=timeout, proxies=proxies).raw
        except CONVERTED as error:
            identified = self._tls.identifies(origin.hostname)
            raise convert(error, sent, watch, identified=identified) from error
        finally:
            watch_in_use.reset(token)
        log.debug("%s: %d", sent, raw.status)
        return Answer(raw, sent, watch, self.stats)

    def _learn(self, watch: Watch) -> str:
        """Return what the registry asks of everyone at its root (`auth.Learn`)."""
        request = Request("GET", self.url("/"))
        send = partial(self._follow, request, self.base.origin, "", watch)
        reply = self._attempts(request, send, Answer.read_error, watch)
        challenge = reply.headers.get("WWW-Authenticate", "")
        if challenge and reply.url.origin != self.base.origin:
            raise redirected(reply, self.base.origin)
        return challenge

    def _fetch_token(self, watch: Watch, wanted: TokenRequest) -> bytes:
        """Return the body of a token server's answer (`auth.Fetch`)."""
        url = Url.parse(wanted.url)
        request = Request("GET", url)
        if wanted.form:
            form = wanted.form.encode("ascii")
            request = Request("POST", url, headers=_FORM, body=form, confined=True)
        clean = partial(self._cleaned, wanted.authorization)
        server = TokenServer(url, self.authenticator.credentials.describe(), clean)
        send = partial(self._follow, request, url.origin, wanted.authorization, watch)
        read = partial(Answer.read_reply, limit=SMALL_BODY)
        try:
            reply = self._attempts(request, send, read, watch, server.transient)
        except EpochfsError as error:
            raise server.failed(error) from error
        return server.token_in(reply, posted=bool(wanted.form))


def _backoff(attempt: int) -> float:
    """Return the seconds to wait after attempt 0, 1, …: exponential with jitter, at most 5."""
    return min(_FIRST_DELAY * 2.0 ** min(attempt, 10), _LONGEST_DELAY) * random.uniform(0.5, 1.0)
