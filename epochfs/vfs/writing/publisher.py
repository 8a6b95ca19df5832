"""Sends what was written to the registry, as soon as the registry has what it names.

A blob is sent when it is whole; a manifest when all it names is there; a tag when its manifest is.
What is not there yet is waited for as long as the mount lives. Nothing is believed to be in the
registry because it was seen there once: it may have been wiped since, to be restored.

The tables are dictionaries, whose own operations are atomic.
"""

from __future__ import annotations

from collections.abc import Callable

from epochfs.errors import NotFound, NotPermitted, Unsupported
from epochfs.metadata.listings import Listings
from epochfs.metadata.source import PushClient
from epochfs.oci.closure import is_distributed, named_blobs
from epochfs.oci.manifests import Descriptor, Document, Index
from epochfs.oci.names import Digest, Repository, Tag
from epochfs.vfs.writing.local import Staged
from epochfs.vfs.writing.outbox import Outbox
from epochfs.vfs.writing.waiting import Content, ContentKind, Tagged


class Publisher:
    """Sends to one registry. Any thread may call anything; raises what the client raises."""

    def __init__(self, client: PushClient, listings: Listings) -> None:
        self._client = client
        self._listings = listings
        self._outbox = Outbox(self._has)
        self._homes: dict[Digest, Repository] = {}
        self._spare: dict[Content, Staged] = {}
        self._touched: set[Repository] = set()
        self._blobs = 0
        # Handed on as they are.
        self.waits = self._outbox.waits
        self.forget = self._outbox.forget
        self.retry = self._outbox.retry
        self.insist = self._outbox.insist
        self.reasons = self._outbox.reasons
        self.close = self._outbox.close

    @property
    def sent(self) -> int:
        """How many blobs, manifests and tags were sent."""
        return self._blobs + self._outbox.count

    # ---- blobs -------------------------------------------------------------------------------

    def blob(self, repository: Repository, digest: Digest, content: Staged) -> None:
        """Send a blob that has its digest, unless the registry has it; then what waited for it.

        It is mounted from another repository, where this mount has sent it before.
        """
        self._send_blob(repository, digest, content)
        self._outbox.arrived(Content(repository, digest, ContentKind.BLOB))

    def _send_blob(self, repository: Repository, digest: Digest, content: Staged) -> None:
        self._touched.add(repository)
        size = content.size
        if not self._client.blob_exists(repository, digest, size):
            home = self._homes.get(digest)
            with content.reader() as body:
                self._client.put_blob(repository, digest, body, size, home)
            self._blobs += 1
        self._homes[digest] = repository
        self._listings.wrote_blob(repository, Descriptor("", digest, size))

    def spare(self, repository: Repository, digest: Digest, content: Staged | None) -> None:
        """Have the bytes of a manifest at hand, should something name them as a blob.

        With None, they are at hand no more.
        """
        blob = Content(repository, digest, ContentKind.BLOB)
        if content is None:
            self._spare.pop(blob, None)
            return
        self._spare[blob] = content
        if self._outbox.is_needed(blob):
            self.blob(repository, digest, content)

    # ---- manifests ---------------------------------------------------------------------------

    def manifest(
        self, repository: Repository, document: Document, sent: Callable[[], None]
    ) -> bool:
        """Send a manifest, or have it wait for what it names; return whether it was sent.

        `sent` is called once it was, in whichever thread. If it cannot be sent now, this raises
        why, and forgets it.
        """
        self._touched.add(repository)
        one = Content(repository, document.digest, ContentKind.MANIFEST)

        def put() -> None:
            self._client.put_manifest(repository, document.digest, document.raw, document.own_type)

        def is_there() -> None:
            self._listings.wrote_manifest(repository, document)
            sent()

        needs = _needs(repository, document)
        if self._client.has_manifest(repository, document.digest):
            self.forget(one)
            is_there()
            self._outbox.arrived(one)
            return True
        return self._outbox.begin(one, needs, put, is_there)

    # ---- tags --------------------------------------------------------------------------------

    def tag(
        self, repository: Repository, tag: Tag, digest: Digest, sent: Callable[[], None]
    ) -> bool:
        """Have a tag name a manifest, or wait for that; return whether it does, as in `manifest`.

        The last digest that was asked for is the tag's. Raises NotFound for a manifest that the
        registry does not have, in a repository that has tags and that nobody writes to.
        """
        one, manifest = Tagged(repository, tag), Content(repository, digest, ContentKind.MANIFEST)

        def put() -> None:
            document = self._manifest(repository, digest)
            self._client.put_manifest(repository, tag, document.raw, document.own_type)
            self._listings.wrote_tag(repository, tag, digest)

        # What is known to be there is not looked for: were it gone since, the tag brings it back.
        if not self._outbox.is_present(manifest):
            if self._has(manifest):
                self._outbox.arrived(manifest)
            elif not self._is_restored(repository):
                raise NotFound(f"no manifest {digest} in {repository}")
        self._touched.add(repository)
        return self._outbox.begin(one, [manifest], put, sent)

    def _manifest(self, repository: Repository, digest: Digest) -> Document:
        """Return a manifest that the registry has, even if it did not a moment ago."""
        try:
            return self._listings.manifest(repository, digest)
        except NotFound:
            document = self._client.get_manifest(repository, digest)
            self._listings.wrote_manifest(repository, document)
            return document

    def is_tagged(self, repository: Repository, tag: Tag, digest: Digest) -> bool:
        """Whether a tag names a manifest in the registry now, and nothing else waits to be."""
        waits = self.waits(Tagged(repository, tag))
        return not waits and self._client.is_tagged(repository, tag, digest)

    def _is_restored(self, repository: Repository) -> bool:
        """Whether a repository's manifests may come after its tags: this mount has begun to write
        to it, or the registry has nothing of it."""
        if repository in self._touched:
            return True
        try:
            return not self._listings.tags(repository)
        except NotFound:
            return True

    def touch(self, repository: Repository) -> None:
        """Note that a repository is being written to."""
        self._touched.add(repository)

    def _has(self, need: Content) -> bool:
        """Whether the registry has something, or takes it now from what is at hand."""
        if need.kind is ContentKind.MANIFEST:
            return self._client.has_manifest(need.repository, need.digest)
        spare = self._spare.get(need)
        if spare is not None:
            self._send_blob(need.repository, need.digest, spare)
            return True
        return self._client.blob_exists(need.repository, need.digest)

    # ---- removing ----------------------------------------------------------------------------

    def remove_tag(self, repository: Repository, tag: Tag) -> None:
        """Delete a tag, and nothing else; raises NotPermitted where the registry cannot."""
        try:
            self._client.delete_tag(repository, tag)
        except Unsupported as error:
            raise NotPermitted(f"the registry cannot delete a tag by itself: {error}") from error
        self._listings.removed_tag(repository, tag)

    def remove_manifest(self, repository: Repository, digest: Digest) -> None:
        """Delete a manifest by its digest, with the tags that name it."""
        self._client.delete_manifest(repository, digest)
        self._outbox.removed(Content(repository, digest, ContentKind.MANIFEST))
        self._listings.removed_manifest(repository, digest)

    def remove_blob(self, repository: Repository, digest: Digest) -> None:
        """Delete a blob."""
        self._client.delete_blob(repository, digest)
        self._outbox.removed(Content(repository, digest, ContentKind.BLOB))
        if self._homes.get(digest) == repository:
            del self._homes[digest]
        self._listings.removed_blob(repository, digest)


def _needs(repository: Repository, document: Document) -> list[Content]:
    """Return what a registry must have before it takes a manifest."""
    view = document.view
    if isinstance(view, Index):
        return [Content(repository, one.digest, ContentKind.MANIFEST) for one in view.manifests]
    named = (one.digest for one in named_blobs(view) if is_distributed(one))
    return [Content(repository, digest, ContentKind.BLOB) for digest in (*named, *view.unsized)]
