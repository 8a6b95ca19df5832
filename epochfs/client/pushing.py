"""The half of `RegistryClient` that pushes: what changes a registry, and what is asked before.

All of it goes to the registry itself: what a mirror has need not be in the registry.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import BinaryIO

from epochfs.client.host import Host, announced_digest, blob_path, manifest_path, repository_path
from epochfs.client.referrers_tag import ReferrersTags
from epochfs.client.transport import Reply, Request
from epochfs.client.upload_sessions import Upload
from epochfs.client.uploads import BlobUploader
from epochfs.errors import (
    ContentMismatch,
    EpochfsError,
    NotFound,
    ProtocolViolation,
    Unavailable,
    UnconfirmedNotFound,
    Unsupported,
    UsageError,
    printable,
)
from epochfs.oci.manifests import MEDIA_TYPE, Document, digest_matches, load_json, payload
from epochfs.oci.names import (
    Digest,
    Reference,
    Repository,
    Tag,
    digest_of,
    reference_of,
    repository_of,
)

log = logging.getLogger(__name__)

_MOST_BYTES = 64 * 1024 * 1024
"""The largest manifest that is read to find its digest, where HEAD does not tell it."""


class PushingClient:
    """Pushes to one registry; thread-safe. `RegistryClient` says what every method raises."""

    def __init__(self, registry: Host) -> None:
        self._registry = registry
        self._uploader = BlobUploader(registry.transport)
        self._referrers_tags = ReferrersTags(registry, self._store_manifest)

    def check_push(self, name: Repository | str) -> None:
        """Check that the registry lets us push to a repository, without pushing anything: an upload
        session is opened and cancelled.

        Raises what a push would: Denied; Unsupported by a registry that is read-only. Returns also
        where there are no sessions, as with Epoch, because it cannot be told then.
        """
        self._uploader.check(self._upload(repository_of(name), Digest.of(b"")))

    def blob_exists(
        self, name: Repository | str, digest: Digest | str, size: int | None = None
    ) -> bool:
        """Return whether the repository has a blob, of so many bytes if `size` is given (`HEAD`,
        §Checking if content exists).

        Where HEAD is refused, a GET of one byte decides; but with a `size`, which those tell who
        would send it, a 404 is believed.
        """
        repository, wanted = repository_of(name), digest_of(digest)
        seconds = self._registry.transport.timeout
        try:
            if size is not None:
                return self._registry.has_blob(seconds, repository, wanted, size)
            self._registry.check_blob(seconds, repository, wanted)
        except NotFound:
            return False
        return True

    def put_blob(
        self,
        name: Repository | str,
        digest: Digest | str,
        body: BinaryIO | bytes,
        size: int,
        mount_from: Repository | str | None = None,
    ) -> None:
        """Store a blob: the next `size` bytes of `body`, which have `digest` (§Pushing blobs).

        Nothing is sent if the registry can mount the blob from the repository `mount_from`
        (§Mounting a blob from another repository). Raises UsageError for a body shorter than
        `size`, and ContentMismatch if the registry says that it stored something else. If the
        registry refuses one way to upload when a body that cannot seek is used up, no other is
        tried and the refusal is raised.
        """
        upload = self._upload(repository_of(name), digest_of(digest))
        source = None if mount_from is None else repository_of(mount_from)
        self._uploader.put(upload, body, size, source)

    def delete_blob(self, name: Repository | str, digest: Digest | str) -> None:
        """Delete a blob (§Deleting Blobs).

        One that does not exist counts as deleted. Raises Unsupported where deletion is disabled.
        """
        repository, wanted = repository_of(name), digest_of(digest)
        reply = self._delete(repository, blob_path(repository, wanted))
        self._deleted(reply, lambda: self.blob_exists(repository, wanted))

    def has_manifest(self, name: Repository | str, reference: Reference | str) -> bool:
        """Return whether the repository has a manifest (`HEAD`, §Checking if content exists).

        Where HEAD is refused, or names no digest, GET decides.
        """
        repository, wanted = repository_of(name), reference_of(reference)
        seconds = self._registry.transport.timeout
        try:
            self._registry.check_manifest(seconds, repository, wanted, _MOST_BYTES)
        except NotFound:
            return False
        return True

    def is_tagged(self, name: Repository | str, tag: Tag | str, digest: Digest | str) -> bool:
        """Return whether a tag names a manifest now (`HEAD`, §Checking if content exists)."""
        try:
            return self._resolved(repository_of(name), reference_of(tag)) == digest_of(digest)
        except NotFound:
            return False

    def put_manifest(
        self, name: Repository | str, reference: Reference | str, data: bytes, content_type: str
    ) -> Digest:
        """Store a manifest under a tag or its digest; return its digest (§Pushing Manifests).

        If it has a subject, and the registry does not say that it lists its referrers, it is added
        to the index of them (`referrers_tag`). Raises UsageError, and sends nothing, if `data` is
        not a JSON object, states a `mediaType` other than `content_type`, or does not have the
        digest. Raises ContentMismatch if the server says that it stored something else.
        """
        repository, wanted = repository_of(name), reference_of(reference)
        _check_manifest(data, content_type)
        digest = wanted if isinstance(wanted, Digest) else Digest.of(payload(data))
        if not digest_matches(digest, data):
            raise UsageError(f"the manifest to be stored does not have digest {digest}")
        document = Document(digest, content_type, data)
        subject = document.readable_view and document.readable_view.subject
        try:
            reply = self._store_manifest(repository, wanted, data, content_type)
        except Unavailable:
            # Maybe only the answer was lost; with it, whether the registry lists its referrers.
            if subject or not self._names(repository, wanted, digest):
                raise
            return digest
        if reply.status != 201 or announced_digest(reply) is None:
            self._confirm_stored(reply, repository, wanted, digest)
        if subject and "OCI-Subject" not in reply.headers:
            self._referrers_tags.add(repository, document, subject.digest)
        return digest

    def delete_manifest(self, name: Repository | str, reference: Reference | str) -> None:
        """Delete a tag or a manifest (§Deleting tags, §Deleting Manifests).

        One that does not exist counts as deleted. Raises Unsupported where deletion is disabled, or
        tags cannot be deleted.
        """
        wanted = reference_of(reference)
        if isinstance(wanted, Tag):
            self.delete_tag(name, wanted)
        else:
            repository = repository_of(name)
            reply = self._delete(repository, manifest_path(repository, wanted))
            self._deleted(reply, lambda: self.has_manifest(repository, wanted))

    def delete_tag(self, name: Repository | str, tag: Tag | str) -> None:
        """Delete a tag alone, never what shares its digest (§Deleting tags).

        One that does not exist counts as deleted. Raises Unsupported where tags cannot be deleted.
        """
        repository, wanted = repository_of(name), Tag.parse(tag) if isinstance(tag, str) else tag
        reply = self._delete(repository, manifest_path(repository, wanted))
        if reply.status == 400:
            # Docker's registry 2.8 takes the tag for a digest, and calls it a wrong one.
            raise Unsupported(f"{reply.what}: 400: the registry deletes by digest only")
        self._deleted(reply, lambda: self.has_manifest(repository, wanted))

    def _upload(self, repository: Repository, digest: Digest) -> Upload:
        url = self._registry.transport.url
        uploads_url = url(f"{repository_path(repository)}/blobs/uploads/")
        return Upload(repository, digest, url(blob_path(repository, digest)), uploads_url)

    def _store_manifest(
        self, repository: Repository, reference: Reference, data: bytes, content_type: str
    ) -> Reply:
        transport = self._registry.transport
        url = transport.url(manifest_path(repository, reference))
        headers = {"Content-Type": content_type}
        request = Request("PUT", url, f"{repository}:push", headers, data)
        reply = self._registry.accepted(transport.fetch(request))
        stored = announced_digest(reply)
        if stored is not None and not digest_matches(stored, data):
            raise ContentMismatch(f"{reply.what}: stored as {stored}, which is another digest")
        return reply

    def _resolved(self, repository: Repository, reference: Reference) -> Digest:
        """Return the digest of what a reference names now."""
        seconds = self._registry.transport.timeout
        return self._registry.resolve(seconds, repository, reference, _MOST_BYTES).digest

    def _names(self, repository: Repository, reference: Reference, digest: Digest) -> bool:
        """Return whether a reference is known to name a manifest now."""
        try:
            return self._resolved(repository, reference) == digest
        except EpochfsError as error:
            log.debug("whether it is stored is not known: %s", error)
            return False

    def _confirm_stored(
        self, reply: Reply, repository: Repository, reference: Reference, digest: Digest
    ) -> None:
        """Raise ProtocolViolation unless a reference names a manifest that was stored.

        A success other than 201, or one that names no digest, need not be the registry's.
        """
        try:
            found = self._resolved(repository, reference)
        except NotFound as error:
            raise ProtocolViolation(f"{reply.what}: {reply.status}: it is not stored") from error
        if found != digest:
            raise ProtocolViolation(f"{reply.what}: {reply.status}: {reference} is {found}")

    def _delete(self, repository: Repository, path: str) -> Reply:
        transport = self._registry.transport
        return transport.fetch(Request("DELETE", transport.url(path), f"{repository}:delete"))

    def _deleted(self, reply: Reply, is_there: Callable[[], bool]) -> None:
        """Raise unless something was deleted, or was not there to be.

        202 says so (§Content Management), or 204, and a 404 with its code. Any other success or 404
        may be the word of something in front of the registry: after that it is looked for.
        """
        try:
            self._registry.accepted(reply)
            is_clear = reply.status in (202, 204)
        except NotFound as error:
            log.debug("%s: nothing to delete", error)
            is_clear = not isinstance(error, UnconfirmedNotFound)
        if not is_clear and is_there():
            kind = ProtocolViolation if reply.ok else Unsupported
            raise kind(f"{reply.what}: {reply.status}: nothing was deleted")


def _check_manifest(data: bytes, content_type: str) -> None:
    """Raise UsageError unless `data` can be a manifest of the type (§Pushing Manifests)."""
    if not MEDIA_TYPE.match(content_type):
        raise UsageError(f"not a media type: '{printable(content_type)}'")
    try:
        document = load_json(data)
    except EpochfsError as error:
        raise UsageError(f"the manifest to be stored is {error}") from error
    if not isinstance(document, dict):
        raise UsageError("the manifest to be stored is not a JSON object")
    stated = document.get("mediaType", content_type)
    if stated != content_type:
        raise UsageError(f"mediaType is '{printable(stated)}', to be stored as '{content_type}'")
