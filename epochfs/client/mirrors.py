"""The hosts of a registry, in the order to ask them: its mirrors, and at last the registry itself.

What a mirror is trusted with (`hosts.Capability`): content that a digest verifies may come from
any, statements that nothing verifies only from one that may `resolve`. Listings come from none: a
pull-through cache lists what it happens to hold, and a shorter listing must not pass for a whole
one. Nothing is ever written to a mirror, and none is shown the registry's credentials.

A mirror that does not have something, or fails, costs its share of the time and no more: each has
half of an equal share of what is left, and what it leaves is the next one's. A mirror that failed
is skipped for a while (`mirror_health`). One that sent wrong bytes of a blob, or whoever stood
behind it, is not asked for that blob again.

Locks: `Mirrors._lock` guards what is remembered of blobs; nothing is called under it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from cachetools import LRUCache, TTLCache

from epochfs.client.auth import Bearer
from epochfs.client.hosts import Capability, Host, RegistryHosts
from epochfs.client.mirror_health import Health
from epochfs.client.reads import ping
from epochfs.client.transport import Answer, BlobStream, Request, Shortened, Transport, web_page
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
from epochfs.oci.names import Digest

log = logging.getLogger(__name__)

_REMEMBERED = 4096
"""How many blobs are remembered: with who sent them, as sent wrong, as had by no mirror."""

_ABSENT_SECONDS = 30.0
"""For how long a mirror is not asked again for a blob it lacks, as one takes many requests."""

_SLOWEST = 16 * 1024
"""Bytes a second, over a mirror's share of the time: one that drips is as good as silent."""

_FAILURES = (Unavailable, DeadlineExceeded, ProtocolViolation)
"""Errors that say something of a mirror; the others say something of what it was asked for."""

_T = TypeVar("_T")

Ask = Callable[[Transport, float], _T]
"""Asks a host for something, within so many seconds."""


@dataclass(frozen=True, slots=True)
class MirrorState:
    """A mirror as an operator sees it: whether it is asked, `since` when, and if not, why not."""

    host: str
    capabilities: tuple[str, ...]
    healthy: bool
    since: float
    trouble: str


class Mirror:
    """One mirror: its transport, and its health."""

    def __init__(self, host: Host, transport: Transport) -> None:
        self.host = host
        self.transport = transport
        self._health = Health()
        # Written without a lock: all that a race costs is what `state` says for a moment.
        self._useful = False
        self._refusal = ""

    def ask(self, ask: Ask[_T], seconds: float) -> _T:
        """Ask the mirror, and take note of how it went."""
        started = time.monotonic()
        try:
            answer = ask(self.transport, seconds)
        except _FAILURES as error:
            self.failed(error, time.monotonic() - started)
            raise
        except EpochfsError as error:
            self.succeeded()
            self._refused(error)
            raise
        self.succeeded()
        self._useful, self._refusal = True, ""
        return answer

    def _refused(self, error: EpochfsError) -> None:
        """Take note that nothing came: of a mirror of which nothing ever did, that is trouble.

        It may be shown the wrong login, or be sought at the wrong path. One of which something has
        come may deny or lack something else.
        """
        if isinstance(error, Denied | UnconfirmedNotFound) and not self._useful:
            if not self._refusal:
                log.info("mirror %s gives nothing: %s", self.host.url, error)
            self._refusal = str(error)

    def may_be_asked(self, seconds: float) -> bool:
        """Return whether to ask the mirror now, for at most so many seconds."""
        return self._health.begin(seconds)

    def succeeded(self) -> None:
        """Take note of an answer."""
        if self._health.succeeded():
            log.info("mirror %s answers again", self.host.url)

    def failed(self, error: EpochfsError, cost: float) -> None:
        """Take note of a failure that took `cost` seconds."""
        if self._health.failed(str(error), cost):
            log.info("mirror %s fails, going on without it: %s", self.host.url, error)

    def state(self) -> MirrorState:
        """Return how the mirror does."""
        condition = self._health.condition
        trouble = condition.trouble or self._refusal
        return MirrorState(
            host=self.host.url,
            capabilities=tuple(sorted(one.value for one in self.host.capabilities)),
            healthy=not trouble,
            since=condition.since,
            trouble=trouble,
        )


class MirrorStream(BlobStream):
    """A stream from a mirror, which is told of it when the stream breaks off or drips."""

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
        """Fill `buffer` as BlobStream does; raises Unavailable also when too little arrives."""
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
        """End the stream; unless it ends by itself, that says nothing of the mirror."""
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
            raise Unavailable(f"{self._mirror.host.url} is too slow: {sent}")
        self._waited, self._arrived = 0.0, 0


