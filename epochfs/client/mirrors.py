"""The hosts of a registry, in the order to ask them: its mirrors, and last the registry itself.

What a mirror is trusted with (`hosts.Capability`): content verified by a digest may come from any,
statements that nothing verifies only from one that may `resolve`. Listings come from none: a
pull-through cache lists what it happens to hold, and that must not pass for the whole. Nothing is
ever written to a mirror, and none is sent the registry's credentials.

A mirror that lacks something, or fails, costs its share of the time and no more: each gets half of
an equal share of what is left, and what it does not use goes to the next. A mirror that failed is
skipped for a while, longer after each failure in a row and after one that took long. Then one
caller tries it, while the others go on without it. A blob of which a mirror, or the server behind
it, sent wrong bytes is no longer fetched from mirrors.

Locks: `Health._lock` and `Mirrors._lock` guard the underscored fields of their objects; nothing is
called under them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from cachetools import LRUCache, TTLCache

from epochfs.client.host import Host
from epochfs.client.hosts import Capability, HostConfig, RegistryHosts
from epochfs.client.transport import Answer, BlobStream, Reply, Shortened, Transport, web_page
from epochfs.config import Credentials, TransportOptions
from epochfs.errors import (
    DeadlineExceeded,
    Denied,
    EpochfsError,
    NotFound,
    ProtocolViolation,
    Unavailable,
    UnconfirmedNotFound,
    printable,
)
from epochfs.oci.names import Digest, Repository

log = logging.getLogger(__name__)

_REMEMBERED = 4096
"""How many blobs are remembered: who sent them, which were wrong, which a mirror lacks."""

_ABSENT_SECONDS = 30.0
"""For how long a mirror is not asked again for a blob it lacks; a blob takes many requests."""

_SLOWEST = 16 * 1024
"""Bytes a second, over a mirror's share of the time; a slower one is as good as silent."""

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 300.0
_COST_FACTOR = 4.0
"""A mirror is skipped for this many times what its failure took, so it costs at most a fifth of the
time."""

_FAILURES = (Unavailable, DeadlineExceeded, ProtocolViolation)
"""Errors that are about a mirror; the others are about what it was asked for."""

_T = TypeVar("_T")

Ask = Callable[[Host, float], _T]
"""Asks a host for something, within so many seconds."""


@dataclass(frozen=True, slots=True)
class MirrorState:
    """A mirror as an operator sees it: whether it works, `since` when, and if not, why not."""

    host: str
    capabilities: tuple[str, ...]
    healthy: bool
    since: float
    trouble: str


