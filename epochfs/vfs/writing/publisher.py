"""Sends what was written to the registry, as soon as the registry has what it names.

A blob is sent when it is whole; a manifest when all it names is there; a tag when its manifest is.
What is not there yet is waited for as long as the mount lives. Nothing is believed to be in the
registry because it was seen there once: it may have been wiped since, to be restored.

Locks: `_Item.turn` is held while the item is sent, so that it is sent once, and a tag's last digest
is sent last. No other turn is taken under one, and nobody waits for it who does not send the same.
The tables are dictionaries, whose own operations are atomic.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from epochfs.cache.written_file import WrittenFile
from epochfs.errors import EpochfsError, NotFound, NotPermitted, Unsupported
from epochfs.metadata.listings import Listings
from epochfs.metadata.source import PushClient
from epochfs.oci.closure import is_distributed, named_blobs
from epochfs.oci.manifests import Descriptor, Document, Index
from epochfs.oci.names import Digest, Repository, Tag
from epochfs.vfs.writing.waiting import Content, Kind, Tagged, Waiter, Waiting

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Item:
    """What waits: how it is sent, what happens then, and why it could not be when it was tried."""

    send: Callable[[], None]
    sent: Callable[[], None]
    turn: threading.Lock = field(default_factory=threading.Lock)
    error: EpochfsError | None = None


class Publisher:
    """Sends to one registry. Any thread may call anything; raises what the client raises."""

    def __init__(self, client: PushClient, listings: Listings) -> None:
        self._client = client
        self._listings = listings
        self._waiting = Waiting()
        self._items: dict[Waiter, _Item] = {}
        self._homes: dict[Digest, Repository] = {}
        self._spare: dict[Content, WrittenFile] = {}
        self._touched: set[Repository] = set()

    # ---- blobs -------------------------------------------------------------------------------

    def blob(self, repository: Repository, digest: Digest, content: WrittenFile) -> None:
        """Send a blob that has its digest, unless the registry has it; then what waited for it.

        It is mounted from another repository, where this mount has sent it before.
        """
        self._send_blob(repository, digest, content)
        self._arrived(Content(repository, digest, Kind.BLOB))

    def _send_blob(self, repository: Repository, digest: Digest, content: WrittenFile) -> None:
        self._touched.add(repository)
        size = content.size
        if not self._client.blob_exists(repository, digest, size):
            home = self._homes.get(digest)
            with content.reader() as body:
                self._client.put_blob(repository, digest, body, size, home)
        self._homes[digest] = repository
        self._listings.wrote_blob(repository, Descriptor("", digest, size))

    def spare(self, repository: Repository, digest: Digest, content: WrittenFile | None) -> None:
        """Have the bytes of a manifest at hand, should something name them as a blob.

        With None, they are at hand no more.
        """
        blob = Content(repository, digest, Kind.BLOB)
        if content is None:
            self._spare.pop(blob, None)
            return
        self._spare[blob] = content
        if self._waiting.is_needed(blob):
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
        one = Content(repository, document.digest, Kind.MANIFEST)

        def put() -> None:
            self._client.put_manifest(repository, document.digest, document.raw, document.own_type)

        def is_there() -> None:
            self._listings.wrote_manifest(repository, document)
            sent()
            self._arrived(one)

        needs = _needs(repository, document)
        if self._client.has_manifest(repository, document.digest):
            is_there()
            return True
        return self._begin(one, needs, put, is_there)

    # ---- tags --------------------------------------------------------------------------------

    def tag(
        self, repository: Repository, tag: Tag, digest: Digest, sent: Callable[[], None]
    ) -> bool:
        """Have a tag name a manifest, or wait for that; return whether it does, as in `manifest`.

        The last digest that was asked for is the tag's. Raises NotFound for a manifest that the
        registry does not have, in a repository that has tags and that nobody writes to.
        """
        one, manifest = Tagged(repository, tag), Content(repository, digest, Kind.MANIFEST)

        def put() -> None:
            document = self._listings.manifest(repository, digest)
            self._client.put_manifest(repository, tag, document.raw, document.own_type)
            self._listings.wrote_tag(repository, tag, digest)

        if self._has(manifest):
            self._arrived(manifest)
        elif not self._is_restored(repository):
            raise NotFound(f"no manifest {digest} in {repository}")
        self._touched.add(repository)
        return self._begin(one, [manifest], put, sent)

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

    # ---- waiting -----------------------------------------------------------------------------

    def _begin(
        self,
        one: Waiter,
        needs: Iterable[Content],
        send: Callable[[], None],
        sent: Callable[[], None],
    ) -> bool:
        """Send something now if the registry has what it needs; return whether it was sent.

        It replaces what waited in its place, and is sent after that if that is being sent just now.
        """
        before = self._items.get(one)
        item = _Item(send, sent)
        if before is not None:
            item.turn = before.turn
        self._items[one] = item
        try:
            for need in self._waiting.add(one, needs):
                if self._has(need):
                    self._arrived(need, besides=one)
            if self._waiting.missing(one):
                return False
            self._finish(one)
        except BaseException:
            if self._items.get(one) is item:
                self.forget(one)
            raise
        return True

    def _has(self, need: Content) -> bool:
        """Whether the registry has something, or takes it now from what is at hand."""
        if self._waiting.is_present(need):
            return True
        if need.kind is Kind.MANIFEST:
            return self._client.has_manifest(need.repository, need.digest)
        spare = self._spare.get(need)
        if spare is not None:
            self._send_blob(need.repository, need.digest, spare)
            return True
        return self._client.blob_exists(need.repository, need.digest)

    def _arrived(self, content: Content, besides: Waiter | None = None) -> None:
        """Send what waited for something that the registry now has.

        What cannot be sent goes on waiting, with the reason: who wrote it was told that it waits.
        """
        for waiter in self._waiting.arrived(content):
            if waiter != besides:
                self._try(waiter)

    def _try(self, waiter: Waiter) -> None:
        try:
            self._finish(waiter)
        except EpochfsError as error:
            log.warning("%s cannot be written: %s", waiter, error)

    def _finish(self, waiter: Waiter) -> None:
        """Send something that waits for nothing more, unless it was sent meanwhile."""
        item = self._items.get(waiter)
        if item is None:
            return
        with item.turn:
            if self._items.get(waiter) is not item:
                return
            try:
                item.send()
            except EpochfsError as error:
                item.error = error
                raise
            self.forget(waiter)
        item.sent()

    def retry(self, waiter: Waiter | None = None) -> None:
        """Look once more for what is waited for, by `waiter` or by all, and send what can be."""
        for one, needs in self._waiting.all():
            if waiter not in (None, one):
                continue
            for need in needs:
                if self._has(need):
                    self._arrived(need)
            if not self._waiting.missing(one):
                self._try(one)

    def insist(self, waiter: Waiter) -> None:
        """Send something now, or raise why it cannot be.

        An index is sent even if manifests that it names are missing: whether it may be is for the
        registry to say (OCI Distribution specification 1.1, "Pushing Manifests").
        """
        self.retry(waiter)
        missing = self._waiting.missing(waiter)
        is_index = isinstance(waiter, Content) and all(
            need.kind is Kind.MANIFEST for need in missing
        )
        if self._waiting.waits(waiter) and (is_index or not missing):
            self._finish(waiter)

    def forget(self, waiter: Waiter) -> None:
        """Have something wait no more, sent or not."""
        self._waiting.ended(waiter)
        self._items.pop(waiter, None)

    def waits(self, waiter: Waiter) -> bool:
        """Whether something waits."""
        return self._waiting.waits(waiter)

    def reasons(self) -> list[str]:
        """Return a line for all that waits: what, and for what."""
        lines = []
        for waiter, missing in self._waiting.all():
            if self._is_a_blob(waiter):
                continue
            item = self._items.get(waiter)
            if missing:
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                lines.append(f"{waiter} waits for {missing[0]}{more}")
            elif item is not None:
                lines.append(f"{waiter} could not be sent: {item.error or 'it is being sent'}")
        return sorted(lines)

    def _is_a_blob(self, waiter: Waiter) -> bool:
        """Whether what looks like a manifest was sent as a blob, and nothing needs it as one."""
        if not isinstance(waiter, Content) or self._waiting.is_needed(waiter):
            return False
        return self._waiting.is_present(Content(waiter.repository, waiter.digest, Kind.BLOB))

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
        self._waiting.removed(Content(repository, digest, Kind.MANIFEST))
        self._listings.removed_manifest(repository, digest)

    def remove_blob(self, repository: Repository, digest: Digest) -> None:
        """Delete a blob."""
        self._client.delete_blob(repository, digest)
        self._waiting.removed(Content(repository, digest, Kind.BLOB))
        if self._homes.get(digest) == repository:
            del self._homes[digest]
        self._listings.removed_blob(repository, digest)


def _needs(repository: Repository, document: Document) -> list[Content]:
    """Return what a registry must have before it takes a manifest."""
    view = document.view
    if isinstance(view, Index):
        return [Content(repository, one.digest, Kind.MANIFEST) for one in view.manifests]
    named = (one.digest for one in named_blobs(view) if is_distributed(one))
    return [Content(repository, digest, Kind.BLOB) for digest in (*named, *view.unsized)]
