"""Pushing a blob, in the ways that registries accept.

1. Epoch's own: one PUT to the blob's address.
2. The specification's, monolithic: POST opens a session, PUT sends everything and closes it.
3. The specification's, streamed: POST, one PATCH that sends everything, PUT.
4. The specification's, chunked: POST, then a PATCH for each part, then PUT.

They are tried in this order (OCI Distribution Specification 1.1, "Pushing blobs"), but a large blob
is streamed rather than sent with the PUT, as an interrupted one is then resumed where the registry
can. A registry that refuses the first way and takes another is not tried with it again. If none
works, the most telling refusal is raised: that the last way is not offered says nothing about a
blob refused for its digest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import BinaryIO

from epochfs.client.transport import Transport, UploadBody, Url
from epochfs.client.upload_sessions import (
    NO_SUCH_WAY,
    PART_BYTES,
    Refused,
    Says,
    SessionUpload,
    Upload,
    UploadSessions,
)
from epochfs.errors import EpochfsError, Unavailable, UsageError
from epochfs.oci.names import Repository

log = logging.getLogger(__name__)


class _NoSinglePut(Refused):
    """The first way is not offered."""


class BlobUploader:
    """Pushes blobs to one registry; thread-safe."""

    def __init__(self, transport: Transport) -> None:
        self._sessions = UploadSessions(transport)
        # Written without a lock: all that a race costs is one more refused request.
        self._single_put = True

    def check(self, upload: Upload) -> None:
        """Open an upload session and cancel it; the errors are those of `client.check_push`."""
        sessions = self._sessions
        reply = sessions.send("POST", upload.uploads_url, upload)
        if reply.ok:
            sessions.cancel(upload, sessions.location(reply))
        elif (
            reply.status not in NO_SUCH_WAY
            or Says.of(reply) is not Says.NOT_OFFERED
            # Docker's registry, read-only or a cache; Epoch's, without sessions, has no code.
            or (reply.status == 405 and any(reply.codes))
        ):
            raise sessions.transport.refusal(reply)

    def put(
        self, upload: Upload, body: BinaryIO | bytes, size: int, source: Repository | None = None
    ) -> None:
        """Push the next `size` bytes of `body`; the errors are those of `client.put_blob`."""
        session = None
        if source is not None:
            mounted, session = self._sessions.mount(upload, source)
            if mounted:
                return
        content = UploadBody(body, size)
        single = partial(self._single, upload, content)
        ways = self._session_ways(upload, content, session)
        if self._single_put and session is None:
            # A refused PUT may use up a body that cannot be rewound; a refused POST does not.
            ways.insert(0 if content.rewindable else 1, single)
        refusals = self._try(ways, content)
        if refusals:
            telling = max(refusals, key=lambda refused: refused.says)
            if telling.says is not Says.NOT_OFFERED or not content.rewindable:
                raise telling.error
            self._repeat(single, content, telling.error)

    def _session_ways(
        self, upload: Upload, content: UploadBody, opened: Url | None
    ) -> list[Callable[[], None]]:
        """Return the ways that need a session, best first; the first takes the one `opened`."""
        way = partial(SessionUpload, self._sessions, upload, content)
        if content.size <= PART_BYTES or not content.rewindable:
            return [way(opened).whole, way(None).chunked]
        return [way(opened).streamed, way(None).chunked, way(None).whole]

    def _try(self, ways: list[Callable[[], None]], content: UploadBody) -> list[Refused]:
        """Try one way after the other; return how all of them were refused, nothing if one worked.

        Raises UsageError for a body that cannot be read.
        """
        refusals: list[Refused] = []
        for way in ways:
            if not content.select(0, content.size):
                break
            try:
                way()
            except Refused as refused:
                log.debug("%s; trying another way to upload", refused)
                refusals.append(refused)
            except UsageError:
                raise
            except EpochfsError as error:
                refusals.append(Refused(error, Says.FINAL))
                break
            else:
                # Not before another way works: what stands in front of a registry may refuse all.
                if any(isinstance(refused, _NoSinglePut) for refused in refusals):
                    self._single_put = False
                return []
        return refusals

    def _single(self, upload: Upload, content: UploadBody) -> None:
        sessions = self._sessions
        try:
            reply = sessions.send("PUT", upload.blob_url, upload, content)
        except Unavailable as error:
            # Docker's registry refuses without reading the body and closes the connection, which
            # may destroy its answer on the way. If it really is down, the next way will fail too.
            raise Refused(error, Says.NOT_OFFERED) from error
        if reply.status in NO_SUCH_WAY:
            raise _NoSinglePut(sessions.transport.refusal(reply), Says.of(reply))
        sessions.check_stored(sessions.checked(reply), upload)

    def _repeat(self, single: Callable[[], None], content: UploadBody, error: EpochfsError) -> None:
        """Repeat a single PUT that broke, where there are no sessions, as with Epoch."""
        attempt = 1
        while isinstance(error, Unavailable) and self._sessions.transport.pause(error, attempt):
            try:
                content.select(0, content.size)
                single()
            except Refused as refused:
                error, attempt = refused.error, attempt + 1
            else:
                return
        raise error
