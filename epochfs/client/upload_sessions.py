"""Upload sessions: opened, filled in one request or in parts, and taken up again where they broke.

A registry that can say how much it has (GET of the session) is sent the rest. To one that cannot,
such as Docker's 2.8, which ends a session whose connection broke, everything is sent again.

Source: OCI Distribution Specification 1.1, "Pushing blobs".
"""

from __future__ import annotations

import enum
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass

from epochfs.client.host import announced_digest
from epochfs.client.transport import Reply, Request, Transport, UploadBody, Url
from epochfs.errors import (
    ContentMismatch,
    EpochfsError,
    ProtocolViolation,
    TlsFailure,
    Unavailable,
)
from epochfs.oci.names import Digest, Repository

log = logging.getLogger(__name__)

PART_BYTES = 16 * 1024 * 1024
"""Size of a part; a smaller blob is sent whole, with the request that closes the session."""

_PROGRESS_BYTES = 1024 * 1024
"""How much more a registry must have for a new round of attempts."""

_ANOTHER_WAY = frozenset({400, 404, 405, 411, 413, 415, 416, 501})
"""Refusals that may concern the way of uploading rather than the blob."""

_OUT_OF_STEP = frozenset({400, 404, 416})
"""How the next part is refused by a registry that has lost the session, or other bytes of it."""

NO_SUCH_WAY = frozenset({404, 405, 501})
"""Refusals of a way that is not offered."""

_NO_REASONS = frozenset({"", "UNSUPPORTED", "METHOD_UNKNOWN"})
"""Error codes that concern the way of uploading."""

_OCTETS = {"Content-Type": "application/octet-stream"}
_RECEIVED = re.compile(r"(?:bytes=)?0-(\d{1,18})\Z")


class Says(enum.IntEnum):
    """How much a refusal tells about why a blob cannot be stored."""

    NOT_OFFERED = 0
    NOT_KNOWN = 1
    STATUS = 2
    FINAL = 3
    REASON = 4

    @classmethod
    def of(cls, reply: Reply) -> Says:
        """Return how much an answer tells."""
        coded = not _NO_REASONS.issuperset(reply.codes)
        if reply.status in NO_SUCH_WAY:
            return cls.NOT_KNOWN if coded else cls.NOT_OFFERED
        return cls.REASON if coded else cls.STATUS


class Refused(Exception):
    """A way of uploading did not work, but another may; `error` is what to raise if none does."""

    def __init__(self, error: EpochfsError, says: Says) -> None:
        super().__init__(str(error))
        self.error = error
        self.says = says


@dataclass(frozen=True, slots=True)
class Upload:
    """A blob to push: its own URL, and that of its repository's upload sessions."""

    repository: Repository
    digest: Digest
    blob_url: Url
    uploads_url: Url