class Health:
    """The health of one mirror; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._trouble = ""
        self._since = time.time()
        self._failures = 0
        self._tried_at = 0.0
        self._trying = False

    @property
    def condition(self) -> tuple[str, float]:
        """The last failure, or "" if the mirror answers, and since when, in Unix time."""
        with self._lock:
            return self._trouble, self._since

    def begin(self, seconds: float) -> bool:
        """Return whether to ask the mirror, and to report the outcome within `seconds`."""
        now = time.monotonic()
        with self._lock:
            if not self._failures:
                return True
            if now < self._tried_at:
                return False
            self._tried_at, self._trying = now + seconds, True
            return True

    def succeeded(self) -> bool:
        """Record an answer; return whether it is the first after a failure."""
        with self._lock:
            recovered = self._failures > 0
            self._failures, self._trying = 0, False
            if recovered:
                self._trouble, self._since = "", time.time()
            return recovered

    def failed(self, trouble: str, cost: float) -> bool:
        """Record a failure that took `cost` seconds; return whether it is the first.

        Requests that were under way together, and fail together, are one failure.
        """
        now = time.monotonic()
        with self._lock:
            if self._failures and now < self._tried_at and not self._trying:
                return False
            self._failures += 1
            doubled = _FIRST_PAUSE * 2.0 ** min(self._failures - 1, 16)
            pause = min(max(doubled, _COST_FACTOR * cost), _LONGEST_PAUSE)
            self._tried_at, self._trying = now + pause, False
            first = self._failures == 1
            self._trouble = trouble
            if first:
                self._since = time.time()
            return first


class Mirror(Host):
    """A mirror, and its health."""

    def __init__(self, config: HostConfig, transport: Transport) -> None:
        super().__init__(transport, decides=False)
        self.config = config
        self.health = Health()
        # Written without a lock: all that a race costs is what `state` says for a moment.
        self._useful = False
        self._refusal = ""

    def ask(self, ask: Ask[_T], seconds: float) -> _T:
        started = time.monotonic()
        try:
            answer = ask(self, seconds)
        except _FAILURES as error:
            self.failed(error, time.monotonic() - started)
            raise
        except EpochfsError as error:
            self._succeeded()
            # One that has served something may deny or lack something else. One that never has
            # may be sent the wrong login, or be sought at the wrong path.
            if isinstance(error, Denied | UnconfirmedNotFound) and not self._useful:
                if not self._refusal:
                    log.info("mirror %s gives nothing: %s", self.config.url, error)
                self._refusal = str(error)
            raise
        self._succeeded()
        self._useful, self._refusal = True, ""
        return answer

    def ping(self, seconds: float) -> Reply:
        """Ping the mirror; a web page is not an answer of one, whatever its status."""
        reply = super().ping(seconds)
        if page := web_page(reply.body):
            raise UnconfirmedNotFound(f"{reply.what}: {reply.status} ({printable(page)})")
        return reply

    def open_blob(
        self, seconds: float, repository: Repository, digest: Digest, start: int, end: int | None
    ) -> BlobStream:
        """Open a blob, as a stream that tells the mirror how it went."""
        request = self._blob_request(repository, digest, start, end)
        kind = partial(MirrorStream, self, seconds)
        return self.transport.open(request, start, end, seconds, kind)

    def failed(self, error: EpochfsError, cost: float) -> None:
        """Record a failure that took `cost` seconds."""
        if self.health.failed(str(error), cost):
            log.info("mirror %s fails, going on without it: %s", self.config.url, error)

    def state(self) -> MirrorState:
        failure, since = self.health.condition
        trouble = failure or self._refusal
        return MirrorState(
            host=self.config.url,
            capabilities=tuple(sorted(one.value for one in self.config.capabilities)),
            healthy=not trouble,
            since=since,
            trouble=trouble,
        )

    def _succeeded(self) -> None:
        if self.health.succeeded():
            log.info("mirror %s answers again", self.config.url)


class MirrorStream(BlobStream):
    """A stream from a mirror, which is told when the stream breaks off or is too slow."""

    def __init__(
        self, mirror: Mirror, seconds: float, answer: Answer, start: int, end: int | None
    ) -> None:
        super().__init__(answer, start, end)
        self._mirror = mirror
        self._seconds = seconds
        self._waited = 0.0
        self._arrived = 0
        self._reader: int | None = None
        self._given_up = False

    def read_into(self, buffer: memoryview) -> int:
        """Fill `buffer` as BlobStream does; a mirror that is too slow is Unavailable."""
        started = time.monotonic()
        self._reader = threading.get_ident()
        try:
            count = super().read_into(buffer)
            self._check_pace(count, time.monotonic() - started)
        except Shortened:
            raise  # as is its right
        except _FAILURES as error:
            if not self._given_up:
                self._mirror.failed(error, time.monotonic() - started)
            raise
        finally:
            self._reader = None
        return count

    def close(self) -> None:
        """End the stream; if it did not end by itself, that says nothing about the mirror."""
        self._given_up = self._given_up or self._reader != threading.get_ident()
        super().close()

    def _check_pace(self, count: int, waited: float) -> None:
        self._waited += waited
        self._arrived += count
        if self._waited < self._seconds:
            return
        if self._arrived < _SLOWEST * self._waited:
            self.close()
            sent = f"{self._arrived} bytes in {self._waited:.1f} s"
            raise Unavailable(f"{self._mirror.config.url} is too slow: {sent}")
        self._waited, self._arrived = 0.0, 0


class Mirrors:
    """All hosts of one registry; thread-safe."""

    def __init__(self, origin: Host, mirrors: Sequence[Mirror]) -> None:
        self.origin = origin
        self.all = mirrors
        self._able = {
            capability: [one for one in mirrors if capability in one.config.capabilities]
            for capability in Capability
        }
        self._lock = threading.Lock()
        self._senders: LRUCache[Digest, frozenset[Mirror]] = LRUCache(_REMEMBERED)
        self._wrong: LRUCache[Digest, None] = LRUCache(_REMEMBERED)
        self._absent: TTLCache[tuple[Mirror, Digest], None] = TTLCache(_REMEMBERED, _ABSENT_SECONDS)

    def ask(
        self, capability: Capability, ask: Ask[_T], mirrors: Sequence[Mirror] | None = None
    ) -> _T:
        """Return the first answer of a mirror that is trusted with this, else the registry's own.

        `mirrors` are asked in place of all such mirrors. Raises what the registry raises.
        """
        hosts = self._able[capability] if mirrors is None else mirrors
        left = self.origin.transport.timeout
        for position, mirror in enumerate(hosts):
            seconds = left / (len(hosts) - position + 1) / 2
            if not mirror.health.begin(seconds):
                continue
            started = time.monotonic()
            try:
                return mirror.ask(ask, seconds)
            except EpochfsError as error:
                log.debug("asking the next host: %s", error)
            left -= round(time.monotonic() - started, 1)
        return ask(self.origin, left)

    def open_blob(
        self, repository: Repository, digest: Digest, start: int, end: int | None
    ) -> BlobStream:
        """Open a blob at the first host that has it, from byte `start` to before byte `end`."""
        with self._lock:
            able = self._able[Capability.PULL] if digest not in self._wrong else []
            mirrors = [mirror for mirror in able if (mirror, digest) not in self._absent]

        def ask(host: Host, seconds: float) -> BlobStream:
            try:
                stream = host.open_blob(seconds, repository, digest, start, end)
            except NotFound:
                if isinstance(host, Mirror):
                    with self._lock:
                        self._absent[host, digest] = None
                raise
            if isinstance(host, Mirror):
                with self._lock:
                    self._senders[digest] = self._senders.get(digest, frozenset()) | {host}
            return stream

        return self.ask(Capability.PULL, ask, mirrors)

    def distrust(self, digest: Digest) -> bool:
        """Record that a blob had wrong bytes, as `RegistryClient.distrust_mirrors` does."""
        with self._lock:
            senders = self._senders.pop(digest, frozenset())
            if senders:
                self._wrong[digest] = None
        for mirror in senders:
            log.warning("got wrong bytes for %s, perhaps from mirror %s", digest, mirror.config.url)
            mirror.failed(ProtocolViolation(f"got wrong bytes for {digest}"), 0.0)
        return bool(senders)


def hosts_of(hosts: RegistryHosts, credentials: Credentials, options: TransportOptions) -> Mirrors:
    """Return all hosts of a registry.

    The login that was given is for the host of the URL. If the file names another server, that is
    sent only what a credentials file has for it, and so are mirrors. A mirror is asked once: the
    next host is the better second attempt. Raises UsageError for a CA or certificate that cannot be
    used.
    """
    others = credentials.for_other_hosts()
    plain = replace(options, tls_verify=None, client_certs=(), retries=0)
    if hosts.elsewhere:
        credentials, options = others, replace(options, client_certs=())
    options = hosts.origin.options(options, hosts.namespace)
    origin = Transport(hosts.origin.base, credentials, options)
    mirrors = []
    for config in hosts.mirrors:
        told = config.options(plain, hosts.namespace)
        transport = Transport(config.base, others, told, origin.stats, mirror=True)
        mirrors.append(Mirror(config, transport))
    return Mirrors(Host(origin), mirrors)
