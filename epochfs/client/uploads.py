"""Pushing a blob, in the three ways that registries accept.

1. Epoch's own: one PUT to the blob's address.
2. The specification's, monolithic: POST opens a session, PUT sends everything and closes it.
3. The specification's, chunked: POST, then a PATCH for each part, then PUT.

They are tried in this order (OCI Distribution Specification 1.1, "Pushing blobs"). A registry that
refuses the first is not tried with it again. If none works, the most telling refusal is raised:
that the last way is not offered says nothing about a blob refused for its digest.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from epochfs.client.host import announced_digest
from epochfs.client.transport import Reply, Request, Transport, UploadBody, Url
from epochfs.errors import ContentMismatch, EpochfsError, ProtocolViolation, Unavailable, UsageError
from epochfs.oci.names import Digest, Repository

log = logging.getLogger(__name__)

_CHUNK_BYTES = 16 * 1024 * 1024

_ANOTHER_WAY = frozenset({400, 404, 405, 411, 413, 415, 416, 501})
"""Refusals that may concern the way of uploading rather than the blob."""

_NO_SUCH_WAY = frozenset({404, 405, 501})
"""Refusals after which the first way is not tried again."""

_OCTETS = {"Content-Type": "application/octet-stream"}

_NO_REASONS = frozenset({"", "UNSUPPORTED", "METHOD_UNKNOWN"})
"""Error codes that concern the way of uploading."""


class _Says(enum.IntEnum):
    """How much a refusal tells about why a blob cannot be stored."""

    NOT_OFFERED = 0
    NOT_KNOWN = 1
    STATUS = 2
    FINAL = 3
    REASON = 4


class _Refused(Exception):
    """A way of uploading did not work, but another may; `error` is what to raise if none does."""

    def __init__(self, error: EpochfsError, says: _Says, *, lasting: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.says = says
        self.lasting = lasting


@dataclass(frozen=True, slots=True)
class Upload:
    """A blob to push: its own URL, that of its repository's upload sessions, and the scope."""

    blob_url: Url
    uploads_url: Url
    scope: str
    digest: Digest