class UploadSessions:
    """The requests that an upload is made of; thread-safe.

    Those without a body are repeated by the transport, and no others.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    def open(self, upload: Upload) -> Url:
        """Open a session; return where it continues. Raises Refused."""
        return self.location(self.checked(self.send("POST", upload.uploads_url, upload)))

    def mount(self, upload: Upload, source: Repository) -> tuple[bool, Url | None]:
        """Ask for the blob of another repository; return whether it was mounted, and the session
        that was opened if it was not.

        However it is refused, the blob can still be uploaded: to be kept from reading the other
        repository does not mean that writing to this one is forbidden.
        """
        url = upload.uploads_url.with_parameter("mount", str(upload.digest))
        url = url.with_parameter("from", source.name)
        scope = f"{upload.repository}:push\n{source}:pull"
        try:
            reply = self.transport.fetch(Request("POST", url, scope, body=b"", repeatable=False))
            if reply.status == 201:
                self.check_stored(reply, upload)
                return True, None
            return False, self.location(reply) if reply.status == 202 else None
        except ContentMismatch:
            raise
        except EpochfsError as error:
            log.debug("not mounted: %s", error)
            return False, None

    def status(self, upload: Upload, session: Url) -> tuple[Url, int] | None:
        """Ask how many bytes a session has; return where it continues, and their number.

        Returns None if it is lost, or the registry does not say.
        """
        reply = self.transport.fetch(Request("GET", session, f"{upload.repository}:pull"))
        received = _RECEIVED.match(reply.headers.get("Range", "").strip())
        if not reply.ok or received is None:
            log.debug("%s: %d: the session is lost", reply.what, reply.status)
            return None
        here = self.location(reply) if reply.headers.get("Location") else session
        # "0-0" stands for no byte or one; most registries say it of an empty session.
        return here, int(received[1]) + 1 if int(received[1]) else 0

    def holds(self, upload: Upload) -> bool:
        """Return whether the registry has the blob now."""
        request = Request("HEAD", upload.blob_url, f"{upload.repository}:pull")
        return self.transport.fetch(request).ok

    def close(self, upload: Upload, session: Url, content: UploadBody | bytes) -> None:
        """Send the last of a session, or all of it, and have the blob stored. Raises Refused."""
        closing = session.with_parameter("digest", str(upload.digest))
        self.check_stored(self.checked(self.send("PUT", closing, upload, content)), upload)

    def cancel(self, upload: Upload, session: Url) -> None:
        """End a session; one that cannot be ended is left to the registry."""
        try:
            self.transport.fetch(Request("DELETE", session, f"{upload.repository}:delete"))
        except EpochfsError as error:
            log.debug("an upload session stays open: %s", error)

    def send(
        self,
        method: str,
        url: Url,
        upload: Upload,
        body: UploadBody | bytes = b"",
        content_range: str = "",
    ) -> Reply:
        """Make a request of an upload."""
        headers = {**_OCTETS, "Content-Range": content_range} if content_range else _OCTETS
        scope = f"{upload.repository}:push"
        request = Request(method, url, scope, headers, body, method == "POST")
        return self.transport.fetch(request)

    def checked(self, reply: Reply) -> Reply:
        """Return a 2xx reply; raises Refused where another way may work."""
        if reply.ok:
            return reply
        error = self.transport.refusal(reply)
        if reply.status in _ANOTHER_WAY:
            raise Refused(error, Says.of(reply))
        raise error

    def check_stored(self, reply: Reply, upload: Upload) -> None:
        """Raise ContentMismatch for a success that names another digest of the same algorithm, and
        ProtocolViolation for one that is not 201.

        One that says neither what was stored nor where need not be the registry's: there the blob
        is looked for.
        """
        stored = announced_digest(reply)
        if stored and stored.algorithm == upload.digest.algorithm and stored != upload.digest:
            raise ContentMismatch(f"{reply.what}: stored as {stored}, which is another digest")
        is_told = stored is not None or "Location" in reply.headers
        if reply.status != 201 or not (is_told or self.holds(upload)):
            raise ProtocolViolation(f"{reply.what}: {reply.status}: the blob is not stored")

    def location(self, reply: Reply) -> Url:
        """Return where a session continues: relative or absolute, and new after each step."""
        location = reply.headers.get("Location", "")
        if not location:
            raise ProtocolViolation(f"{reply.what}: {reply.status} without a Location")
        return reply.url.follow(location)


class _OutOfStep(Refused):
    """The registry does not have the bytes that precede a part."""


class SessionUpload:
    """One blob on its way through an upload session, for one thread.

    What breaks it (a lost connection, 5xx, 429) is got over as often as the transport repeats a
    request, and anew whenever the registry has a good deal more than ever before. A body that
    cannot be rewound is sent once.
    """

    def __init__(
        self, sessions: UploadSessions, upload: Upload, content: UploadBody, session: Url | None
    ) -> None:
        """`session` is one that is open already."""
        self._sessions = sessions
        self._upload = upload
        self._content = content
        self._session = session
        self._stored = self._furthest = 0
        self._attempt = 0
        self._broken = self._closing = False

    def whole(self) -> None:
        """Send everything with the request that closes the session. Raises Refused."""
        self._until_done(self._send_whole)

    def streamed(self) -> None:
        """Send everything at once, or in parts once it broke. Raises Refused."""
        self._until_done(lambda: self._send_parts(streamed=not self._broken))

    def chunked(self) -> None:
        """Send it in parts. Raises Refused."""
        self._until_done(self._send_parts)

    def _until_done(self, send: Callable[[], None]) -> None:
        while True:
            if self._session is None:
                if self._closing and self._sessions.holds(self._upload):
                    return None  # It was stored, and only the answer was lost.
                self._session, self._stored = self._sessions.open(self._upload), 0
            try:
                return send()
            except _OutOfStep as refused:
                if not self._may_go_on(refused.error):
                    raise
            except Unavailable as error:
                if not self._may_go_on(error):
                    raise
            self._find_session()

    def _send_whole(self) -> None:
        session, self._session = self._session, None
        assert session is not None
        self._content.select(0, self._content.size)
        self._closing = True
        self._sessions.close(self._upload, session, self._content)

    def _send_parts(self, *, streamed: bool = False) -> None:
        content = self._content
        assert self._session is not None
        while self._stored < content.size:
            content.select(self._stored, content.size if streamed else PART_BYTES)
            stop = self._stored + len(content)
            # As docker and skopeo do, none is sent with a stream.
            span = "" if streamed else f"{self._stored}-{stop - 1}"
            reply = self._sessions.send("PATCH", self._session, self._upload, content, span)
            if reply.status in _OUT_OF_STEP and (self._stored or self._broken):
                raise _OutOfStep(self._sessions.transport.refusal(reply), Says.of(reply))
            self._session = self._sessions.location(self._sessions.checked(reply))
            self._advance_to(stop)
        self._closing = True
        self._sessions.close(self._upload, self._session, b"")

    def _advance_to(self, stored: int) -> None:
        self._stored = stored
        if stored >= self._furthest + _PROGRESS_BYTES:
            self._furthest, self._attempt = stored, 0

    def _may_go_on(self, error: EpochfsError) -> bool:
        """Return whether there may be another attempt after `error`, once it is time for it."""
        if isinstance(error, TlsFailure) or not self._content.rewindable:
            return False
        self._broken = True
        self._attempt += 1
        return self._sessions.transport.pause(error, self._attempt)

    def _find_session(self) -> None:
        """Go on where the session is, if it can be found."""
        found = self._session and self._sessions.status(self._upload, self._session)
        if found and found[1] <= self._content.size:
            self._session = found[0]
            self._advance_to(found[1])
        else:
            self._session = None
