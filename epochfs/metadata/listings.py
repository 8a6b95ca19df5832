"""Answers what is in a registry: repositories, tags, tag → digest, manifests, blob sizes.

Every answer is remembered in a bounded `TtlCache`; the tree asks here and nowhere else.

A blob's size is known when a manifest of the same repository names the blob, or a HEAD answered.
Either also proves that the repository may read the blob; without that proof the blob cache is not
consulted.

Locks: `Listings._lock` guards `_shared`; no I/O happens under it.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from cachetools import FIFOCache

from epochfs.cache.tag_history import TagHistory
from epochfs.config import ListingOptions
from epochfs.errors import (
    ContentMismatch,
    NotFound,
    ProtocolViolation,
    TooLarge,
    Unsupported,
)
from epochfs.metadata.closures import Closures
from epochfs.metadata.content import Documents, Referrers
from epochfs.metadata.own_changes import OwnChanges
from epochfs.metadata.parallel import Ahead, AheadOfWalk, InParallel
from epochfs.metadata.repositories import Repositories, holds
from epochfs.metadata.source import Answer, Facts, Source
from epochfs.metadata.ttl_cache import CachePolicy, Resolved, TagKey, TagTables, TtlCache
from epochfs.oci.closure import Reachable
from epochfs.oci.manifests import Descriptor, Document
from epochfs.oci.names import Digest, Repository, Tag

log = logging.getLogger(__name__)

_MOST_SHARED = 10_000
"""How many repositories are remembered whose tags share manifests."""


class Listings:
    """Caches what one registry says. Any thread may call anything."""

    def __init__(
        self,
        source: Source,
        options: ListingOptions,
        history: TagHistory,
        facts: Facts | None = None,
    ) -> None:
        facts = Facts() if facts is None else facts
        self._source = source
        self._options = options
        self._history = history
        self._pool = ThreadPoolExecutor(options.parallel, thread_name_prefix="listing")
        # A pool of its own, so that nobody waits behind what is only asked ahead.
        self._ahead = ThreadPoolExecutor(options.parallel, thread_name_prefix="resolving")
        self._lock = threading.Lock()
        changing = CachePolicy(
            options.listing_ttl, options.negative_ttl, limit=1_000_000, wait=options.timeout
        )
        self._documents = Documents(source, options.manifest_limit, changing)
        self._tables = TagTables(changing.limit)
        self._repositories = Repositories(
            source, options, changing, history, facts, self._ahead, self._tables.arrange
        )
        denied = self._documents.forget
        self._resolved = TtlCache(
            "tag", self._fetch_resolved, changing, store=self._tables, denied=denied
        )
        self._fetch_followed = partial(self._fetch_resolved, follows=True)
        self._heads = TtlCache("blob", self._fetch_head, changing, denied=denied)
        self._shared: FIFOCache[Repository, None] = FIFOCache(_MOST_SHARED)
        self._referrers = Referrers(source, self._tagged, changing, facts)
        self._closures = Closures(
            self._pool,
            options,
            self._repositories,
            self._documents,
            self._referrers,
            partial(self._resolve, listed=True, follows=True),
        )
        self._own = own = OwnChanges(
            source,
            history,
            self._repositories,
            self._resolved,
            self._heads,
            self._documents,
            self._referrers,
            self._closures.forget,
        )
        depth = options.parallel
        following = partial(self._repositories.following, count=depth)
        self._tags_ahead = AheadOfWalk(self._ahead, following, self._repositories.tags, depth)
        self._reachable_ahead = AheadOfWalk(
            self._ahead, following, self._closures.follow_ahead, depth
        )
        # Another one: what `ls -l` asks for ahead is not in the way of who reads manifests.
        self._reading = ThreadPoolExecutor(depth, thread_name_prefix="reading")
        self._manifests_ahead = AheadOfWalk(
            self._reading, self._next_listed, self._fetch_ahead, depth
        )
        self._listed = Ahead(self._ahead, self._last_listed, self._resolved.get, depth)
        self.kernel_ttl = options.kernel_ttl
        """How long the kernel may cache attributes and names, in seconds."""
        self.shows_rootfs = options.show_rootfs
        """Whether an image's root filesystem is listed, or only opens by name."""
        self.believes_soci = options.soci_referrers
        """Whether a SOCI index is believed that refers to an image, which does not name it."""
        # Handed on as they are.
        self.catalog = self._repositories.catalog
        self.known_catalog = self._repositories.known
        self.current_catalog = self._repositories.current
        self.settle = self._repositories.settle
        self.check = self._repositories.check
        self.holds_tags = self._repositories.holds_tags
        self.layout_since = history.layout_since
        self.manifest = self._documents.manifest
        self.knows_manifest = self._documents.knows_manifest
        self.snapshot_config = self._documents.snapshot_config
        self.referrers = self._referrers.of
        self.known_referrers = self._referrers.known
        self.known_reachable = self._closures.known_reachable
        self.closure = self._closures.closure
        self.expect_resolves = self._listed.expect
        self.wrote_blob = own.wrote_blob
        self.wrote_manifest = own.wrote_manifest
        self.wrote_tag = own.wrote_tag
        self.removed_blob = own.removed_blob
        self.removed_manifest = own.removed_manifest
        self.removed_tag = own.removed_tag

    @property
    def moment(self) -> int:
        """Counts how often something that is known by digest was forgotten, or removed."""
        return self._documents.moment

    def tags(self, repository: Repository) -> tuple[Tag, ...]:
        """Return the repository's tags, sorted; raises NotFound for what is no repository."""
        self._tags_ahead.seen(repository)
        return self._repositories.tags(repository)

    def resolve(self, repository: Repository, tag: Tag) -> Resolved:
        """Return what a tag names now.

        After `expect_resolves`, the first of a listing's tags makes the rest be resolved ahead,
        since `ls -l` asks for all.
        """
        if self._listed.expected and self._resolved.peek((repository, tag)) is None:
            self._listed.seen(repository)
        return self._resolve(repository, tag).value

    def tagged(self, repository: Repository) -> list[tuple[Tag, Resolved, Descriptor]]:
        """Return all tags, sorted, with what they name now, resolved in parallel.

        A tag that was deleted meanwhile is left out; any other error is raised.
        """
        in_parallel = InParallel(self._pool, self._options.timeout)

        def ask(tag: Tag) -> tuple[Tag, Resolved, Descriptor] | None:
            try:
                resolved = self._resolve(repository, tag, listed=True, follows=True).value
            except NotFound:
                return None
            with _led_to(repository, tag, resolved.digest):
                return tag, resolved, self._documents.describe(repository, resolved.digest)

        answers = in_parallel(ask, self._repositories.tags(repository))
        return [one for one in answers if one is not None]

    def descriptor(self, repository: Repository, digest: Digest) -> Descriptor:
        """Describe a blob: as a manifest of the repository does, else as a HEAD says."""
        known = self._documents.named_blob(repository, digest)
        return known if known is not None else self._heads.get((repository, digest))

    def names_blob(self, repository: Repository, digest: Digest) -> bool:
        """Whether a manifest of the repository is known to name a digest as a blob's."""
        return self._documents.named_blob(repository, digest) is not None

    def reachable(self, repository: Repository) -> Reachable:
        """Return what all tags lead to, through indexes and referrers (`Closures.reachable`)."""
        return self._closures.reachable(repository, self._reachable_ahead.seen)

    def asked_for_manifest(self, repository: Repository, digest: Digest) -> None:
        """Note that somebody asks for a manifest: if next for the next tag's, then for all."""
        tag = self._tables.tag_of(repository, digest)
        if tag is not None:
            self._manifests_ahead.seen((repository, tag))

    def clear(self) -> None:
        """Forget what may have changed; manifests cannot."""
        for cache in (self._repositories, self._resolved, self._heads, self._referrers):
            cache.clear()
        self._closures.forget()

    def close(self) -> None:
        for pool in (self._pool, self._ahead, self._reading):
            pool.shutdown(wait=False, cancel_futures=True)

    def _last_listed(self, repository: Repository) -> list[tuple[Repository, Tag]]:
        """Return all tags of the last listing, in its order, without a new listing."""
        return [(repository, tag) for tag in self._repositories.last_tags(repository)]

    def _next_listed(self, key: TagKey) -> list[TagKey]:
        """Return the tags behind one in the last listing."""
        repository, tag = key
        tags = self._repositories.last_tags(repository)
        place = bisect_right(tags, tag)
        return [(repository, one) for one in tags[place : place + self._options.parallel]]

    def _fetch_ahead(self, key: TagKey) -> None:
        """Have the manifest of a tag that nobody waits for yet."""
        resolved = self._resolve(*key, listed=True, follows=True).value
        self.manifest(key[0], resolved.digest)

    def _resolve(
        self, repository: Repository, tag: Tag, *, listed: bool = False, follows: bool = False
    ) -> Answer[Resolved]:
        """Return what a tag names. Raises NotFound only for a tag that is no longer listed.

        `listed`: the caller has it from a listing, whether that is remembered or not. `follows`:
        the caller will ask for the manifest.
        """
        fetch = self._fetch_followed if follows else None
        try:
            return self._resolved.answer((repository, tag), fetch=fetch)
        except NotFound as error:
            listed = listed or holds(self._repositories.last_tags(repository), tag)
            soon = self._options.negative_ttl
            if listed and holds(self._repositories.tags(repository, soon), tag):
                raise ProtocolViolation(
                    f"the registry lists tag {tag} of {repository}, but: {error}"
                ) from error
            raise

    def _fetch_resolved(self, key: TagKey, *, follows: bool = False) -> Answer[Resolved]:
        repository, tag = key
        answer = self._fetch_tag(repository, tag) if follows else None
        answer = answer or self._source.resolve(repository, tag)
        told = self._resolved.peek(key) if self._own.has_tagged else None
        if told is not None:
            return Answer(told)  # this process wrote the tag meanwhile
        digest = answer.value.digest
        since = self._history.since(repository, tag, digest)
        return Answer(Resolved(digest, since), answer.is_current)

    def _fetch_tag(self, repository: Repository, tag: Tag) -> Answer[Descriptor | Document] | None:
        """Fetch the manifest under a tag, in one request in place of two, if nothing of it can be
        known yet.

        Registries that count what is pulled count GETs and no HEADs. So a tag that was seen before,
        and all of a repository whose tags share manifests, are asked for by HEAD.
        """
        with self._lock:
            shares = repository in self._shared
        if shares or self._history.has_seen(repository, tag):
            return None
        moment = self._documents.moment
        try:
            answer = self._source.fetch_tag(repository, tag, self._options.manifest_limit)
        except (ContentMismatch, ProtocolViolation, TooLarge) as error:
            log.debug("asking what %s:%s names alone: %s", repository, tag, error)
            return None
        document = answer.value
        if isinstance(document, Document):
            if self._documents.knows_manifest(repository, document.digest):
                with self._lock:
                    self._shared[repository] = None
            self._documents.keep(repository, document, moment)
        return answer

    def _fetch_head(self, key: tuple[Repository, Digest]) -> Answer[Descriptor]:
        answer = self._source.blob_size(*key)
        return Answer(Descriptor("", key[1], answer.value), answer.is_current)

    def _tagged(self, repository: Repository, tag: Tag) -> Answer[Document | None]:
        """Return what a tag names; None if the repository has no such tag."""
        is_current = True
        try:
            tags = self._repositories.tags_answer(repository)
            is_current = tags.is_current
            if not holds(tags.value, tag):
                return Answer(None, is_current)
        except (NotFound, Unsupported):
            pass  # without a list of tags, only asking for the tag can tell
        try:
            resolved = self._resolve(repository, tag, follows=True)
        except NotFound:
            return Answer(None, is_current)
        digest = resolved.value.digest
        with _led_to(repository, tag, digest):
            return Answer(self.manifest(repository, digest), resolved.is_current)


@contextmanager
def _led_to(repository: Repository, tag: Tag, digest: Digest) -> Iterator[None]:
    """If what a tag leads to is not found, say that the registry is wrong."""
    try:
        yield
    except NotFound as error:
        raise ProtocolViolation(
            f"tag {tag} of {repository} leads to {digest}, but: {error}"
        ) from error