class Mirrors:
    """All hosts of one registry; safe under threads."""

    def __init__(self, origin: Transport, mirrors: Sequence[Mirror]) -> None:
        self._origin = origin
        self._mirrors = mirrors
        self._lock = threading.Lock()
        self._senders: LRUCache[Digest, frozenset[Mirror]] = LRUCache(_REMEMBERED)
        self._wrong: LRUCache[Digest, None] = LRUCache(_REMEMBERED)
        self._absent: TTLCache[tuple[Mirror, Digest], None] = TTLCache(_REMEMBERED, _ABSENT_SECONDS)

    def ask(self, capability: Capability, ask: Ask[_T], decide: Ask[_T] | None = None) -> _T:
        """Return the first answer of a mirror that is trusted with this, else the registry's own.

        The registry itself is asked by `decide`, if that is given. Raises what it raises.
        """
        return self._ask(self._able(capability), lambda mirror: ask if mirror else decide or ask)

    def open_blob(
        self, request: Callable[[Transport], Request], digest: Digest, start: int, end: int | None
    ) -> BlobStream:
        """Open a blob at the first host that has it, from byte `start` to before byte `end`."""
        mirrors = []
        with self._lock:
            if digest not in self._wrong:
                able = self._able(Capability.PULL)
                mirrors = [mirror for mirror in able if (mirror, digest) not in self._absent]

        def ask_of(mirror: Mirror | None) -> Ask[BlobStream]:
            if mirror is None:
                return lambda origin, left: origin.open(request(origin), start, end, left)
            return partial(self._open_at, mirror, request, digest, start, end)

        return self._ask(mirrors, ask_of)

    def distrust(self, digest: Digest) -> bool:
        """Take note that wrong bytes came of a blob; return whether a mirror may have sent them.

        If so, the registry itself is asked for the blob from now on.
        """
        with self._lock:
            senders = self._senders.pop(digest, frozenset())
            if senders:
                self._wrong[digest] = None
        for mirror in senders:
            log.warning("wrong bytes came of %s, perhaps from mirror %s", digest, mirror.host.url)
            mirror.failed(ProtocolViolation(f"wrong bytes came of {digest}"), 0.0)
        return bool(senders)

    def states(self) -> tuple[MirrorState, ...]:
        """Return how each mirror does, in the order they are asked."""
        return tuple(mirror.state() for mirror in self._mirrors)

    def ping(self) -> None:
        """Ask each mirror whether it answers us; `states` has the outcome."""
        for mirror in self._mirrors:
            with contextlib.suppress(EpochfsError):
                mirror.ask(_ping, mirror.transport.timeout / 2)

    def bearer_for(self, salt: bytes, repository: str) -> Bearer:
        """Return who asks the hosts about a repository, with all credentials that they are shown.

        A mirror whose credentials cannot be had is shown none; raises Denied or DeadlineExceeded
        where it is the registry's own that cannot.
        """
        own = self._origin.bearer_for(salt, repository)
        principals, fingerprints = [own.principal], [own.fingerprint]
        for mirror in self._mirrors:
            with contextlib.suppress(Denied, DeadlineExceeded):
                known = mirror.transport.bearer_for(salt, repository)
                if known.fingerprint:
                    principals.append(f"{mirror.host.url} {known.principal}")
                    fingerprints.append(f"{mirror.host.url} {known.fingerprint}")
        return Bearer("\n".join(principals), "\n".join(fingerprints))

    def close(self) -> None:
        """End every call under way, and close the connections."""
        for transport in (*(mirror.transport for mirror in self._mirrors), self._origin):
            transport.close()

    def _able(self, capability: Capability) -> list[Mirror]:
        return [mirror for mirror in self._mirrors if capability in mirror.host.capabilities]

    def _ask(self, mirrors: Sequence[Mirror], ask_of: Callable[[Mirror | None], Ask[_T]]) -> _T:
        left = self._origin.timeout
        for position, mirror in enumerate(mirrors):
            hosts_left = len(mirrors) - position + 1
            seconds = left / hosts_left / 2
            if not mirror.may_be_asked(seconds):
                continue
            started = time.monotonic()
            try:
                return mirror.ask(ask_of(mirror), seconds)
            except EpochfsError as error:
                log.debug("asking the next host: %s", error)
            left -= round(time.monotonic() - started, 1)
        return ask_of(None)(self._origin, left)

    def _open_at(
        self,
        mirror: Mirror,
        request: Callable[[Transport], Request],
        digest: Digest,
        start: int,
        end: int | None,
        transport: Transport,
        seconds: float,
    ) -> BlobStream:
        kind = partial(MirrorStream, mirror, seconds)
        try:
            stream = transport.open(request(transport), start, end, seconds, kind)
        except NotFound:
            with self._lock:
                self._absent[mirror, digest] = None
            raise
        with self._lock:
            self._senders[digest] = self._senders.get(digest, frozenset()) | {mirror}
        return stream


def origin_transport(
    hosts: RegistryHosts, credentials: Credentials, options: TransportOptions
) -> Transport:
    """Return the transport of the registry itself, wherever the file says that it is.

    What was given to log in with is for the host of the URL. Elsewhere only what a file of
    credentials has for that host is used.
    """
    if hosts.elsewhere:
        credentials, options = credentials.for_other_hosts(), replace(options, client_certs=())
    return Transport(hosts.origin.base, credentials, hosts.origin.options(options, hosts.namespace))


def mirrors_of(
    hosts: RegistryHosts, origin: Transport, credentials: Credentials, options: TransportOptions
) -> Mirrors:
    """Return the hosts of a registry, whose own transport is `origin`.

    What is given for the registry is not for its mirrors. These are asked once: the next host is
    the better second attempt. Raises UsageError for a CA or certificate that cannot be used.
    """
    plain = replace(options, tls_verify=None, client_certs=(), retries=0)
    others = credentials.for_other_hosts()
    mirrors = []
    for host in hosts.mirrors:
        told = host.options(plain, hosts.namespace)
        transport = Transport(host.base, others, told, origin.stats, mirror=True)
        mirrors.append(Mirror(host, transport))
    return Mirrors(origin, mirrors)


def _ping(transport: Transport, seconds: float) -> None:
    """Ping a mirror; a web page is no answer of one, whatever its status."""
    reply = ping(transport, seconds)
    if page := web_page(reply.body):
        raise UnconfirmedNotFound(f"{reply.what}: {reply.status} ({printable(page)})")