class BlobUploader:
    """Pushes blobs to one registry; thread-safe."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        # Written without a lock: all that a race costs is one more refused request.
        self._single_put = True

    def check(self, uploads_url: Url, repository: Repository) -> None:
        """Open an upload session and cancel it; the errors are those of `client.check_push`."""
        reply = self._send("POST", uploads_url, f"{repository}:push", b"")
        if reply.status in _NO_SUCH_WAY and _says(reply) is _Says.NOT_OFFERED:
            if reply.status == 405 and any(reply.codes):
                # Docker's registry, read-only or a cache; Epoch's, without sessions, has no code.
                raise self._transport.refusal(reply)
            log.debug("%s: %d: it has no upload sessions", reply.what, reply.status)
            return
        if not reply.ok:
            raise self._transport.refusal(reply)
        try:
            self._send("DELETE", _location(reply), f"{repository}:delete", b"")
        except EpochfsError as error:
            log.debug("an upload session stays open: %s", error)

    def put(
        self, upload: Upload, body: BinaryIO | bytes, size: int, source: Repository | None = None
    ) -> None:
        """Push the next `size` bytes of `body`; the errors are those of `client.put_blob`."""
        session = None
        if source is not None:
            mounted, session = self._mount(upload, source)
            if mounted:
                return
        content = UploadBody(body, size)
        single = partial(self._single, upload, content)
        monolithic = partial(self._monolithic, upload, content, session)
        chunked = partial(self._chunked, upload, content)
        ways: list[Callable[[], None]] = [monolithic, chunked]
        if self._single_put and session is None:
            # A refused PUT may use up a body that cannot be rewound; a refused POST does not.
            ways.insert(0 if content.rewindable else 1, single)
        refusals: list[_Refused] = []
        for way in ways:
            if not content.select(0, size):
                break
            try:
                way()
            except _Refused as refused:
                log.debug("%s; trying another way to upload", refused)
                refusals.append(refused)
                if way is single and refused.lasting:
                    self._single_put = False
            except UsageError:
                raise
            except EpochfsError as error:
                refusals.append(_Refused(error, _Says.FINAL))
                break
            else:
                return
        raise max(refusals, key=lambda refused: refused.says).error

    def _mount(self, upload: Upload, source: Repository) -> tuple[bool, Url | None]:
        """Ask for the blob of another repository; return whether it was mounted, and the session
        that was opened if it was not.

        However it is refused, the blob can still be uploaded: to be kept from reading the other
        repository does not mean that writing to this one is forbidden.
        """
        url = upload.uploads_url.with_parameter("mount", str(upload.digest))
        url = url.with_parameter("from", source.name)
        scope = f"{upload.scope}\n{source}:pull"
        try:
            reply = self._transport.fetch(Request("POST", url, scope, body=b"", repeatable=False))
            if reply.status == 201:
                _check_stored(reply, upload.digest)
                return True, None
            return False, _location(reply) if reply.status == 202 else None
        except ContentMismatch:
            raise
        except EpochfsError as error:
            log.debug("not mounted: %s", error)
            return False, None

    def _single(self, upload: Upload, content: UploadBody) -> None:
        try:
            reply = self._send("PUT", upload.blob_url, upload.scope, content)
        except Unavailable as error:
            # Docker's registry refuses without reading the body and closes the connection, which
            # may destroy its answer on the way. If it really is down, the next way will fail too.
            raise _Refused(error, _Says.NOT_OFFERED) from error
        _check_stored(self._check(reply), upload.digest)

    def _monolithic(self, upload: Upload, content: UploadBody, session: Url | None) -> None:
        self._close(upload, session or self._open(upload), content)

    def _chunked(self, upload: Upload, content: UploadBody) -> None:
        session = self._open(upload)
        for start in range(0, content.size, _CHUNK_BYTES):
            content.select(start, _CHUNK_BYTES)
            span = f"{start}-{start + len(content) - 1}"
            reply = self._check(self._send("PATCH", session, upload.scope, content, span))
            session = _location(reply)
        self._close(upload, session, b"")

    def _open(self, upload: Upload) -> Url:
        return _location(self._check(self._send("POST", upload.uploads_url, upload.scope, b"")))

    def _close(self, upload: Upload, session: Url, rest: UploadBody | bytes) -> None:
        closing = session.with_parameter("digest", str(upload.digest))
        reply = self._check(self._send("PUT", closing, upload.scope, rest))
        _check_stored(reply, upload.digest)

    def _send(
        self, method: str, url: Url, scope: str, body: UploadBody | bytes, span: str = ""
    ) -> Reply:
        headers = {**_OCTETS, "Content-Range": span} if span else _OCTETS
        return self._transport.fetch(Request(method, url, scope, headers, body, False))

    def _check(self, reply: Reply) -> Reply:
        """Return a 2xx reply; raises _Refused where another way may work."""
        if reply.ok:
            return reply
        error = self._transport.refusal(reply)
        if reply.status in _ANOTHER_WAY:
            raise _Refused(error, _says(reply), lasting=reply.status in _NO_SUCH_WAY)
        raise error


def _says(reply: Reply) -> _Says:
    coded = not _NO_REASONS.issuperset(reply.codes)
    if reply.status in _NO_SUCH_WAY:
        return _Says.NOT_KNOWN if coded else _Says.NOT_OFFERED
    return _Says.REASON if coded else _Says.STATUS


def _location(reply: Reply) -> Url:
    """Return where an upload session continues: relative or absolute, and new after each step."""
    location = reply.headers.get("Location", "")
    if not location:
        raise ProtocolViolation(f"{reply.what}: {reply.status} without a Location")
    return reply.url.follow(location)


def _check_stored(reply: Reply, digest: Digest) -> None:
    """Raise ContentMismatch for a success that names another digest of the same algorithm."""
    stored = announced_digest(reply)
    if stored is not None and stored.algorithm == digest.algorithm and stored != digest:
        raise ContentMismatch(f"{reply.what}: stored as {stored}, which is another digest")
